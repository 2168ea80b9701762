"""What a person reads while the demo runs."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lab.operator.progress import Progress, Shown, describe, duration
from training_image.core.contract import Phase
from training_image.core.records import Heartbeat

TRAINING = Phase.TRAINING


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Progress, Clock, io.StringIO]:
    output, clock = io.StringIO(), Clock()
    return Progress(Console(file=output, width=100), clock), clock, output


def test_training_in_words() -> None:
    beat = Heartbeat(phase=TRAINING, step=12, total_steps=60, loss=2.314, tokens_per_second=311.7, eta_seconds=130.2)
    shown = describe(beat)
    assert shown == Shown("step 12 of 60 · loss 2.31 · 312 tokens/s · 2 min 10 s left", 0.2)


def test_fields_that_are_missing_are_left_out() -> None:
    assert describe(Heartbeat(phase=TRAINING, total_steps=60)) == Shown("step 0 of 60", 0.0)
    assert describe(Heartbeat(phase=TRAINING)) == Shown()
    assert describe(Heartbeat()) == Shown()


@given(st.floats(0, 1e6))
def test_duration_never_shows_sixty_seconds(seconds: float) -> None:
    assert "60 s" not in duration(seconds)


def test_without_a_terminal_a_training_run_is_a_dozen_lines_not_hundreds() -> None:
    progress, clock, output = plain()
    progress.enter("Training")
    for step in range(1001):
        progress.enter("Training")
        progress.show(Shown(f"step {step} of 1000", step / 1000))
    clock.now = 75
    progress.finish()
    lines = output.getvalue().splitlines()
    assert lines[0] == "... Training"
    assert lines[-1] == "✓ Training  1 min 15 s"
    assert len(lines) == 13  # 0 %, 10 %, ... 100 %


def test_the_same_news_is_told_once() -> None:
    progress, _, output = plain()
    progress.enter("Boots")
    for text in ("i-1", "i-1", "i-2"):
        progress.show(Shown(text))
    progress.finish(failed=True)
    assert output.getvalue().splitlines() == ["... Boots", "    i-1", "    i-2", "✗ Boots  0 s"]


def test_a_phase_entered_twice_is_added_up() -> None:
    progress, clock, _ = plain()
    for title in ("Boots", "Loads", "Boots"):
        progress.enter(title)
        clock.now += 10
    progress.finish()
    assert progress.seconds == {"Boots": 20, "Loads": 10}


def test_on_a_narrow_terminal_the_live_line_fits() -> None:
    console = Console(file=io.StringIO(), width=30, force_terminal=True)
    progress = Progress(console, Clock())
    progress.enter("Training")
    progress.show(Shown("step 12 of 60 · loss 2.31 · 312 tokens/s", 0.2))
    with console.capture() as capture:
        console.print(progress._render())
    progress.finish()
    assert "step 12 of 60" in capture.get()
