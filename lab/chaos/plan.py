"""What is done to which run, and when: decided from a seed before anything starts, so that it can be done again."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A fault. The local cloud does it from outside; product code has no switch for any of them."""

    NOTICE = "notice"  # spot interruption with its notice
    KILL_TRAINER = "kill-trainer"
    KILL_SUPERVISOR = "kill-supervisor"
    KILL_MACHINE = "kill-machine"
    KILL_UPLOADING = "kill-uploading"  # the machine, when part of a checkpoint is in S3 and part of it is not
    S3_REFUSES = "s3-refuses"  # 503 SlowDown to everything, for a while
    S3_DROPS = "s3-drops"  # uploads lose their connection half way, for a while
    S3_SLOW = "s3-slow"
    TWO_BOXES = "two-boxes"  # a second instance of the same run
    CORRUPT = "corrupt"  # the newest checkpoint's bytes change in S3; then the machine dies
    DISK_FULL = "disk-full"
    CLOCK_JUMP = "clock-jump"  # of the wall clock, forth and back


ENDS_A_BOX = {
    Kind.NOTICE, Kind.KILL_TRAINER, Kind.KILL_SUPERVISOR, Kind.KILL_MACHINE, Kind.KILL_UPLOADING, Kind.TWO_BOXES,
    Kind.CORRUPT,
}  # fmt: skip
ONLY_WHILE_TRAINING = {Kind.CORRUPT, Kind.KILL_UPLOADING}
"""They need a checkpoint, or one that comes."""
NEEDS_THE_CONTAINER = {Kind.KILL_TRAINER, Kind.KILL_SUPERVISOR}
"""An instance that boots does not have it yet."""
PHASES = ("booting", "loading", "evaluating_before", "evaluating_after", "uploading")
"""Moments outside of the training steps, in their order."""
MOST_FAULTS = 3


@dataclass(frozen=True)
class Fault:
    """One fault: when the run has reached ``at_step``, or is in ``phase`` for the first time after the last one."""

    kind: Kind
    at_step: int | None = None
    phase: str | None = None

    @property
    def when(self) -> str:
        return f"step {self.at_step}" if self.phase is None else self.phase


def plan(
    seed: int, runs: int, *, steps: int, save_steps: int, available: Collection[Kind]
) -> tuple[tuple[Fault, ...], ...]:
    """The faults of each run, in the order in which they strike.

    Every run gets one fault at least between its first and its last checkpoint; over all runs these are at least half.
    Kinds are dealt round, so that a short series still has many of them.

    Raises:
        ValueError: there is no step between the first and the last checkpoint, or nothing to do.
    """
    first, last = save_steps, (steps - 1) // save_steps * save_steps
    if last - first < 2:
        raise ValueError(f"{steps} steps with a checkpoint every {save_steps} leave nothing between two checkpoints")
    if not available:
        raise ValueError("there is no kind of fault to choose from")
    source = random.Random(seed)  # noqa: S311 a plan, not a secret
    deck: list[Kind] = []
    return tuple(_one_run(source, deck, first, last, sorted(available)) for _ in range(runs))


def _one_run(
    source: random.Random, deck: list[Kind], first: int, last: int, kinds: Sequence[Kind]
) -> tuple[Fault, ...]:
    inside = sorted(source.sample(range(first + 1, last), k=min(source.randint(1, MOST_FAULTS), last - first - 1)))
    faults = [Fault(_deal(source, deck, kinds), at_step=step) for step in inside]
    if len(inside) < MOST_FAULTS and source.random() < len(inside) / MOST_FAULTS:  # never more outside than inside
        phase = source.choice(PHASES)
        never = ONLY_WHILE_TRAINING | (NEEDS_THE_CONTAINER if phase == PHASES[0] else set())
        outside = [kind for kind in kinds if kind not in never]
        if outside:
            fault = Fault(_deal(source, deck, outside), phase=phase)
            faults.insert(0 if PHASES.index(phase) < PHASES.index("evaluating_after") else len(faults), fault)
    return tuple(faults)


def _deal(source: random.Random, deck: list[Kind], wanted: Sequence[Kind]) -> Kind:
    """The next of a shuffled deck that is among ``wanted``."""
    for _ in range(2):
        for kind in deck:
            if kind in wanted:
                deck.remove(kind)
                return kind
        fresh = list(wanted)
        source.shuffle(fresh)
        deck.extend(fresh)
    raise AssertionError("a fresh deck has what is wanted")
