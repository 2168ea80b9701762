"""The Auto Scaling engine: keeps each group's boxes at its desired capacity, through lifecycle hooks and on schedule.

A replacement starts when the old box is gone (AWS may overlap them). Group records are ministack's own.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from local_cloud import events, zones
from local_cloud import scaling_rules as rules
from local_cloud.hooks import Module
from local_cloud.runner import Runner
from local_cloud.scope import Scope

TICK_SECONDS = 0.2
DRAIN_SECONDS = 300.0
"""CloudFormation's deletion waits so long for a group's boxes, then pulls the plug."""
RETRY_SECONDS = 5.0
"""After a failed launch; AWS waits longer and longer."""
TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
logger = logging.getLogger("lab.autoscaling")


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Engine:
    """All groups of all accounts and regions. Handlers call it with the lock held."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.lock = threading.RLock()
        self.activities: dict[str, list[dict[str, str]]] = {}
        self._stop = threading.Event()
        self._asg, self._ec2 = Module("ministack.services.autoscaling"), Module("ministack.services.ec2")
        self.groups, self.hooks, self.scheduled = (
            self._asg.get(name) for name in ("_asgs", "_hooks", "_scheduled_actions")
        )
        self.instances, self._tags = self._ec2.get("_instances"), self._ec2.get("_tags")
        self._launch_internal = self._ec2.get("_launch_instances_internal")
        self._template, self._slot = self._ec2.get("_resolve_launch_template_data"), self._ec2.get("_slot_from_lt_data")
        self._subnets, self._volumes = self._ec2.get("_subnets"), self._ec2.get("_volumes")
        self._select_parameter = Module("ministack.services.ssm").get("_select_parameter")
        self._retry_at: dict[str, float] = {}
        self.capacity = True
        """False: no launch succeeds, as when EC2 has no instance of the type left."""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, daemon=True, name="autoscaling")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _loop(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            self.runner.poll()
            with self.lock:
                for (account, region, _), group in list(self.groups.all_items()):
                    Scope(account, region).enter()
                    try:
                        self._run_schedule(group)
                        self.reconcile(group)
                    except Exception:
                        logger.exception("group %s", group["AutoScalingGroupName"])

    # --- the record -----------------------------------------------------------------------------------------------
    def record(self, group: str, description: str, cause: str, status: str = "Successful") -> dict[str, str]:
        """An activity, newest first, as DescribeScalingActivities shows it."""
        activity = {
            "ActivityId": str(uuid.uuid4()), "AutoScalingGroupName": group, "Description": description, "Cause": cause,
            "StartTime": now_text(), "EndTime": now_text(), "StatusCode": status,
        }  # fmt: skip
        self.activities.setdefault(group, []).insert(0, activity)
        return activity

    @staticmethod
    def sizes(group: dict[str, Any]) -> rules.Sizes:
        return rules.Sizes(group["MinSize"], group["MaxSize"], group["DesiredCapacity"])

    def resize(self, group: dict[str, Any], sizes: rules.Sizes, by: str = "user request") -> None:
        """New limits and capacity, in effect at once; ``by`` goes into the causes of what follows."""
        if sizes.desired != group["DesiredCapacity"]:
            group["_cause"] = (
                f"At {now_text()} a {by} update of AutoScalingGroup constraints to min: {sizes.minimum}, max: "
                f"{sizes.maximum}, desired: {sizes.desired} changing the desired capacity from "
                f"{group['DesiredCapacity']} to {sizes.desired}. "
            )
        group.update(MinSize=sizes.minimum, MaxSize=sizes.maximum, DesiredCapacity=sizes.desired)
        self.reconcile(group)

    def find(self, instance_id: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Group and member of an instance."""
        for group in self.groups.values():
            for member in group["Instances"]:
                if member["InstanceId"] == instance_id:
                    return group, member
        return None

    # --- capacity -------------------------------------------------------------------------------------------------
    def reconcile(self, group: dict[str, Any]) -> None:
        """One step towards the desired capacity."""
        with self.lock:
            for member in list(group["Instances"]):
                self._follow(group, member)
            serving = [m for m in group["Instances"] if not m["LifecycleState"].startswith("Terminating")]
            for member in serving[group["DesiredCapacity"] :]:
                why = f"{group.get('_cause', '')}At {now_text()} {_SHRUNK}"
                self.terminate(group, member, why)
            for _ in range(group["DesiredCapacity"] - len(group["Instances"])):
                if "Launch" not in group.get("SuspendedProcesses", []):
                    self._launch(group)

    def _follow(self, group: dict[str, Any], member: dict[str, Any]) -> None:
        """Move one member along: dead ones out, waiting ones on."""
        name, instance = group["AutoScalingGroupName"], self.instances.get(member["InstanceId"])
        state = instance["State"]["Name"] if instance else "terminated"
        if state == "terminated":
            group["Instances"].remove(member)
            events.scaling(Scope.current(), group, "Terminate Successful", member["InstanceId"])
            if not member["LifecycleState"].startswith("Terminating"):
                cause = f"At {now_text()} an instance was taken out of service in response to an EC2 health check."
                self.record(name, f"Terminating EC2 instance: {member['InstanceId']}", cause)
        elif state == "shutting-down" and member["LifecycleState"] == "InService":
            member["HealthStatus"] = "Unhealthy"
        elif member["LifecycleState"] == "Terminating:Wait" and time.monotonic() >= member["_until"]:
            self.proceed(member)

    def _launch(self, group: dict[str, Any]) -> None:
        name = group["AutoScalingGroupName"]
        if time.monotonic() < self._retry_at.get(name, 0.0):
            return
        try:
            if not self.capacity:
                raise rules.ValidationError(rules.NO_CAPACITY)
            instance = self._new_instance(group)
        except rules.ValidationError as error:
            self._retry_at[name] = time.monotonic() + RETRY_SECONDS
            self.record(name, f"Launching a new EC2 instance.  Status Reason: {error}", _LAUNCH_CAUSE, "Failed")
            events.scaling(Scope.current(), group, "Launch Unsuccessful")
            return
        self.runner.launch(instance, Scope.current())
        group["Instances"].append(
            {
                "InstanceId": instance["InstanceId"],
                "LifecycleState": "InService",
                "HealthStatus": "Healthy",
                "AvailabilityZone": instance["Placement"]["AvailabilityZone"],
                "ProtectedFromScaleIn": False,
                "LaunchTemplate": group["LaunchTemplate"],
                "LaunchConfigurationName": "",
            }
        )
        self.record(name, f"Launching a new EC2 instance: {instance['InstanceId']}", _LAUNCH_CAUSE)
        events.scaling(Scope.current(), group, "Launch Successful", instance["InstanceId"])

    def _new_instance(self, group: dict[str, Any]) -> dict[str, Any]:
        template, _, error = self._template({k: v for k, v in group["LaunchTemplate"].items() if v})
        if error:
            raise rules.ValidationError("You must use a valid fully-formed launch template. It does not exist.")
        slot, policy = self._slot({}, template), group.get("MixedInstancesPolicy")
        subnet = zones.subnet_of(group, dict(self._subnets.items())) or slot["subnet_id"]
        instance: dict[str, Any] = self._launch_internal(
            self._image(slot["image_id"]), rules.instance_types(policy, template)[0], subnet, 1, slot["key_name"],
            slot["user_data"], slot["sg_ids"], None, slot["iam_profile"],
        )[0]  # fmt: skip
        instance["State"] = {"Code": 0, "Name": "pending"}
        instance["InstanceLifecycle"] = "spot" if rules.is_spot(policy, template) else None
        zone = (self._subnets.get(subnet) or {}).get("AvailabilityZone")
        if zone:
            instance["Placement"]["AvailabilityZone"] = zone
        propagated = [{"Key": t["Key"], "Value": t["Value"]} for t in group["Tags"] if t.get("PropagateAtLaunch")]
        own = {"Key": "aws:autoscaling:groupName", "Value": group["AutoScalingGroupName"]}
        merged = {tag["Key"]: tag for tag in [*slot["instance_tags"], *propagated, own]}
        self._tags[instance["InstanceId"]] = list(merged.values())
        return instance

    def _image(self, image: str) -> str:
        if not image.startswith("resolve:ssm:"):
            return image
        parameter, error = self._select_parameter(image.removeprefix("resolve:ssm:"))
        if error:
            raise rules.ValidationError(f"Invalid SSM parameter: {image.removeprefix('resolve:ssm:')}")
        return str(parameter["Value"])

    # --- the end of a box -----------------------------------------------------------------------------------------
    def _terminating_hooks(self, group: str) -> Iterator[dict[str, Any]]:
        for hook in list(self.hooks.values()):
            if hook["AutoScalingGroupName"] == group and hook["LifecycleTransition"] == TERMINATING:
                yield hook

    def terminate(self, group: dict[str, Any], member: dict[str, Any], cause: str) -> dict[str, str]:
        """Begin the end of a member: its hook's wait first, if it has one."""
        name = group["AutoScalingGroupName"]
        activity = self.record(name, f"Terminating EC2 instance: {member['InstanceId']}", cause, "InProgress")
        hook = next(self._terminating_hooks(name), None)
        self.runner.set_fact(member["InstanceId"], "meta-data/autoscaling/target-lifecycle-state", "Terminated")
        if hook is None:
            self.proceed(member)
        else:
            member["LifecycleState"] = "Terminating:Wait"
            member["_hook"], member["_until"] = hook["LifecycleHookName"], time.monotonic() + hook["HeartbeatTimeout"]
        return activity

    def proceed(self, member: dict[str, Any]) -> None:
        member["LifecycleState"] = "Terminating:Proceed"
        self.runner.shut_down(member["InstanceId"])

    def drain(self, group: dict[str, Any]) -> None:
        """Capacity 0, and wait for the boxes: what deleting the group does. Runs without the lock while it waits."""
        with self.lock:
            self.resize(group, rules.Sizes(0, 0, 0))
        deadline = time.monotonic() + DRAIN_SECONDS
        while group["Instances"] and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
        for member in list(group["Instances"]):
            self.runner.kill(member["InstanceId"])

    # --- schedule -------------------------------------------------------------------------------------------------
    def _run_schedule(self, group: dict[str, Any]) -> None:
        if "ScheduledActions" in group.get("SuspendedProcesses", []):
            return
        name, now = group["AutoScalingGroupName"], datetime.now(UTC)
        for key, action in list(self.scheduled.items()):
            if action["AutoScalingGroupName"] != name or datetime.fromisoformat(action["StartTime"]) > now:
                continue
            self.scheduled.pop(key, None)
            given = [None if action[k] < 0 else action[k] for k in ("MinSize", "MaxSize", "DesiredCapacity")]
            cause = f"At {now_text()} the scheduled action {action['ScheduledActionName']} executed."
            try:
                sizes = rules.update(self.sizes(group), *given)
            except rules.ValidationError as error:
                self.record(name, f"Executing scheduled action. Status Reason: {error}", cause, "Failed")
                continue
            self.record(name, f"Setting min {sizes.minimum}, max {sizes.maximum}, desired {sizes.desired}", cause)
            self.resize(group, sizes, by="scheduled action")


_LAUNCH_CAUSE = "An instance was started in response to a difference between desired and actual capacity."
_SHRUNK = "an instance was taken out of service in response to a difference between desired and actual capacity."
