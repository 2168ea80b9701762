"""Follow a run to its end through S3 and the AWS APIs, and wait until its instance is gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.operator import resources
from lab.operator.progress import TITLES, Progress, Shown, describe
from training_image.core.contract import Phase, RunKeys, State
from training_image.core.records import Heartbeat, read_heartbeat, read_outcome
from training_image.core.store import Store

BOOTING = "The instance boots"
STALLED_SECONDS = 900
"""Without a new heartbeat or instance for so long, the run is given up."""
LEAVING_SECONDS = 240
"""From outcome to an empty group: the drain hook's 180 s, and some."""
_POLL_SECONDS = 1.0


class RunStalledError(RuntimeError):
    """The run makes no progress any more, or its instance does not go."""


@dataclass(frozen=True)
class Place:
    """Where a deployed run is to be found: its outputs bucket, its keys there, its Auto Scaling group."""

    store: Store
    keys: RunKeys
    group: str


def follow(
    place: Place,
    ec2: Any,
    progress: Progress,
    sleep: Callable[[float], None] = time.sleep,
    *,
    stalled_seconds: float = STALLED_SECONDS,
    on_heartbeat: Callable[[Heartbeat], None] = lambda _: None,
) -> None:
    """Show every phase until ``outcome.json`` exists.

    Raises:
        RunStalledError: when nothing has changed for ``stalled_seconds``.
    """
    progress.enter(BOOTING)
    seen: tuple[Any, ...] = ()
    waiting = 0.0
    while read_outcome(place.store, place.keys) is None:
        heartbeat = read_heartbeat(place.store, place.keys)
        on_heartbeat(heartbeat)
        live = resources.live_instances(ec2, place.group)
        now = (heartbeat.at, heartbeat.step, tuple(live))
        waiting = waiting + _POLL_SECONDS if now == seen else 0.0
        seen = now
        if waiting > stalled_seconds:
            minutes = f"{stalled_seconds // 60:.0f}"
            raise RunStalledError(f"The run has not changed for {minutes} minutes (last phase: {heartbeat.phase}).")
        _show(heartbeat, live, progress)
        sleep(_POLL_SECONDS)
    progress.enter(TITLES[Phase.ENDED])


def _show(heartbeat: Heartbeat, live: list[str], progress: Progress) -> None:
    if heartbeat.phase is None or heartbeat.state is State.WAITING:
        progress.enter(BOOTING)
        progress.show(Shown(", ".join(live) or "waiting for an instance"))
        return
    progress.enter(TITLES[heartbeat.phase])
    progress.show(describe(heartbeat))


def wait_until_gone(
    ec2: Any, progress: Progress, sleep: Callable[[float], None] = time.sleep, *, group: str | None = None
) -> int:
    """Wait, within ``LEAVING_SECONDS``, until no instance of the group (or of the account) is left; returns how many
    there still are."""
    live = resources.live_instances(ec2, group)
    for _ in range(int(LEAVING_SECONDS / _POLL_SECONDS)):
        if not live:
            break
        progress.show(Shown(", ".join(live)))
        sleep(_POLL_SECONDS)
        live = resources.live_instances(ec2, group)
    return len(live)
