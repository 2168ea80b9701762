"""The Auto Scaling engine: keeps each group's instances at its desired capacity, through lifecycle hooks and on
schedule.

A replacement starts when the old instance is gone (AWS may overlap them). Group records are ministack's own.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from ministack.services import autoscaling, ec2, ssm
from ministack.services.cloudformation import provisioners

from local_cloud import events
from local_cloud import scaling_rules as rules
from local_cloud.runner import Runner

TICK_SECONDS = 0.2
DRAIN_SECONDS = 300.0
"""CloudFormation's deletion waits so long for a group's instances, then pulls the plug."""
RETRY_SECONDS = 5.0
"""After a failed launch; AWS waits longer and longer."""
DIFFERENCE = "in response to a difference between desired and actual capacity."
logger = logging.getLogger("lab.autoscaling")


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Engine:
    """All groups. Handlers call it with the lock held."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.lock = threading.RLock()
        self.activities: dict[str, list[dict[str, str]]] = {}
        self.groups, self.hooks, self.scheduled = autoscaling._asgs, autoscaling._hooks, autoscaling._scheduled_actions
        self.capacity = True
        """False: no launch succeeds, as when EC2 has no instance of the type left."""
        self._retry_at: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True, name="autoscaling")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _loop(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            self.runner.poll()
            with self.lock:
                for group in list(self.groups.values()):
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
        members = ((group, member) for group in self.groups.values() for member in group["Instances"])
        return next((found for found in members if found[1]["InstanceId"] == instance_id), None)

    # --- capacity -------------------------------------------------------------------------------------------------
    def reconcile(self, group: dict[str, Any]) -> None:
        """One step towards the desired capacity."""
        with self.lock:
            for member in list(group["Instances"]):
                self._follow(group, member)
            serving = [m for m in group["Instances"] if not m["LifecycleState"].startswith("Terminating")]
            for member in serving[group["DesiredCapacity"] :]:
                why = f"{group.get('_cause', '')}At {now_text()} an instance was taken out of service {DIFFERENCE}"
                self.terminate(group, member, why)
            for _ in range(group["DesiredCapacity"] - len(group["Instances"])):
                if "Launch" not in group.get("SuspendedProcesses", []):
                    self._launch(group)

    def _follow(self, group: dict[str, Any], member: dict[str, Any]) -> None:
        """Move one member along: dead ones out, waiting ones on."""
        name, instance = group["AutoScalingGroupName"], ec2._instances.get(member["InstanceId"])
        state = instance["State"]["Name"] if instance else "terminated"
        if state == "terminated":
            group["Instances"].remove(member)
            events.of_group(group, "Terminate Successful", member["InstanceId"])
            if not member["LifecycleState"].startswith("Terminating"):
                cause = f"At {now_text()} an instance was taken out of service in response to an EC2 health check."
                self.record(name, f"Terminating EC2 instance: {member['InstanceId']}", cause)
        elif state == "shutting-down" and member["LifecycleState"] == "InService":
            member["HealthStatus"] = "Unhealthy"
        elif member["LifecycleState"] == "Terminating:Wait" and time.monotonic() >= member["_until"]:
            self.proceed(member)

    def _launch(self, group: dict[str, Any]) -> None:
        name, cause = group["AutoScalingGroupName"], f"An instance was started {DIFFERENCE}"
        if time.monotonic() < self._retry_at.get(name, 0.0):
            return
        try:
            instance = self._new_instance(group)
        except rules.ValidationError as error:
            self._retry_at[name] = time.monotonic() + RETRY_SECONDS
            self.record(name, f"Launching a new EC2 instance.  Status Reason: {error}", cause, "Failed")
            events.of_group(group, "Launch Unsuccessful")
            return
        self.runner.launch(instance)
        group["Instances"].append(
            {
                "InstanceId": instance["InstanceId"],
                "LifecycleState": "InService",
                "HealthStatus": "Healthy",
                "AvailabilityZone": instance["Placement"]["AvailabilityZone"],
                "ProtectedFromScaleIn": False,
                "LaunchTemplate": self._template_of(group),
            }
        )
        self.record(name, f"Launching a new EC2 instance: {instance['InstanceId']}", cause)
        events.of_group(group, "Launch Successful", instance["InstanceId"])

    @staticmethod
    def _template_of(group: dict[str, Any]) -> dict[str, str]:
        policy = group.get("MixedInstancesPolicy")
        given = policy["LaunchTemplate"]["LaunchTemplateSpecification"] if policy else group["LaunchTemplate"]
        return {key: value for key, value in provisioners._asg_launch_template(given).items() if value}

    def _new_instance(self, group: dict[str, Any]) -> dict[str, Any]:
        if not self.capacity:
            raise rules.ValidationError(rules.NO_CAPACITY)
        template, _, error = ec2._resolve_launch_template_data(self._template_of(group))
        if error:
            raise rules.ValidationError("You must use a valid fully-formed launch template. It does not exist.")
        slot, policy = ec2._slot_from_lt_data({}, template), group.get("MixedInstancesPolicy")
        subnet = rules.subnet_of(group, dict(ec2._subnets.items())) or slot["subnet_id"]
        instance: dict[str, Any] = ec2._launch_instances_internal(
            self._image(slot["image_id"]), rules.instance_type(policy, template), subnet, 1, slot["key_name"],
            slot["user_data"], slot["sg_ids"], None, slot["iam_profile"],
        )[0]  # fmt: skip
        instance["State"] = {"Code": 0, "Name": "pending"}
        instance["InstanceLifecycle"] = "spot" if rules.is_spot(policy, template) else None
        if zone := (ec2._subnets.get(subnet) or {}).get("AvailabilityZone"):
            instance["Placement"]["AvailabilityZone"] = zone
        propagated = [{"Key": t["Key"], "Value": t["Value"]} for t in group["Tags"] if t.get("PropagateAtLaunch")]
        own = {"Key": "aws:autoscaling:groupName", "Value": group["AutoScalingGroupName"]}
        merged = {tag["Key"]: tag for tag in [*slot["instance_tags"], *propagated, own]}
        ec2._tags[instance["InstanceId"]] = list(merged.values())
        return instance

    @staticmethod
    def _image(image: str) -> str:
        name = image.removeprefix("resolve:ssm:")
        if name == image:
            return image
        parameter, error = ssm._select_parameter(name)
        if error:
            raise rules.ValidationError(f"Invalid SSM parameter: {name}")
        return str(parameter["Value"])

    # --- the end of an instance ---------------------------------------------------------------------------------------
    def terminate(self, group: dict[str, Any], member: dict[str, Any], cause: str) -> dict[str, str]:
        """Begin the end of a member: its hook's wait first, if it has one."""
        name = group["AutoScalingGroupName"]
        activity = self.record(name, f"Terminating EC2 instance: {member['InstanceId']}", cause, "InProgress")
        ours = (hook for hook in self.hooks.values() if hook["AutoScalingGroupName"] == name)
        hook = next((h for h in ours if h["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"), None)
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
        """Capacity 0, and wait for the instances: what deleting the group does. Runs without the lock while it
        waits."""
        with self.lock:
            self.resize(group, rules.Sizes(0, 0, 0))
        deadline = time.monotonic() + DRAIN_SECONDS
        while group["Instances"] and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
        for member in list(group["Instances"]):
            self.runner.kill(member["InstanceId"])

    # --- schedule -------------------------------------------------------------------------------------------------
    def actions_of(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        """Key and record of each scheduled action of a group."""
        return [(key, each) for key, each in self.scheduled.items() if each["AutoScalingGroupName"] == name]

    def forget_schedule(self, name: str) -> None:
        for key, _ in self.actions_of(name):
            self.scheduled.pop(key, None)

    def _run_schedule(self, group: dict[str, Any]) -> None:
        name = group["AutoScalingGroupName"]
        for key, action in self.actions_of(name):
            if datetime.fromisoformat(action["StartTime"]) > datetime.now(UTC):
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
