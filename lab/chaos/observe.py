"""What became of a run: its attempts, from S3 and from the disks of its instances, which stay after their end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from training_image.core.codec import moment
from training_image.core.contract import COMPLETE_MARKER, RunKeys, WorkDir
from training_image.core.records import Claim
from training_image.core.store import Store
from training_image.storage import checkpoints


@dataclass(frozen=True)
class Waiting:
    """A whole checkpoint that was on its way to S3 when its instance was lost.

    ``steps`` and ``seconds`` passed between its being saved and the instance's last step; ``size`` is in bytes.
    """

    step: int
    steps: int
    seconds: float
    size: int


@dataclass(frozen=True)
class Attempt:
    """One attempt; steps are optimizer steps."""

    number: int
    instance: str
    resumed_from: int
    """0: from the beginning."""
    reached: int
    """Last step that its trainer finished before the next attempt's claim; 0: none. Until it notices its successor, an
    instance trains on for some seconds: that work is lost to fencing, not for lack of a checkpoint."""
    waiting: tuple[Waiting, ...] = ()
    """Whole checkpoints on its disk, oldest first. What is in S3 is deleted there soon; the others stay."""


def work_dir(box: Path) -> WorkDir:
    return WorkDir(box / "opt" / "training")


def status(box: Path) -> dict[str, Any]:
    """The trainer's latest word on this instance; empty before its first."""
    try:
        found = json.loads(work_dir(box).status.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def attempts(store: Store, keys: RunKeys, boxes: Path) -> list[Attempt]:
    """All attempts of the run, in order."""
    claims: list[Claim] = []
    while body := store.read(keys.claim(len(claims) + 1)):
        claims.append(Claim.parse(body))
    found = []
    for number, (claim, successor) in enumerate(zip_longest(claims, claims[1:]), 1):
        work = work_dir(boxes / str(claim.instance_id))
        reached = _reached(work, successor.at if successor else None)
        found.append(
            Attempt(number, str(claim.instance_id), _resumed_from(work), reached, tuple(_waiting(work, reached)))
        )
    return found


def _resumed_from(work: WorkDir) -> int:
    try:
        return int(json.loads((work.resume / "trainer_state.json").read_text())["global_step"])
    except FileNotFoundError:
        return 0


def _reached(work: WorkDir, until: datetime | None) -> int:
    lines = logged(work.metrics / "steps.jsonl")
    return max((line["step"] for line in lines if until is None or (moment(line["at"]) or until) < until), default=0)


def _waiting(work: WorkDir, reached: int) -> Iterator[Waiting]:
    steps_file = work.metrics / "steps.jsonl"
    for step, path in sorted(checkpoints.complete_checkpoints(work.checkpoints).items()):
        saved, last = (path / COMPLETE_MARKER).stat().st_mtime, steps_file.stat().st_mtime
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        yield Waiting(step, max(0, reached - step), round(max(0.0, last - saved), 1), size)


def logged(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a ``steps.jsonl``; a torn last one is no line."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def repeated(found: list[Attempt]) -> list[int]:
    """Steps that each attempt after the first did again."""
    return [max(0, before.reached - after.resumed_from) for before, after in pairwise(found)]


def uploading(found: list[Attempt]) -> list[Waiting | None]:
    """Per attempt but the last: the first of its checkpoints that came too late for the next one to resume from."""
    return [
        next((item for item in before.waiting if item.step > after.resumed_from), None)
        for before, after in pairwise(found)
    ]


def gaps(steps: list[int], total: int) -> int:
    """Steps that the run's own record lacks or has twice: each must stand there exactly once."""
    counts = Counter(steps)
    return sum(counts[step] != 1 for step in range(1, total + 1))
