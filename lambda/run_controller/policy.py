"""What the run controller does about a request: a pure decision, tested without AWS."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from training_image.contract import settings_digest


class Action(StrEnum):
    START = "start"  # mint a run (or finish minting it, when CloudFormation delivers twice) and ask for its box
    STOP = "stop"  # checkpoint, end the box, outcome
    REFUSE = "refuse"  # answer FAILED; nothing was changed
    NOTHING = "nothing"


@dataclass(frozen=True)
class Request:
    """One CloudFormation request; ``spec`` is the decoded property of that name (see stacks/training_stack.py)."""

    kind: str  # Create, Update or Delete
    request_id: str
    spec: dict[str, Any]
    old_spec: dict[str, Any] | None
    rolling_back: bool


@dataclass(frozen=True)
class Current:
    """The run that the stack's pointer names."""

    run_id: str
    request_id: str
    spec: dict[str, Any]
    ended: bool


@dataclass(frozen=True)
class Decision:
    action: Action
    sentence: str


def decide(request: Request, current: Current | None) -> Decision:
    """What to do. Never refuses a rollback (it would end in UPDATE_ROLLBACK_FAILED) and never refuses a delete."""
    active = current is not None and not current.ended
    if request.kind == "Delete":
        return Decision(Action.STOP, "the stack is being deleted")
    if request.rolling_back:
        return _roll_back(request, current)
    if current is not None and current.request_id == request.request_id:
        return Decision(Action.NOTHING if current.ended else Action.START, "this request was delivered before")
    if not request.spec["create_instance"]:
        if active:
            return Decision(Action.STOP, "create_instance=false was deployed")
        return Decision(Action.NOTHING, "create_instance is false")
    if current is not None and _same(request.spec, current.spec) and not _switched_on(request):
        return Decision(Action.NOTHING, f"run {current.run_id} has these settings already")
    if current is not None and active:
        return Decision(
            Action.REFUSE,
            f"Run {current.run_id} is active and goes on unharmed: wait until it has ended, or stop it with a "
            f"checkpoint by `{request.spec['destroy_command']}`, then deploy the new settings.",
        )
    return Decision(Action.START, "no run of this stack is active")


def _roll_back(request: Request, current: Current | None) -> Decision:
    """The failed update's properties arrive as the old ones: end what they started, and nothing else."""
    started_by_failed_update = (
        current is not None
        and not current.ended
        and request.old_spec is not None
        and _same(current.spec, request.old_spec)
        and not _same(current.spec, request.spec)
    )
    if started_by_failed_update:
        return Decision(Action.STOP, "the update that started this run is being rolled back")
    return Decision(Action.NOTHING, "the stack is rolling back")


def _switched_on(request: Request) -> bool:
    return request.old_spec is not None and not request.old_spec["create_instance"]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Same run, whether or not an instance is asked for."""
    return settings_digest({**one, "create_instance": None}) == settings_digest({**other, "create_instance": None})
