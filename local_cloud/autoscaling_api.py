"""Auto Scaling's API and CloudFormation resource on top of the engine, in place of what ministack answers wrongly."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from ministack.core.responses import get_region
from ministack.services import autoscaling
from ministack.services.autoscaling import _ACTION_MAP, _member_xml, _p, _xml
from ministack.services.cloudformation import provisioners, stacks

from local_cloud import scaling_rules as rules
from local_cloud.autoscaling import Engine, now_text

Params = dict[str, Any]
Handler = Callable[[Params], Any]
REGION = get_region()
"""That of a thread which serves no request."""
GROUP_TYPE = "AWS::AutoScaling::AutoScalingGroup"
SUSPENDED = {"Launch", "AZRebalance"}
"""The processes that can be suspended here: one that the engine has, and one that it never begins."""


def install(engine: Engine) -> None:
    """Put the engine behind the emulator's API and behind its CloudFormation resource."""
    autoscaling._reconcile_instances = engine.reconcile
    _Api(engine).install()
    _show_policy_and_processes()
    _install_cloudformation(engine)


def _number(p: Params, key: str) -> int | None:
    text = _p(p, key)
    return int(text) if text != "" else None


def _sizes(p: Params) -> list[int | None]:
    return [_number(p, key) for key in ("MinSize", "MaxSize", "DesiredCapacity")]


def _result(action: str, inner: str = "") -> Any:
    return _xml(200, f"{action}Response", f"<{action}Result>{inner}</{action}Result>")


def _check_region() -> None:
    """The engine's own thread sees one region only: a group of another one would wait for ever."""
    if get_region() != REGION:
        raise rules.ValidationError(f"The local cloud has Auto Scaling groups in {REGION} only, not in {get_region()}.")


class _Api:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._create, self._update = _ACTION_MAP["CreateAutoScalingGroup"], _ACTION_MAP["UpdateAutoScalingGroup"]
        self._delete, self._put_action = _ACTION_MAP["DeleteAutoScalingGroup"], autoscaling._put_scheduled_action

    def install(self) -> None:
        handlers: dict[str, Handler] = {
            "CreateAutoScalingGroup": self.create,
            "UpdateAutoScalingGroup": self.update,
            "DeleteAutoScalingGroup": self.delete,
            "SetDesiredCapacity": self.set_desired,
            "TerminateInstanceInAutoScalingGroup": self.terminate,
            "DescribeScalingActivities": self.activities,
            "PutScheduledUpdateGroupAction": self.put_action,
            "CompleteLifecycleAction": self.complete,
            "SuspendProcesses": self.suspend,
            "ResumeProcesses": self.resume,
        }
        _ACTION_MAP.update({name: self._guarded(handler) for name, handler in handlers.items()})
        del _ACTION_MAP["RecordLifecycleActionHeartbeat"]  # it would be answered, and nothing done

    def _guarded(self, handler: Handler) -> Handler:
        def guarded(p: Params) -> Any:
            with self.engine.lock:
                try:
                    return handler(p)
                except rules.ValidationError as error:
                    return autoscaling._error("ValidationError", escape(str(error)))

        return guarded

    def _group(self, p: Params) -> dict[str, Any]:
        name = _p(p, "AutoScalingGroupName")
        group: dict[str, Any] | None = self.engine.groups.get(name)
        if group is None:
            raise rules.ValidationError(f"AutoScalingGroup name not found - AutoScalingGroup {name} not found")
        return group

    # --- groups ---------------------------------------------------------------------------------------------------
    def create(self, p: Params) -> Any:
        _check_region()
        sizes = rules.update(rules.Sizes(0, 0, 0), *_sizes(p))
        # Created empty: the engine launches once everything about the group is known.
        response = self._create({**p, "MinSize": "0", "MaxSize": "0", "DesiredCapacity": "0"})
        if response[0] == 200:
            group = self._group(p)
            if policy := autoscaling._parse_nested(p, "MixedInstancesPolicy"):
                group["MixedInstancesPolicy"] = policy
            self.engine.resize(group, sizes)
        return response

    def update(self, p: Params) -> Any:
        group = self._group(p)
        if given := [key for key in p if key.startswith(("LaunchTemplate", "MixedInstancesPolicy"))]:
            raise rules.ValidationError(f"{given[0]} can be changed by CloudFormation only in the local cloud.")
        sizes = rules.update(self.engine.sizes(group), *_sizes(p))
        response = self._update({k: v for k, v in p.items() if k not in {"MinSize", "MaxSize", "DesiredCapacity"}})
        self.engine.resize(group, sizes)
        return response

    def set_desired(self, p: Params) -> Any:
        group, desired = self._group(p), _number(p, "DesiredCapacity")
        if desired is None:
            raise rules.ValidationError("DesiredCapacity is required")
        self.engine.resize(group, rules.set_desired(self.engine.sizes(group), desired))
        return _xml(200, "SetDesiredCapacityResponse", "")

    def delete(self, p: Params) -> Any:
        if self._group(p)["Instances"]:
            return autoscaling._error(
                "ResourceInUse",
                "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance request(s) "
                "still in the group.",
            )
        self.engine.forget_schedule(_p(p, "AutoScalingGroupName"))
        return self._delete(p)

    # --- instances ------------------------------------------------------------------------------------------------
    def _found(self, p: Params) -> tuple[dict[str, Any], dict[str, Any]]:
        name = _p(p, "InstanceId")
        if (found := self.engine.find(name)) is None:
            raise rules.ValidationError(f"Instance Id not found - No managed instance found for instance ID: {name}")
        return found

    def terminate(self, p: Params) -> Any:
        group, member = self._found(p)
        instance_id = member["InstanceId"]
        cause = f"At {now_text()} instance {instance_id} was taken out of service in response to a user request"
        if _p(p, "ShouldDecrementDesiredCapacity") == "true":
            sizes = rules.decrement(self.engine.sizes(group))
            group["DesiredCapacity"] = sizes.desired
            cause += f", shrinking the capacity from {sizes.desired + 1} to {sizes.desired}"
        if member["LifecycleState"].startswith("Terminating"):
            activity = self.engine.record(group["AutoScalingGroupName"], "Already terminating", f"{cause}.")
        else:
            activity = self.engine.terminate(group, member, f"{cause}.")
        return _result("TerminateInstanceInAutoScalingGroup", f"<Activity>{_member_xml(activity)}</Activity>")

    def complete(self, p: Params) -> Any:
        if _p(p, "LifecycleActionResult") not in {"CONTINUE", "ABANDON"}:
            raise rules.ValidationError("LifecycleActionResult must be CONTINUE or ABANDON")
        _, member = self._found(p)
        if member["LifecycleState"] != "Terminating:Wait" or member["_hook"] != _p(p, "LifecycleHookName"):
            raise rules.ValidationError(f"No active Lifecycle Action found with instance ID {member['InstanceId']}")
        self.engine.proceed(member)
        return _result("CompleteLifecycleAction")

    # --- schedule, processes, activities --------------------------------------------------------------------------
    def put_action(self, p: Params) -> Any:
        group = self._group(p)
        if _p(p, "Recurrence") or not _p(p, "StartTime"):
            raise rules.ValidationError("Only one-time scheduled actions (StartTime, no Recurrence) are modelled here.")
        moment = rules.start_time(_p(p, "StartTime"), datetime.now(UTC))
        if all(number is None for number in _sizes(p)):
            raise rules.ValidationError("At least one of MinSize, MaxSize and DesiredCapacity must be given.")
        rules.update(self.engine.sizes(group), *_sizes(p))
        return self._put_action({**p, "StartTime": moment.strftime("%Y-%m-%dT%H:%M:%S+00:00")})

    def _processes(self, p: Params) -> tuple[dict[str, Any], set[str], set[str]]:
        """The group, its suspended processes, and those that are named."""
        group, names = self._group(p), set(autoscaling._parse_member_list(p, "ScalingProcesses"))
        if not names or names - SUSPENDED:
            raise rules.ValidationError(f"Only {' and '.join(sorted(SUSPENDED))} can be suspended in the local cloud.")
        return group, set(group.get("SuspendedProcesses", [])), names

    def suspend(self, p: Params) -> Any:
        group, suspended, names = self._processes(p)
        group["SuspendedProcesses"] = sorted(suspended | names)
        return _xml(200, "SuspendProcessesResponse", "")

    def resume(self, p: Params) -> Any:
        group, suspended, names = self._processes(p)
        group["SuspendedProcesses"] = sorted(suspended - names)
        return _xml(200, "ResumeProcessesResponse", "")

    def activities(self, p: Params) -> Any:
        name = _p(p, "AutoScalingGroupName")
        shown = [a for group, entries in self.engine.activities.items() for a in entries if name in ("", group)]
        return _result("DescribeScalingActivities", f"<Activities>{_member_xml(shown)}</Activities>")


def _show_policy_and_processes() -> None:
    """DescribeAutoScalingGroups shows the mixed-instances policy (in the launch template's place, which such a group's
    record leaves empty) and the suspended processes."""
    instances = autoscaling._instances_xml  # an element of each group; these are two more

    def instances_and_more(group: dict[str, Any]) -> str:
        names = group.get("SuspendedProcesses", [])
        more = {"SuspendedProcesses": [{"ProcessName": n, "SuspensionReason": "User suspended"} for n in names]}
        if policy := group.get("MixedInstancesPolicy"):
            more["MixedInstancesPolicy"] = policy
        return f"{instances(group)}{_member_xml(more)}"

    autoscaling._instances_xml = instances_and_more


def _install_cloudformation(engine: Engine) -> None:
    """The resource keeps its mixed-instances policy, and its deletion drains the group first."""
    fields, delete = provisioners._asg_fields, provisioners._asg_delete
    create, update = provisioners._asg_create, provisioners._asg_update
    on_worker = stacks._runs_on_worker_thread

    def with_policy(props: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = fields(props)
        if policy := props.get("MixedInstancesPolicy"):
            result["MixedInstancesPolicy"] = policy
        if "DesiredCapacity" not in props:  # not declared: an update leaves what the API set, within the limits
            del result["DesiredCapacity"]
        return result

    def create_group(logical_id: str, props: dict[str, Any], stack: str) -> Any:
        _check_region()
        desired = props.get("DesiredCapacity", props.get("MinSize", 0))
        return create(logical_id, {**props, "DesiredCapacity": desired}, stack)

    def drain_and_delete(name: str, props: dict[str, Any]) -> None:
        if (group := engine.groups.get(name)) is not None:
            engine.drain(group)
            engine.forget_schedule(name)
        delete(name, props)

    provisioners._asg_fields, provisioners._asg_delete = with_policy, drain_and_delete
    handlers = provisioners._RESOURCE_HANDLERS[GROUP_TYPE]
    handlers.update(create=create_group, update=update, delete=drain_and_delete)
    # Waiting for instances on the event loop would stop the very uploads that it waits for.
    stacks._runs_on_worker_thread = lambda kind: kind == GROUP_TYPE or on_worker(kind)
