"""``summary.json`` and the verdict: pure functions of what was read from S3 and the AWS APIs after the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.demo.recheck import Recheck
from lab.operator.record import RunRecord
from training_image.core.contract import DATA_STACK, TRAINING_STACK

_SAME_LOSS = 1e-2
"""Relative; the same weights give the same loss but for the order of floating-point sums."""


@dataclass
class Facts:
    """Everything the summary is made of. What is not known stays None."""

    run_id: str | None = None
    engine: str = "process"
    """What ran the container: ``process`` or ``docker``."""
    record: RunRecord = field(default_factory=RunRecord)
    recheck: Recheck | None = None
    adapter_uri: str | None = None
    ended_by: str | None = None
    instances_before_destroy: int | None = None
    instances_after: int | None = None
    stacks_after: list[str] | None = None
    own_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the demo's own phases, by title."""
    wall_seconds: float = 0.0
    problem: str | None = None
    """Why the demo could not go on, if it could not."""


def summarize(facts: Facts) -> dict[str, Any]:
    """The content of ``summary.json``."""
    record, fresh = facts.record, facts.recheck
    outcome, before = record.outcome, record.eval_before or {}
    return {
        "run_id": facts.run_id,
        "outcome": outcome and outcome.reason,
        "ended_by": facts.ended_by,
        "engine": facts.engine,
        "base_model": record.run and record.run.base_model,
        "train_examples": fresh.train_examples if fresh else None,
        "eval_examples": fresh.eval_examples if fresh else before.get("examples"),
        "steps": outcome and outcome.step,
        "eval_loss_before": before.get("loss"),
        "eval_loss_after": fresh.loss if fresh else None,
        "exact_match_before": before.get("exact_match"),
        "exact_match_after": fresh.exact_match if fresh else None,
        "attempts": outcome and outcome.attempts,
        "resumed_from_step": outcome and outcome.resumed_from_step,
        "adapter_uri": facts.adapter_uri if fresh else None,
        "adapter_sha256": fresh.adapter_sha256 if fresh else None,
        "instances_running_before_destroy": facts.instances_before_destroy,
        "instances_running_after": facts.instances_after,
        "stacks_after": facts.stacks_after,
        "phase_seconds": phase_seconds(facts.own_seconds, record.timelines),
        "first_step_seconds": to_first_step(record.timelines),
        "wall_seconds": round(facts.wall_seconds, 1),
    }


def phase_seconds(own: Mapping[str, float], timelines: tuple[dict[str, Any], ...]) -> dict[str, float]:
    """Seconds by phase: the demo's own, then the instances' from their timelines, attempts added up."""
    total = {re.sub(r"\W+", "_", title).strip("_").lower(): seconds for title, seconds in own.items()}
    for timeline in timelines:
        for phase in timeline.get("phases", []):
            total[phase["phase"]] = total.get(phase["phase"], 0.0) + phase["seconds"]
    return {name: round(seconds, 1) for name, seconds in total.items()}


def to_first_step(timelines: tuple[dict[str, Any], ...]) -> dict[str, float]:
    """Where the time of the first instance went, from its launch to the end of its first step: seconds by phase, and
    ``total``.
    Phases of the boot overlap. Empty if no step was made."""
    phases = timelines[0].get("phases", []) if timelines else []
    names = [phase["phase"] for phase in phases]
    if "first_step" not in names:
        return {}
    phases = phases[: names.index("first_step") + 1]
    seconds = {phase["phase"]: phase["seconds"] for phase in phases}
    return seconds | {"total": round(_lasted(phases), 1)}


def instance_seconds(timelines: tuple[dict[str, Any], ...]) -> float:
    """How long the instances were there, all together."""
    return sum(_lasted(timeline.get("phases", [])) for timeline in timelines)


def _lasted(phases: list[dict[str, Any]]) -> float:
    """From the first one's beginning to the last one's end."""
    return float(phases[-1]["started_at"] + phases[-1]["seconds"] - phases[0]["started_at"]) if phases else 0.0


def problems(facts: Facts) -> list[str]:
    """What is not as it must be, one sentence each; none means that the demo succeeded."""
    if facts.problem:
        return [facts.problem]
    outcome, fresh = facts.record.outcome, facts.recheck
    found = []
    if not facts.record.succeeded:
        found.append(f"The run ended as {outcome.reason}: {outcome.sentence}." if outcome else "The run did not end.")
    elif fresh is None:
        found.append("The adapter was not evaluated again.")
    else:
        named = outcome.adapter_sha256 if outcome else None
        if named not in (None, fresh.adapter_sha256):
            found.append(f"The adapter in S3 has sha256 {fresh.adapter_sha256}; outcome.json says {named}.")
        said = (facts.record.eval_after or {}).get("loss")
        if said is not None and not math.isclose(said, fresh.loss, rel_tol=_SAME_LOSS):
            found.append(
                f"Loaded afresh, the adapter has a held-out loss of {fresh.loss:.4f}; the run reported {said:.4f}."
            )
    if facts.ended_by != "instance":
        found.append(f"The instance did not end itself (ended by: {facts.ended_by or 'nobody'}).")
    if facts.instances_before_destroy:
        found.append(f"Instances were still there before the destroy: {facts.instances_before_destroy}.")
    if facts.instances_after:
        found.append(f"Instances are still there after the destroy: {facts.instances_after}.")
    stacks = facts.stacks_after or []
    if TRAINING_STACK in stacks:
        found.append(f"{TRAINING_STACK} is still there after its destroy.")
    if DATA_STACK not in stacks:
        found.append(f"{DATA_STACK} is gone; it must outlive {TRAINING_STACK}.")
    return found
