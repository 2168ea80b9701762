"""The end of the demo for a person: what came of it, where it is, what it would have cost, what to type next."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lab.demo.summary import Facts, instance_seconds
from lab.operator.progress import duration
from training_image.config.catalog import INSTANCES, PRICES_AS_OF, TYPICAL_SPOT_SHARE

_INSTANCE = "g5.xlarge"
_SHOWN_ANSWERS = 5


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not cut the clean-up short."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def show(console: Console, summary: dict[str, Any], found: list[str], facts: Facts, folder: Path) -> None:
    """Print the report; ``found`` are the problems, ``folder`` is where the demo keeps its files."""
    console.print()
    if found:
        console.print(_failure(found, folder))
        return
    console.print(_result(summary))
    console.print(_answers(facts))
    console.print(_where(summary, folder))
    console.print(_first_step(summary))
    console.print(_cost(facts))
    console.print(_next_commands())


def _failure(found: list[str], folder: Path) -> RenderableType:
    lines: list[RenderableType] = [Text(problem) for problem in found]
    lines.append(Text())
    lines += [Text(f"The instance's log: {log}") for log in sorted(folder.glob("attempts/*/training.log"))]
    lines.append(Text("Nothing is left running. When the reason is fixed: make demo"))
    return Panel(Group(*lines), title="The demo did not succeed", border_style="red", title_align="left")


def _result(summary: dict[str, Any]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for title in ("before", "after"):
        table.add_column(title, justify="right")
    table.add_row("Held-out loss", f"{summary['eval_loss_before']:.2f}", _good(f"{summary['eval_loss_after']:.2f}"))
    table.add_row(
        "Exactly right answers",
        f"{summary['exact_match_before']:.0%}",
        _good(f"{summary['exact_match_after']:.0%}"),
    )
    model = summary["base_model"].rstrip("/").rsplit("/", 1)[-1]
    told = Text(
        f"{model} learned for {summary['steps']} steps from {summary['train_examples']:,} examples, and was asked "
        f"{summary['eval_examples']} questions it had never seen. All of it took {duration(summary['wall_seconds'])}."
    )
    return Panel(Group(told, Text(), table), title="A fine-tuned model", border_style="green", title_align="left")


def _good(text: str) -> Text:
    return Text(text, "bold green")


def _answers(facts: Facts) -> RenderableType:
    """Some held-out questions with the answers before and after, below each other: that fits any terminal."""
    before = {sample["prompt"]: sample["answer"] for sample in (facts.record.eval_before or {}).get("samples", [])}
    lines: list[RenderableType] = [Rule("Answers to questions it had never seen", align="left", style="dim")]
    for sample in (facts.recheck.samples if facts.recheck else [])[:_SHOWN_ANSWERS]:
        right = sample["answer"] == sample["expected"]
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row("before", Text(_short(before.get(sample["prompt"], "")), "dim"))
        grid.add_row("after", Text(_short(sample["answer"]), "bold green" if right else "yellow"))
        if not right:
            grid.add_row("right", _short(sample["expected"]))
        lines += [Text(_short(sample["prompt"], 200), "bold"), grid, Text()]
    return Group(*lines)


def _short(text: str, limit: int = 110) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _where(summary: dict[str, Any], folder: Path) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("adapter", str(folder / "adapter"))
    grid.add_row("in S3 it was", summary["adapter_uri"])
    grid.add_row("sha256", summary["adapter_sha256"])
    grid.add_row("summary", str(folder / "summary.json"))
    return Group(grid, Text())


def _first_step(summary: dict[str, Any]) -> RenderableType:
    seconds = dict(summary["first_step_seconds"])
    if not seconds:
        return Text()
    total = duration(seconds.pop("total"))
    parts = ", ".join(f"{name.replace('_', ' ')} {took:.1f}" for name, took in seconds.items())
    return Text(f"From the instance's launch to the end of its first step: {total} (in seconds: {parts}).\n")


def _cost(facts: Facts) -> RenderableType:
    seconds = instance_seconds(facts.record.timelines)
    on_demand = INSTANCES[_INSTANCE].on_demand_usd_per_hour
    dollars = seconds / 3600 * on_demand * TYPICAL_SPOT_SHARE
    return Text(
        f"This cost nothing. {duration(seconds)} of {_INSTANCE} on spot would be about ${dollars:.3f}, at "
        f"{TYPICAL_SPOT_SHARE:.0%} of the on-demand price of ${on_demand}/hour (prices of {PRICES_AS_OF}; spot prices "
        "move). These were minutes of your CPU: a GPU takes far fewer for the same steps, and minutes more to boot.\n"
    )


def _next_commands() -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim")
    grid.add_column(style="cyan", overflow="fold")
    grid.add_row("On your own data:", "make demo DATA=<folder with train.jsonl>")
    grid.add_row("On AWS, with a GPU:", "cdk bootstrap && cdk deploy DataStack")
    return Group(Rule("Next", align="left", style="dim"), grid)
