"""What the run controller does about a request: a pure decision, tested without AWS."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from training_image.core.contract import LIVE_LIMITS, settings_digest


class Action(StrEnum):
    START = "start"  # mint a run (or finish minting it, when CloudFormation delivers twice) and ask for its instance
    LIMIT = "limit"  # change the active run's limits, every killer with it, and nothing else
    STOP = "stop"  # checkpoint, end the instance, outcome
    REFUSE = "refuse"  # answer FAILED; nothing was changed
    NOTHING = "nothing"


@dataclass(frozen=True)
class Request:
    """One CloudFormation request; ``spec`` is the decoded property of that name (see stacks/training_stack.py)."""

    kind: str  # Create, Update or Delete
    request_id: str
    spec: dict[str, Any]
    old_spec: dict[str, Any] | None
    undoes: str | None = None
    """The id of the update that is being rolled back; None: this is no rollback."""


@dataclass(frozen=True)
class Current:
    """The run that the stack's pointer names."""

    run_id: str
    request_id: str
    spec: dict[str, Any]
    """As its run started; limits may have been changed since."""
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
    if request.undoes is not None:
        return _roll_back(request, current)
    if current is not None and current.request_id == request.request_id:
        return Decision(Action.NOTHING if current.ended else Action.START, "this request was delivered before")
    if not request.spec["create_instance"]:
        if active:
            return Decision(Action.STOP, "create_instance=false was deployed")
        return Decision(Action.NOTHING, "create_instance is false")
    if current is not None and _same(request.spec, current.spec) and not _switched_on(request):
        return _limits(request, current, "has these settings already")
    if current is not None and active:
        return Decision(
            Action.REFUSE,
            f"Run {current.run_id} is active and goes on unharmed: wait until it has ended, or stop it with a "
            f"checkpoint by `{request.spec['destroy_command']}`, then deploy the new settings.",
        )
    return Decision(Action.START, "no run of this stack is active")


def _limits(request: Request, current: Current, otherwise: str) -> Decision:
    """Limits are the one thing that may change under a run; those of an ended run are nobody's."""
    changed = [
        name for name in LIVE_LIMITS if request.old_spec is not None and request.spec[name] != request.old_spec[name]
    ]
    if not changed:
        return Decision(Action.NOTHING, f"run {current.run_id} {otherwise}")
    if current.ended:
        return Decision(Action.NOTHING, f"run {current.run_id} has ended: {', '.join(changed)} holds for the next run")
    return Decision(Action.LIMIT, f"{', '.join(changed)} of run {current.run_id} changes now")


def _roll_back(request: Request, current: Current | None) -> Decision:
    """The failed update's properties arrive as the old ones: end the run that it started, take back the limits that it
    changed, and nothing else."""
    if current is None or current.ended:
        return Decision(Action.NOTHING, "the stack is rolling back")
    if current.request_id == request.undoes:
        return Decision(Action.STOP, "the update that started this run is being rolled back")
    if _same(current.spec, request.spec):
        return _limits(request, current, "is not touched by the rollback")
    return Decision(Action.NOTHING, "the stack is rolling back")


def _switched_on(request: Request) -> bool:
    return request.old_spec is not None and not request.old_spec["create_instance"]


def _same(wanted: dict[str, Any], has: dict[str, Any]) -> bool:
    """Whether both describe the same run. Not compared are the limits, ``create_instance``, and a ``new_run`` or
    ``resume`` that ``wanted`` no longer gives."""
    no_longer_given = [name for name in ("new_run", "resume") if wanted.get(name) is None]
    aside = dict.fromkeys(("create_instance", *LIVE_LIMITS, *no_longer_given))
    return settings_digest({**wanted, **aside}) == settings_digest({**has, **aside})
