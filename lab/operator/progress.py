"""What a person sees while the demo runs: one live line on a terminal, one line for each change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from training_image.core.contract import Phase
from training_image.core.records import Heartbeat

TITLES = {
    Phase.DOWNLOADING: "The instance downloads model and data",
    Phase.LOADING: "Loading the model",
    Phase.EVALUATING_BEFORE: "Asking the held-out questions before training",
    Phase.TRAINING: "Training",
    Phase.EVALUATING_AFTER: "Asking the held-out questions again",
    Phase.SAVING: "Saving the adapter",
    Phase.UPLOADING: "Uploading the adapter to S3",
    Phase.ENDED: "The instance ends itself",
}
_LINES_WITHOUT_TERMINAL = 10
"""Of a training run, where each line stays."""


@dataclass(frozen=True)
class Shown:
    """What is known of the phase under way."""

    text: str = ""
    fraction: float | None = None


def duration(seconds: float) -> str:
    """``45 s``, ``2 min 05 s``."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def describe(heartbeat: Heartbeat) -> Shown:
    """The heartbeat in words; fields it does not have yet are left out."""
    if heartbeat.phase is not Phase.TRAINING or not heartbeat.total_steps:
        return Shown()
    step = heartbeat.step or 0
    parts = [f"step {step} of {heartbeat.total_steps}"]
    if heartbeat.loss is not None:
        parts.append(f"loss {heartbeat.loss:.2f}")
    if heartbeat.tokens_per_second:
        parts.append(f"{heartbeat.tokens_per_second:.0f} tokens/s")
    if heartbeat.eta_seconds is not None:
        parts.append(f"{duration(heartbeat.eta_seconds)} left")
    return Shown(" · ".join(parts), step / heartbeat.total_steps)


class Progress:
    """Phases, one after the other. ``seconds`` says how long each took, by title."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._title = ""
        self._since = 0.0
        self._shown = Shown()
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None
        self.seconds: dict[str, float] = {}

    def enter(self, title: str) -> None:
        """The phase before is done, this one begins; nothing happens if it is already under way."""
        if title == self._title:
            return
        self.finish()
        self._title, self._since, self._shown = title, self._clock(), Shown()
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        else:
            self._console.print(Text(f"... {title}"))

    def show(self, shown: Shown) -> None:
        """News of the phase under way. Without a terminal: a tenth of the way at a time, or another text."""
        before, self._shown = self._shown, shown
        if self._console.is_terminal or not shown.text:
            return
        if shown.fraction is None:
            news = shown.text != before.text
        else:
            news = before.fraction is None or _tenth(shown.fraction) > _tenth(before.fraction)
        if news:
            self._console.print(Text(f"    {shown.text}"))

    def finish(self, *, failed: bool = False) -> None:
        """The phase under way is over."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if not self._title:
            return
        took = self._clock() - self._since
        self.seconds[self._title] = self.seconds.get(self._title, 0.0) + took
        mark = Text("✗ ", "bold red") if failed else Text("✓ ", "bold green")
        self._console.print(mark + Text(self._title) + Text(f"  {duration(took)}", "dim"))
        self._title = ""

    def _render(self) -> RenderableType:
        took = duration(self._clock() - self._since)
        self._spinner.update(text=Text(self._title) + Text(f"  {took}", "dim"))
        lines: list[RenderableType] = [self._spinner]
        if self._shown.fraction is not None:
            width = min(48, max(10, self._console.width - 6))
            bar = Table.grid(padding=(0, 2))  # alone, a ProgressBar does not end its line
            bar.add_row("", ProgressBar(total=1.0, completed=self._shown.fraction, width=width))
            lines.append(bar)
        if self._shown.text:
            lines.append(Text(f"  {self._shown.text}", "dim"))
        return Group(*lines)


def _tenth(fraction: float) -> int:
    return int(fraction * _LINES_WITHOUT_TERMINAL)
