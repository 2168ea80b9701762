"""What there is in the account now, and what Auto Scaling says of what was: asked of AWS's own APIs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from training_image.core.contract import Actor
from training_image.core.records import Outcome

LIVE_STATES = ("pending", "running", "shutting-down", "stopping", "stopped")
_USER_REQUEST = re.compile("in response to a user request|at the request of a user", re.IGNORECASE)


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
    """Why Auto Scaling took each instance out of the group, newest first, in its own words."""
    pages = autoscaling.get_paginator("describe_scaling_activities").paginate(AutoScalingGroupName=group)
    activities = (activity for page in pages for activity in page["Activities"])
    return [item.get("Cause", "") for item in activities if item.get("Description", "").startswith("Terminating")]


def ended_by(causes: Sequence[str], outcome: Outcome | None) -> str | None:
    """Who ended the last instance: ``instance`` if it took itself out of the group, having written the outcome; None if
    nobody did. ``group`` stands for a change of the group's capacity by somebody else."""
    if not causes:
        return None
    newest = causes[0]
    if "scheduled action" in newest:
        return "scheduled_action"
    if "health check" in newest:
        return "health_check"
    by = outcome.by if outcome else None
    # TerminateInstanceInAutoScalingGroup is a user's request for this instance; a new capacity leaves a "difference
    # between desired and actual capacity" that any instance may be chosen for.
    itself = _USER_REQUEST.search(newest) and "difference between" not in newest
    if itself and by is Actor.INSTANCE:
        return "instance"
    return "controller" if by is Actor.CONTROLLER else "group"
