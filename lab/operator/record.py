"""What the demo knows of a run, read from S3 and the AWS APIs as any user could."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from training_image.core.contract import RunKeys

LIVE_STATES = ("pending", "running", "shutting-down", "stopping", "stopped")
_USER_REQUEST = re.compile("in response to a user request|at the request of a user", re.IGNORECASE)


@dataclass(frozen=True)
class RunRecord:
    """A run's objects; those that do not exist are empty."""

    run: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    eval_before: dict[str, Any] = field(default_factory=dict)
    eval_after: dict[str, Any] = field(default_factory=dict)
    timelines: tuple[dict[str, Any], ...] = ()
    """One for each attempt that left one."""

    @property
    def succeeded(self) -> bool:
        return self.outcome.get("reason") == "succeeded"


def read_json(s3: Any, bucket: str, key: str) -> dict[str, Any]:
    """The object's content; empty if it does not exist."""
    try:
        content = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return {}
        raise
    return content if isinstance(content, dict) else {}


def read_run(s3: Any, bucket: str, keys: RunKeys) -> RunRecord:
    timelines = []
    for number in range(1, 1 + attempts(s3, bucket, keys)):
        if timeline := read_json(s3, bucket, f"{keys.attempt(number)}timeline.json"):
            timelines.append(timeline)
    return RunRecord(
        run=read_json(s3, bucket, keys.run),
        outcome=read_json(s3, bucket, keys.outcome),
        eval_before=read_json(s3, bucket, f"{keys.metrics}eval_before.json"),
        eval_after=read_json(s3, bucket, f"{keys.metrics}eval_after.json"),
        timelines=tuple(timelines),
    )


def attempts(s3: Any, bucket: str, keys: RunKeys) -> int:
    """How many boxes have claimed an attempt of this run."""
    return sum(name.endswith("claim.json") for name in list_keys(s3, bucket, f"{keys.prefix}attempts/"))


def list_keys(s3: Any, bucket: str, prefix: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def download(s3: Any, bucket: str, prefix: str, folder: Path) -> list[Path]:
    """Every object below ``prefix``, as files below ``folder``."""
    files = []
    for key in list_keys(s3, bucket, prefix):
        target = folder / key.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(target))
        files.append(target)
    return files


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/prefix/`` as (bucket, prefix with a slash at its end, unless empty)."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def live_instances(ec2: Any, group: str | None = None) -> list[str]:
    """Ids of the instances that are not terminated: of one Auto Scaling group, or of the account."""
    filters = [{"Name": "instance-state-name", "Values": list(LIVE_STATES)}]
    if group is not None:
        filters.append({"Name": "tag:aws:autoscaling:groupName", "Values": [group]})
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    return [item["InstanceId"] for page in pages for group in page["Reservations"] for item in group["Instances"]]


def stacks(cloudformation: Any) -> list[str]:
    """Names of all stacks that exist."""
    pages = cloudformation.get_paginator("describe_stacks").paginate()
    names = (stack for page in pages for stack in page["Stacks"])
    return sorted(stack["StackName"] for stack in names if stack["StackStatus"] != "DELETE_COMPLETE")


def outputs(cloudformation: Any, stack: str) -> dict[str, str]:
    (found,) = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    return {item["OutputKey"]: item["OutputValue"] for item in found.get("Outputs", [])}


def termination_causes(autoscaling: Any, group: str) -> list[str]:
    """Why Auto Scaling took each box out of the group, newest first, in its own words."""
    pages = autoscaling.get_paginator("describe_scaling_activities").paginate(AutoScalingGroupName=group)
    activities = (activity for page in pages for activity in page["Activities"])
    return [item.get("Cause", "") for item in activities if item.get("Description", "").startswith("Terminating")]


def ended_by(causes: Sequence[str], outcome: dict[str, Any]) -> str | None:
    """Who ended the last box: ``box`` if it took itself out of the group, having written the outcome; None if nobody
    did. ``group`` stands for a change of the group's capacity by somebody else."""
    if not causes:
        return None
    newest = causes[0]
    if "scheduled action" in newest:
        return "scheduled_action"
    if "health check" in newest:
        return "health_check"
    by = outcome.get("by")
    # TerminateInstanceInAutoScalingGroup is a user's request for this instance; a new capacity leaves a "difference
    # between desired and actual capacity" that any instance may be chosen for.
    itself = _USER_REQUEST.search(newest) and "difference between" not in newest
    return "box" if itself and by == "box" else "controller" if by == "controller" else "group"
