"""Follow a run to its end through S3 and the AWS APIs, and wait until its box is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.operator import record
from lab.operator.progress import TITLES, Progress, Shown, describe
from training_image.core.contract import RunKeys

BOOTING = "The box boots"
STALLED_SECONDS = 900
"""Without a new heartbeat or box for so long, the run is given up."""
LEAVING_SECONDS = 240
"""From outcome to an empty group: the drain hook's 180 s, and some."""
_POLL_SECONDS = 1.0


class RunStalledError(RuntimeError):
    """The run makes no progress any more, or its box does not go."""


@dataclass(frozen=True)
class Place:
    """Where a deployed run is to be found."""

    bucket: str
    keys: RunKeys
    group: str


def follow(
    s3: Any,
    ec2: Any,
    place: Place,
    progress: Progress,
    sleep: Callable[[float], None] = time.sleep,
    *,
    stalled_seconds: float = STALLED_SECONDS,
    on_heartbeat: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Show every phase until ``outcome.json`` exists.

    Raises:
        RunStalledError: when nothing has changed for ``stalled_seconds``.
    """
    progress.enter(BOOTING)
    seen: tuple[Any, ...] = ()
    waiting = 0.0
    while not record.read_json(s3, place.bucket, place.keys.outcome):
        heartbeat = record.read_json(s3, place.bucket, place.keys.heartbeat)
        on_heartbeat(heartbeat)
        live = record.live_instances(ec2, place.group)
        now = (heartbeat.get("at"), heartbeat.get("step"), tuple(live))
        waiting = waiting + _POLL_SECONDS if now == seen else 0.0
        seen = now
        if waiting > stalled_seconds:
            minutes, phase = f"{stalled_seconds // 60:.0f}", heartbeat.get("phase")
            raise RunStalledError(f"The run has not changed for {minutes} minutes (last phase: {phase}).")
        _show(heartbeat, live, progress)
        sleep(_POLL_SECONDS)
    progress.enter(TITLES["ended"])


def _show(heartbeat: dict[str, Any], live: list[str], progress: Progress) -> None:
    title = TITLES.get(heartbeat.get("phase", ""))
    if title is None or heartbeat.get("state") == "waiting":
        progress.enter(BOOTING)
        progress.show(Shown(", ".join(live) or "waiting for an instance"))
        return
    progress.enter(title)
    progress.show(describe(heartbeat))


def wait_until_gone(
    ec2: Any, progress: Progress, sleep: Callable[[float], None] = time.sleep, *, group: str | None = None
) -> int:
    """Wait, within ``LEAVING_SECONDS``, until no instance of the group (or of the account) is left; returns how many
    there still are."""
    live = record.live_instances(ec2, group)
    for _ in range(int(LEAVING_SECONDS / _POLL_SECONDS)):
        if not live:
            break
        progress.show(Shown(", ".join(live)))
        sleep(_POLL_SECONDS)
        live = record.live_instances(ec2, group)
    return len(live)
