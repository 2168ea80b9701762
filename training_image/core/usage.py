"""What a run has used, from what AWS itself records: hours of instances, and dollars at most."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_LAUNCH = re.compile(r"Launching a new EC2 instance: (i-[0-9a-f]+)")
_END = re.compile(r"Terminating EC2 instance: (i-[0-9a-f]+)")


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


def of_group(autoscaling: Any, group: str, since: datetime, now: datetime) -> Usage:
    """As ``usage``, of a group as Auto Scaling remembers it. ``autoscaling``: boto3 client."""
    pages = autoscaling.get_paginator("describe_scaling_activities").paginate(AutoScalingGroupName=group)
    return usage((item for page in pages for item in page["Activities"]), since, now)


def dollars_at_most(used: Usage, usd_per_hour: float) -> float:
    """At the on-demand price: spot is never dearer."""
    return used.hours * usd_per_hour
