"""What the auto-terminator does about what it sees: a pure decision, tested without AWS.

Killer 2 of three. The instance goes first: it stops with a checkpoint before its deadline, and ends itself when its
run has ended. What is decided here is for instances that did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from training_image.core.codec import EARLIEST
from training_image.core.contract import Reason
from training_image.core.records import Control, Heartbeat, Limits, Outcome, Run, StopRequest, in_force

DEADLINE_GRACE = timedelta(minutes=5)
"""After the deadline: the instance has had ten minutes by then. Killer 3, a scheduled action, follows five minutes
later."""
END_GRACE = timedelta(minutes=10)
"""From the outcome to the end of the instance: it still uploads its logs."""
BOOT_GRACE = timedelta(minutes=20)
"""From the launch to the first heartbeat: a large image, read from a snapshot that loads lazily."""
SILENCE = timedelta(minutes=10)
"""Without a heartbeat. They come every few seconds, whatever the trainer does: a busy instance is never silent."""
STOP_GRACE = timedelta(minutes=10)
"""From a request to stop: the instance has two minutes, and the controller, if it was the one that asked, waits
seven."""
BLIND_GRACE = timedelta(minutes=30)
"""Beyond the maximum run time, where nothing but an instance's age is known."""


@dataclass(frozen=True)
class Instance:
    """An instance of the group that is not terminated."""

    instance_id: str
    launched_at: datetime


@dataclass(frozen=True)
class Facts:
    """What was seen in one look.

    Args:
        run: None: there is none, or it could not be read.
        control: what was asked of it since; empty if that could not be read.
        launches: instances that the group has started since the run began.
        max_runtime: as deployed, for when ``run`` is None.
    """

    now: datetime
    instances: tuple[Instance, ...]
    desired: int
    run: Run | None
    outcome: Outcome | None
    heartbeat: Heartbeat
    launches: int
    max_runtime: timedelta
    control: Control


@dataclass(frozen=True)
class Ending:
    """Take the capacity away and terminate the instances. ``reason`` of the outcome; None: no outcome is to be
    written."""

    reason: Reason | None
    sentence: str


def decide(facts: Facts) -> Ending | None:
    """What to end and why, or None. Facts that are missing or unreadable never protect an old instance."""
    if facts.run is None:
        return _by_age(facts)
    limits = in_force(facts.run, facts.control)
    deadline = limits.deadline
    if facts.outcome is not None:
        return _after_the_end(facts, facts.outcome, limits)
    if facts.now > deadline + DEADLINE_GRACE:
        return Ending(
            Reason.EXPIRED,
            f"The deadline, {deadline:%Y-%m-%d %H:%M} UTC, has passed and the instance did not end itself.",
        )
    if facts.control.stop is not None and (stopped := _stopped(facts.control.stop, facts)):
        return stopped
    if silent := [instance for instance in facts.instances if _is_silent(instance, facts)]:
        minutes = _quiet(silent[0], facts)[1].seconds // 60
        return Ending(
            Reason.FAILED,
            f"Instance {silent[0].instance_id} has sent no heartbeat for {minutes} minutes: it or its setup hangs.",
        )
    if facts.launches > (attempts := facts.run.max_attempts):
        return Ending(Reason.FAILED, f"The run has used up {facts.launches} instances; max_attempts is {attempts}.")
    return None


def _stopped(request: StopRequest, facts: Facts) -> Ending | None:
    """Whoever asked (`lab stop`) may have gone; a run that waits for capacity has no instance to obey."""
    if not facts.instances:
        return Ending(request.reason, f"{request.detail}, and there was no instance.")
    if facts.now > (request.at or EARLIEST) + STOP_GRACE:
        minutes = STOP_GRACE.seconds // 60
        return Ending(request.reason, f"A stop was asked for, and the instance did not obey within {minutes} minutes.")
    return None


def _by_age(facts: Facts) -> Ending | None:
    old = [
        instance for instance in facts.instances if facts.now > instance.launched_at + facts.max_runtime + BLIND_GRACE
    ]
    if not old:
        return None
    return Ending(None, f"Instance {old[0].instance_id} is older than any run may be, and its run cannot be read.")


def _after_the_end(facts: Facts, outcome: Outcome, limits: Limits) -> Ending | None:
    """A run that has ended keeps its instance only for review, and only until the deadline."""
    if not facts.instances and not facts.desired:
        return None
    latest = limits.deadline + DEADLINE_GRACE
    # An outcome without a time may be old, so its instance gets no more time.
    until = (outcome.at or EARLIEST) + END_GRACE if limits.auto_shutdown else latest
    if facts.now <= min(until, latest):
        return None
    return Ending(None, "The run has ended and its instance did not.")


def _is_silent(instance: Instance, facts: Facts) -> bool:
    since, bound = _quiet(instance, facts)
    return facts.now > since + bound


def _quiet(instance: Instance, facts: Facts) -> tuple[datetime, timedelta]:
    """Since when the instance has said nothing, and how long it may."""
    heard = facts.heartbeat.at if facts.heartbeat.instance_id == instance.instance_id else None
    return (instance.launched_at, BOOT_GRACE) if heard is None else (heard, SILENCE)
