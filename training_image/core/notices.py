"""What the operator is told by e-mail: what happened, what it has cost so far, and the next command to type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from training_image.core.contract import Actor, Reason, RunKeys
from training_image.core.records import Outcome, Run
from training_image.core.usage import Usage, dollars_at_most

SUBJECT_LIMIT = 100
"""Characters that SNS accepts, ASCII only."""
_PRICE = "the on-demand price; spot is typically 70 % less"
_HEADLINES = {
    Reason.SUCCEEDED: "succeeded",
    Reason.FAILED: "failed",
    Reason.STOPPED: "was stopped",
    Reason.EXPIRED: "reached its deadline",
    Reason.OVER_BUDGET: "reached its cost limit",
    Reason.NO_CAPACITY: "got no instance",
}


@dataclass(frozen=True)
class Notice:
    """One e-mail. ``name`` is that of its event: the same name is announced once for a run."""

    name: str
    subject: str
    body: str


def started(run: Run, warning: str = "") -> Notice:
    types = ", ".join(run.instance_types)
    market = "spot" if run.spec["use_spot"] else "on-demand"
    return _notice(
        run,
        "started",
        "has started",
        (f"It continues run {run.resume}. " if run.resume else "")
        + f"It waits for a {market} instance ({types}) and trains by itself. Deadline: {_time(run.deadline)}. An "
        f"hour costs at most ${run.spec['usd_per_hour']:.2f} ({_PRICE})." + (f"\n\n{warning}" if warning else ""),
        f"Follow it: aws s3 cp {_uri(run, RunKeys(run.run_id).heartbeat)} -",
    )


def interrupted(run: Run, instance_id: str, used: Usage) -> Notice:
    return _notice(
        run,
        f"interrupted-{instance_id}",
        "is being interrupted",
        f"AWS takes spot instance {instance_id} back in two minutes. The run saves a checkpoint and goes on with the "
        f"next instance. {_cost(run, used)}",
        "Nothing to do. To do without interruptions: use_spot: false, for the next run.",
    )


def resumed(run: Run, attempt: int, step: int | None, used: Usage) -> Notice:
    where = f"resumed from the checkpoint of step {step}" if step else "began again: no checkpoint had been published"
    return _notice(
        run,
        f"attempt-{attempt}",
        f"goes on (attempt {attempt})",
        f"A new instance has {where}. {_cost(run, used)}",
        f"Follow it: aws s3 cp {_uri(run, RunKeys(run.run_id).heartbeat)} -",
    )


def ended(run: Run, outcome: Outcome, used: Usage) -> Notice:
    keys = RunKeys(run.run_id)
    if outcome.succeeded:
        then = f"Fetch the adapter: aws s3 sync {_uri(run, keys.adapter)} adapter/"
    else:
        deploy = run.spec.get("deploy_command", "cdk deploy TrainingStack")  # runs of an earlier version name none
        then = (
            f"Look: aws s3 ls --recursive {_uri(run, keys.prefix)}   (attempts/<n>/training.log says most)\n"
            f"Continue it from its newest checkpoint: {deploy} -c resume={run.run_id}"
        )
    by = "The auto-terminator ended it. " if outcome.by is Actor.TERMINATOR else ""
    return _notice(
        run,
        "ended",
        _HEADLINES[outcome.reason],
        f"{outcome.detail or ''} {by}{_cost(run, used)}".strip(),
        f"{then}\nThen remove what is left of the stack: {run.spec['destroy_command']}",
    )


def still_there(stack: str, instances: Iterable[str], why: str) -> Notice:
    """The auto-terminator has ended instances of a run that had ended, or that it cannot read."""
    names = list(instances)
    return Notice(
        f"terminated-{names[0]}",
        _subject(f"{stack}: instances terminated"),
        f"{why}\nTerminated: {' '.join(names)}\n"
        f"See that they are gone: aws ec2 describe-instances --instance-ids {' '.join(names)}\n",
    )


def _notice(run: Run, name: str, headline: str, what: str, then: str) -> Notice:
    body = f"Run {run.run_id} {headline}.\n\n{what}\n\n{then}\n"
    return Notice(name, _subject(f"{run.stack_name}: run {run.run_id} {headline}"), body)


def _subject(text: str) -> str:
    return text.encode("ascii", "replace").decode()[:SUBJECT_LIMIT]


def _cost(run: Run, used: Usage) -> str:
    dollars = dollars_at_most(used, float(run.spec["usd_per_hour"]))
    return f"So far: {used.launches} instance(s), {used.hours:.2f} hours, at most ${dollars:.2f} ({_PRICE})."


def _uri(run: Run, key: str) -> str:
    return f"s3://{run.outputs_bucket}/{key}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
