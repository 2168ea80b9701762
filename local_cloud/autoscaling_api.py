"""Auto Scaling's API on top of the engine: what ministack answers wrongly or not at all, replaced by checked hooks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from local_cloud import scaling_rules as rules
from local_cloud.autoscaling import Engine, now_text
from local_cloud.hooks import Module

Params = dict[str, Any]
Handler = Callable[[Params], Any]
PROCESSES = {
    "Launch", "Terminate", "HealthCheck", "ReplaceUnhealthy", "AZRebalance", "AlarmNotification", "ScheduledActions",
    "AddToLoadBalancer", "InstanceRefresh",
}  # fmt: skip


def install(engine: Engine) -> None:
    """Put the engine behind the emulator's API and behind its CloudFormation resource.

    Raises:
        IncompatibleEmulatorError: a hook is missing.
    """
    _Api(engine).install()
    _install_cloudformation(engine)


class _Api:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asg = Module("ministack.services.autoscaling")
        self.p, self.xml, self.error = (self.asg.get(name) for name in ("_p", "_xml", "_error"))
        self.members, self.nested = self.asg.get("_parse_member_list"), self.asg.get("_parse_nested")
        self.member_xml = self.asg.get("_member_xml")

    def install(self) -> None:
        actions = self.asg.get("_ACTION_MAP")
        self.asg.replace("_reconcile_instances", self.engine.reconcile)
        self._create, self._update = actions["CreateAutoScalingGroup"], actions["UpdateAutoScalingGroup"]
        self._delete, self._describe = actions["DeleteAutoScalingGroup"], actions["DescribeAutoScalingGroups"]
        self._put_action = actions["PutScheduledUpdateGroupAction"]
        handlers: dict[str, Handler] = {
            "CreateAutoScalingGroup": self.create,
            "UpdateAutoScalingGroup": self.update,
            "DeleteAutoScalingGroup": self.delete,
            "DescribeAutoScalingGroups": self.describe,
            "SetDesiredCapacity": self.set_desired,
            "TerminateInstanceInAutoScalingGroup": self.terminate,
            "DescribeScalingActivities": self.activities,
            "PutScheduledUpdateGroupAction": self.put_action,
            "CompleteLifecycleAction": self.complete,
            "RecordLifecycleActionHeartbeat": self.heartbeat,
            "SuspendProcesses": self.suspend,
            "ResumeProcesses": self.resume,
        }
        actions.update({name: self._guarded(handler) for name, handler in handlers.items()})

    def _guarded(self, handler: Handler) -> Handler:
        def guarded(p: Params) -> Any:
            with self.engine.lock:
                try:
                    return handler(p)
                except rules.ValidationError as error:
                    return self.error("ValidationError", escape(str(error)))

        return guarded

    def _group(self, p: Params) -> dict[str, Any]:
        name = self.p(p, "AutoScalingGroupName")
        group: dict[str, Any] | None = self.engine.groups.get(name)
        if group is None:
            raise rules.ValidationError(f"AutoScalingGroup name not found - AutoScalingGroup {name} not found")
        return group

    def _number(self, p: Params, key: str) -> int | None:
        text = self.p(p, key)
        return int(text) if text != "" else None

    # --- groups ---------------------------------------------------------------------------------------------------
    def create(self, p: Params) -> Any:
        low, high = self._number(p, "MinSize"), self._number(p, "MaxSize")
        sizes = rules.update(rules.Sizes(0, 0, 0), low, high, self._number(p, "DesiredCapacity"))
        started = dict(p)  # created empty: the engine launches once everything about the group is known
        started.update(MinSize="0", MaxSize="0", DesiredCapacity="0")
        response = self._create(started)
        if response[0] == 200:
            group = self._group(p)
            self._read_template(group, p)
            self.engine.resize(group, sizes)
        return response

    def _read_template(self, group: dict[str, Any], p: Params) -> None:
        policy = self.nested(p, "MixedInstancesPolicy")
        launch = Module("ministack.services.cloudformation.provisioners").get("_asg_launch_template")
        if policy:
            group["MixedInstancesPolicy"] = policy
            group["LaunchTemplate"] = launch(policy["LaunchTemplate"]["LaunchTemplateSpecification"])
        elif single := self.nested(p, "LaunchTemplate"):
            group["LaunchTemplate"] = launch(single)

    def update(self, p: Params) -> Any:
        group = self._group(p)
        numbers = [self._number(p, key) for key in ("MinSize", "MaxSize", "DesiredCapacity")]
        sizes = rules.update(self.engine.sizes(group), *numbers)
        self._read_template(group, p)
        rest = {k: v for k, v in p.items() if k not in {"MinSize", "MaxSize", "DesiredCapacity"}}
        response = self._update(rest)
        self.engine.resize(group, sizes)
        return response

    def set_desired(self, p: Params) -> Any:
        group, desired = self._group(p), self._number(p, "DesiredCapacity")
        if desired is None:
            raise rules.ValidationError("DesiredCapacity is required")
        self.engine.resize(group, rules.set_desired(self.engine.sizes(group), desired))
        return self.xml(200, "SetDesiredCapacityResponse", "")

    def delete(self, p: Params) -> Any:
        group = self._group(p)
        if group["Instances"]:
            if self.p(p, "ForceDelete") != "true":
                return self.error(
                    "ResourceInUse",
                    "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance "
                    "request(s) still in the group.",
                )
            for member in group["Instances"]:
                self.engine.proceed(member)
        self._forget_schedule(group["AutoScalingGroupName"])
        return self._delete(p)

    def _forget_schedule(self, name: str) -> None:
        for key, action in list(self.engine.scheduled.items()):
            if action["AutoScalingGroupName"] == name:
                self.engine.scheduled.pop(key, None)

    def describe(self, p: Params) -> Any:
        status, headers, body = self._describe(p)
        text = body.decode()
        for name, group in list(self.engine.groups.items()):
            extra = ""
            if policy := group.get("MixedInstancesPolicy"):
                extra += f"<MixedInstancesPolicy>{self.member_xml(policy)}</MixedInstancesPolicy>"
            suspended = [
                {"ProcessName": n, "SuspensionReason": "User suspended"} for n in group.get("SuspendedProcesses", [])
            ]
            extra += f"<SuspendedProcesses>{self.member_xml(suspended)}</SuspendedProcesses>"
            marker = f"<AutoScalingGroupName>{name}</AutoScalingGroupName>"
            start = text.find(marker)
            if start < 0:
                continue
            end = text.index("<LaunchConfigurationName>", start)
            middle = text[start:end]
            if policy:  # AWS shows one or the other
                shown = middle.rfind("</Instances>") if "</Instances>" in middle else middle.rfind("<Instances/>")
                middle = middle[:shown] + re.sub(r"<LaunchTemplate>.*?</LaunchTemplate>", "", middle[shown:])
            text = text[:start] + middle + extra + text[end:]
        return status, headers, text.encode()

    # --- instances ------------------------------------------------------------------------------------------------
    def _found(self, p: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        instance_id = self.p(p, "InstanceId")
        found = self.engine.find(instance_id)
        if found is None:
            raise rules.ValidationError(
                f"Instance Id not found - No managed instance found for instance ID: {instance_id}"
            )
        return found

    def terminate(self, p: Params) -> Any:
        group, member = self._found(p)
        instance_id = member["InstanceId"]
        cause = f"At {now_text()} instance {instance_id} was taken out of service in response to a user request"
        terminating = member["LifecycleState"].startswith("Terminating")
        if self.p(p, "ShouldDecrementDesiredCapacity") == "true":
            sizes = rules.decrement(self.engine.sizes(group))
            group["DesiredCapacity"] = sizes.desired
            cause += f", shrinking the capacity from {sizes.desired + 1} to {sizes.desired}"
        if terminating:
            activity = self.engine.record(group["AutoScalingGroupName"], "Already terminating", f"{cause}.")
        else:
            activity = self.engine.terminate(group, member, f"{cause}.")
        inner = f"<Activity>{self.member_xml(activity)}</Activity>"
        return self._result("TerminateInstanceInAutoScalingGroup", inner)

    def _waiting(self, p: Params) -> dict[str, Any]:
        _, member = self._found(p)
        if member["LifecycleState"] != "Terminating:Wait" or member["_hook"] != self.p(p, "LifecycleHookName"):
            raise rules.ValidationError(f"No active Lifecycle Action found with instance ID {member['InstanceId']}")
        return member

    def complete(self, p: Params) -> Any:
        if self.p(p, "LifecycleActionResult") not in {"CONTINUE", "ABANDON"}:
            raise rules.ValidationError("LifecycleActionResult must be CONTINUE or ABANDON")
        self.engine.proceed(self._waiting(p))
        return self._result("CompleteLifecycleAction", "")

    def heartbeat(self, p: Params) -> Any:
        member = self._waiting(p)
        hook = self.engine.hooks.get(f"{self._found(p)[0]['AutoScalingGroupName']}/{member['_hook']}")
        member["_until"] += hook["HeartbeatTimeout"] if hook else 0
        return self._result("RecordLifecycleActionHeartbeat", "")

    # --- schedule, processes, activities --------------------------------------------------------------------------
    def put_action(self, p: Params) -> Any:
        group = self._group(p)
        if self.p(p, "Recurrence") or not self.p(p, "StartTime"):
            raise rules.ValidationError("Only one-time scheduled actions (StartTime, no Recurrence) are modelled here.")
        moment = rules.start_time(self.p(p, "StartTime"), datetime.now(UTC))
        numbers = [self._number(p, key) for key in ("MinSize", "MaxSize", "DesiredCapacity")]
        if all(number is None for number in numbers):
            raise rules.ValidationError("At least one of MinSize, MaxSize and DesiredCapacity must be given.")
        rules.update(self.engine.sizes(group), *numbers)
        return self._put_action({**p, "StartTime": moment.strftime("%Y-%m-%dT%H:%M:%S+00:00")})

    def _named_processes(self, p: Params) -> set[str]:
        names = set(self.members(p, "ScalingProcesses")) or PROCESSES
        if unknown := names - PROCESSES:
            raise rules.ValidationError(f"{sorted(unknown)[0]} is not a valid process type.")
        return names

    def suspend(self, p: Params) -> Any:
        group = self._group(p)
        group["SuspendedProcesses"] = sorted({*group.get("SuspendedProcesses", []), *self._named_processes(p)})
        return self.xml(200, "SuspendProcessesResponse", "")

    def resume(self, p: Params) -> Any:
        group = self._group(p)
        group["SuspendedProcesses"] = sorted(set(group.get("SuspendedProcesses", [])) - self._named_processes(p))
        return self.xml(200, "ResumeProcessesResponse", "")

    def activities(self, p: Params) -> Any:
        name = self.p(p, "AutoScalingGroupName")
        shown = [a for group, entries in self.engine.activities.items() for a in entries if name in ("", group)]
        return self._result("DescribeScalingActivities", f"<Activities>{self.member_xml(shown)}</Activities>")

    def _result(self, action: str, inner: str) -> Any:
        return self.xml(200, f"{action}Response", f"<{action}Result>{inner}</{action}Result>")


def _install_cloudformation(engine: Engine) -> None:
    """The resource keeps its mixed-instances policy, and its deletion drains the group first."""
    provisioners = Module("ministack.services.cloudformation.provisioners")
    fields, delete = provisioners.get("_asg_fields"), provisioners.get("_asg_delete")
    launch_template = provisioners.get("_asg_launch_template")

    def with_policy(props: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = fields(props)
        if policy := props.get("MixedInstancesPolicy"):
            result["MixedInstancesPolicy"] = policy
            result["LaunchTemplate"] = launch_template(policy["LaunchTemplate"]["LaunchTemplateSpecification"])
        if "DesiredCapacity" not in props:  # not declared: an update leaves what the API set, within the limits
            del result["DesiredCapacity"]
        return result

    create, update = provisioners.get("_asg_create"), provisioners.get("_asg_update")

    def create_group(logical_id: str, props: dict[str, Any], stack: str) -> Any:
        return create(
            logical_id, {**props, "DesiredCapacity": props.get("DesiredCapacity", props.get("MinSize", 0))}, stack
        )

    def drain_and_delete(name: str, props: dict[str, Any]) -> None:
        if (group := engine.groups.get(name)) is not None:
            engine.drain(group)
            for key, action in list(engine.scheduled.items()):
                if action["AutoScalingGroupName"] == name:
                    engine.scheduled.pop(key, None)
        delete(name, props)

    provisioners.replace("_asg_fields", with_policy)
    provisioners.replace("_asg_delete", drain_and_delete)
    handlers = provisioners.get("_RESOURCE_HANDLERS")["AWS::AutoScaling::AutoScalingGroup"]
    handlers.update(create=create_group, update=update, delete=drain_and_delete)
    stacks = Module("ministack.services.cloudformation.stacks")
    on_worker = stacks.get("_runs_on_worker_thread")
    # Waiting for boxes on the event loop would stop the very uploads that it waits for.
    stacks.replace("_runs_on_worker_thread", lambda t: t == "AWS::AutoScaling::AutoScalingGroup" or on_worker(t))
