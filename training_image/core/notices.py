"""What the operator is told by e-mail: what happened, what it has cost so far, and the next command to type.

Both Lambdas announce, each what it sees. An event's object in S3 is created once, so nothing is said twice.
Standard library only: it is staged into their assets.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from training_image.core.contract import Reason, RunKeys, utc_now

SUBJECT_LIMIT = 100
"""Characters that SNS accepts, ASCII only."""
_LAUNCH = re.compile(r"Launching a new EC2 instance: (i-[0-9a-f]+)")
_END = re.compile(r"Terminating EC2 instance: (i-[0-9a-f]+)")
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
    """One e-mail. ``name`` is that of its event: the same name is never announced twice for a run."""

    name: str
    subject: str
    body: str


@dataclass(frozen=True)
class Usage:
    """What a run has used: instances started, and hours of all of them together."""

    launches: int
    hours: float


def usage(activities: Iterable[Mapping[str, Any]], since: datetime, now: datetime) -> Usage:
    """From a group's scaling activities; an instance without an end runs until ``now``."""
    starts: dict[str, datetime] = {}
    ends: dict[str, datetime] = {}
    for activity in activities:
        description, at = activity.get("Description", ""), activity.get("StartTime")
        if not isinstance(at, datetime) or at < since or activity.get("StatusCode") in ("Failed", "Cancelled"):
            continue
        if found := _LAUNCH.search(description):
            starts[found[1]] = at
        elif found := _END.search(description):
            ends[found[1]] = at
    seconds = sum(max(0.0, (ends.get(name, now) - began).total_seconds()) for name, began in starts.items())
    return Usage(len(starts), seconds / 3600)


def started(run: Mapping[str, Any], warning: str = "") -> Notice:
    types = ", ".join(run["instance_types"])
    market = "spot" if run["spec"]["use_spot"] else "on-demand"
    return _notice(
        run,
        "started",
        "has started",
        (f"It continues run {run['resume']}. " if run.get("resume") else "")
        + f"It waits for a {market} instance ({types}) and trains by itself. Deadline: {_time(run['deadline'])}. An "
        f"hour costs at most ${run['spec']['usd_per_hour']:.2f} ({_PRICE})." + (f"\n\n{warning}" if warning else ""),
        f"Follow it: aws s3 cp {_uri(run, RunKeys(run['run_id']).heartbeat)} -",
    )


def interrupted(run: Mapping[str, Any], instance_id: str, used: Usage) -> Notice:
    return _notice(
        run,
        f"interrupted-{instance_id}",
        "is being interrupted",
        f"AWS takes spot instance {instance_id} back in two minutes. The run saves a checkpoint and goes on with the "
        f"next instance. {_cost(run, used)}",
        "Nothing to do. To do without interruptions: use_spot: false, for the next run.",
    )


def resumed(run: Mapping[str, Any], attempt: int, step: int | None, used: Usage) -> Notice:
    where = f"resumed from the checkpoint of step {step}" if step else "began again: no checkpoint had been published"
    return _notice(
        run,
        f"attempt-{attempt}",
        f"goes on (attempt {attempt})",
        f"A new instance has {where}. {_cost(run, used)}",
        f"Follow it: aws s3 cp {_uri(run, RunKeys(run['run_id']).heartbeat)} -",
    )


def ended(run: Mapping[str, Any], outcome: Mapping[str, Any], used: Usage) -> Notice:
    keys = RunKeys(run["run_id"])
    reason = Reason(outcome["reason"])
    if reason is Reason.SUCCEEDED:
        then = f"Fetch the adapter: aws s3 sync {_uri(run, keys.adapter)} adapter/"
    else:
        deploy = run["spec"].get("deploy_command", "cdk deploy TrainingStack")  # runs of an earlier version name none
        then = (
            f"Look: aws s3 ls --recursive {_uri(run, keys.prefix)}   (attempts/<n>/training.log says most)\n"
            f"Continue it from its newest checkpoint: {deploy} -c resume={run['run_id']}"
        )
    return _notice(
        run,
        "ended",
        _HEADLINES[reason],
        f"{outcome.get('detail') or ''} {_by(outcome)}{_cost(run, used)}".strip(),
        f"{then}\nThen remove what is left of the stack: {run['spec']['destroy_command']}",
    )


def _by(outcome: Mapping[str, Any]) -> str:
    return "The auto-terminator ended it. " if outcome.get("by") == "terminator" else ""


def still_there(stack: str, instances: Iterable[str], why: str) -> Notice:
    """The auto-terminator has ended instances of a run that had ended, or that it cannot read."""
    names = " ".join(instances)
    return Notice(
        "terminated",
        _subject(f"{stack}: instances terminated"),
        f"{why}\nTerminated: {names}\nSee that they are gone: aws ec2 describe-instances --instance-ids {names}\n",
    )


def announce(store: Any, sns: Any, topic_arn: str, run_id: str, notice: Notice) -> bool:
    """Send ``notice`` unless its event exists already; whether it was sent.

    Args:
        store: ``training_image.core.store.Store`` of the outputs bucket.
        sns: boto3 client.
    """
    # The token tells it from the same event, written by somebody else in the same second.
    event = {"subject": notice.subject, "body": notice.body, "at": utc_now(), "token": uuid.uuid4().hex}
    if not store.create_json(RunKeys(run_id).event(notice.name), event):
        return False
    sns.publish(TopicArn=topic_arn, Subject=notice.subject, Message=notice.body)
    return True


def _notice(run: Mapping[str, Any], name: str, headline: str, what: str, then: str) -> Notice:
    run_id = run["run_id"]
    body = f"Run {run_id} {headline}.\n\n{what}\n\n{then}\n"
    return Notice(name, _subject(f"{run['stack_name']}: run {run_id} {headline}"), body)


def _subject(text: str) -> str:
    return text.encode("ascii", "replace").decode()[:SUBJECT_LIMIT]


def _cost(run: Mapping[str, Any], used: Usage) -> str:
    dollars = used.hours * float(run["spec"]["usd_per_hour"])
    return f"So far: {used.launches} instance(s), {used.hours:.2f} hours, at most ${dollars:.2f} ({_PRICE})."


def _uri(run: Mapping[str, Any], key: str) -> str:
    return f"s3://{run['outputs_bucket']}/{key}"


def _time(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
