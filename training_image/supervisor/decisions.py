"""What the supervisor decides, as pure functions of what it saw."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from training_image.core.contract import Phase, Reason, SupervisorExit, TrainerExit

CRASHED = 1
"""Exit code of a supervisor whose run has not ended and whose instance must be replaced: none of SupervisorExit."""


class Cause(StrEnum):
    """Why an instance stops training before it is done."""

    CONTROL = "control"  # the run is to end: control.json says so
    DEADLINE = "deadline"  # the run is to end: its time is up
    SIGNAL = "signal"  # this instance is to end: SIGTERM or SIGINT
    NOTICE = "notice"  # this instance is to end: spot interruption
    SCALE_IN = "scale_in"  # this instance is to end: the group takes it away
    FENCED = "fenced"  # a newer attempt has claimed the run: this one must not write any more


@dataclass(frozen=True)
class Stop:
    """A request to stop. ``reason`` is that of the outcome; None: the instance leaves and the run goes on elsewhere."""

    cause: Cause
    detail: str
    reason: Reason | None = None


@dataclass(frozen=True)
class Verdict:
    """How an attempt ends. ``reason`` None: the run goes on, no outcome is written."""

    reason: Reason | None
    exit_code: int


def may_end_at_once(phase: Phase | None) -> bool:
    """Whether a trainer in this phase can be killed when a stop is asked for, so that none of the notice is wasted.

    Before the first step there is nothing to save, and after the last one its checkpoint is complete. While it trains
    or saves, we wait for the end of the step or of the save. We also wait if it names no phase yet.
    """
    return phase in (Phase.LOADING, Phase.EVALUATING_BEFORE, Phase.EVALUATING_AFTER)


def verdict(
    *, trainer_exit: int | None, succeeded: bool, stop: Stop | None, attempt: int, max_attempts: int
) -> Verdict:
    """Judge an attempt whose trainer is gone.

    Args:
        trainer_exit: its exit code; None if it never started or was killed because its time to stop was over.
        succeeded: the final marker exists and the adapter on disk is the one it names.
        stop: the request under way, if any.
    """
    if stop is not None and stop.cause is Cause.FENCED:
        return Verdict(None, SupervisorExit.INSTANCE_LEAVING)
    if trainer_exit == TrainerExit.DONE and succeeded:
        return Verdict(Reason.SUCCEEDED, SupervisorExit.RUN_ENDED)
    if trainer_exit in (TrainerExit.BAD_INPUT, TrainerExit.OUT_OF_MEMORY):
        return Verdict(Reason.FAILED, SupervisorExit.RUN_ENDED)
    if stop is not None:
        return Verdict(stop.reason, SupervisorExit.RUN_ENDED if stop.reason else SupervisorExit.INSTANCE_LEAVING)
    if attempt >= max_attempts:
        return Verdict(Reason.FAILED, SupervisorExit.RUN_ENDED)
    return Verdict(None, CRASHED)
