"""What became of a run: its attempts, from S3 and from the disks of its boxes, which stay after their end."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from training_image.core.contract import RunKeys, WorkDir
from training_image.core.store import Store


@dataclass(frozen=True)
class Attempt:
    """One attempt; steps are optimizer steps."""

    number: int
    instance: str
    resumed_from: int
    """0: from the beginning."""
    reached: int
    """Last step that its trainer finished; 0: none."""


def work_dir(box: Path) -> WorkDir:
    return WorkDir(box / "opt" / "training")


def status(box: Path) -> dict[str, Any]:
    """The trainer's latest word on this box; empty before its first."""
    try:
        found = json.loads(work_dir(box).status.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def attempts(store: Store, keys: RunKeys, boxes: Path) -> list[Attempt]:
    """All attempts of the run, in order."""
    found = []
    number = 1
    while claim := store.read_json(keys.attempt(number) + "claim.json"):
        work = work_dir(boxes / claim["instance_id"])
        found.append(Attempt(number, claim["instance_id"], _resumed_from(work), _reached(work)))
        number += 1
    return found


def _resumed_from(work: WorkDir) -> int:
    try:
        return int(json.loads((work.resume / "trainer_state.json").read_text())["global_step"])
    except FileNotFoundError:
        return 0


def _reached(work: WorkDir) -> int:
    return max((line["step"] for line in logged(work.metrics / "steps.jsonl")), default=0)


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


def gaps(steps: list[int], total: int) -> int:
    """Steps that the run's own record lacks or has twice: each must stand there exactly once."""
    counts = Counter(steps)
    return sum(counts[step] != 1 for step in range(1, total + 1))
