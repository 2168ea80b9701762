"""The stack's Auto Scaling group, as the run controller uses it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import boto3
from botocore.exceptions import ClientError

from training_image.core import contract, usage
from training_image.core.records import now
from training_image.core.usage import Usage


class Group:
    """A group of at most one instance."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._autoscaling = boto3.client("autoscaling")

    def is_empty(self) -> bool:
        """Whether it has no instance and will get none. A group that is gone counts as not known."""
        group = self._describe()
        return group is not None and group["DesiredCapacity"] == 0 and not group["Instances"]

    def instances(self) -> list[str]:
        """Ids of its instances, those that are ending included."""
        group = self._describe()
        return [instance["InstanceId"] for instance in group["Instances"]] if group else []

    def open(self) -> None:
        """Let it have its instance."""
        # Zone rebalancing would replace a training instance for symmetry's sake.
        self._autoscaling.suspend_processes(AutoScalingGroupName=self.name, ScalingProcesses=["AZRebalance"])
        # Together: a scheduled action of an earlier run may have left the maximum at 0.
        self._scale(minimum=0, maximum=1, desired=1)

    def close(self) -> None:
        """Take its capacity away, and so its instance."""
        self._scale(minimum=0, maximum=0, desired=0)

    def used_since(self, began: datetime) -> Usage:
        return usage.of_group(self._autoscaling, self.name, began, now())

    def arm(self, deadline: datetime) -> None:
        """Killer 3: AWS itself takes the capacity away after the deadline, with no code of ours."""
        self._autoscaling.put_scheduled_update_group_action(
            AutoScalingGroupName=self.name,
            ScheduledActionName=contract.SCHEDULED_ACTION_NAME,
            # A deadline moved into the past leaves the instance the same time to stop with a checkpoint.
            StartTime=max(deadline, now()) + timedelta(seconds=contract.SCHEDULED_ACTION_MARGIN_SECONDS),
            MinSize=0,
            MaxSize=0,
            DesiredCapacity=0,
        )

    def _describe(self) -> dict[str, Any] | None:
        found = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        return found["AutoScalingGroups"][0] if found["AutoScalingGroups"] else None

    def _scale(self, *, minimum: int, maximum: int, desired: int) -> None:
        self._autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=self.name, MinSize=minimum, MaxSize=maximum, DesiredCapacity=desired
        )


def ensure_spot_role() -> None:
    """The first spot request of an account needs this service-linked role; AWS answers InvalidInput if it exists."""
    try:
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidInput":
            raise
