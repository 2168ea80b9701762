"""What AWS does and the emulator does not: events of EC2 and Auto Scaling, alarms that call functions, budgets."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from local_cloud.hooks import Module
from local_cloud.scope import Scope

logger = logging.getLogger("lab.events")


def apply() -> None:
    """Raises: IncompatibleEmulatorError."""
    alarms_call_functions()
    budgets()


def emit(scope: Scope, source: str, detail_type: str, detail: dict[str, Any], resources: list[str]) -> None:
    """Put an event of AWS's own on the default bus, from any thread, without waiting for what it sets off."""
    put = Module("ministack.services.eventbridge").get("_put_events")
    entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail), "Resources": resources}

    def run() -> None:
        scope.enter()
        try:
            put({"Entries": [entry]}, allow_aws_source=True)
        except Exception:
            logger.exception("event %s", detail_type)

    threading.Thread(target=run, daemon=True, name="event").start()


def instance_state(scope: Scope, instance_id: str, state: str) -> None:
    detail = {"instance-id": instance_id, "state": state}
    emit(scope, "aws.ec2", "EC2 Instance State-change Notification", detail, [_instance_arn(scope, instance_id)])


def spot_interruption(scope: Scope, instance_id: str) -> None:
    detail = {"instance-id": instance_id, "instance-action": "terminate"}
    emit(scope, "aws.ec2", "EC2 Spot Instance Interruption Warning", detail, [_instance_arn(scope, instance_id)])


def rebalance_recommendation(scope: Scope, instance_id: str) -> None:
    detail = {"instance-id": instance_id}
    emit(scope, "aws.ec2", "EC2 Instance Rebalance Recommendation", detail, [_instance_arn(scope, instance_id)])


def scaling(scope: Scope, group: dict[str, Any], what: str, instance_id: str = "") -> None:
    """``what``: Launch Successful, Launch Unsuccessful, Terminate Successful."""
    detail = {"AutoScalingGroupName": group["AutoScalingGroupName"], "EC2InstanceId": instance_id}
    emit(scope, "aws.autoscaling", f"EC2 Instance {what}", detail, [group["AutoScalingGroupARN"]])


def _instance_arn(scope: Scope, instance_id: str) -> str:
    return f"arn:aws:ec2:{scope.region}:{scope.account}:instance/{instance_id}"


def alarms_call_functions() -> None:
    """An alarm's action may be a function; the emulator knows topics only."""
    cloudwatch = Module("ministack.services.cloudwatch")
    dispatch, call = (
        cloudwatch.get("_dispatch_alarm_actions"),
        Module("ministack.services.eventbridge").get("_dispatch_to_lambda"),
    )

    def with_functions(alarm: dict[str, Any], old_state: str, new_state: str, reason: str) -> None:
        dispatch(alarm, old_state, new_state, reason)
        if new_state != "ALARM" or not alarm.get("ActionsEnabled", True):
            return
        payload = {
            "source": "aws.cloudwatch",
            "alarmArn": alarm.get("AlarmArn"),
            "alarmData": {"alarmName": alarm.get("AlarmName"), "state": {"value": new_state, "reason": reason}},
        }
        for arn in alarm.get("AlarmActions") or []:
            if ":lambda:" in arn:
                call(arn, json.dumps(payload))

    cloudwatch.replace("_dispatch_alarm_actions", with_functions)


def budgets() -> None:
    """The type AWS::Budgets::Budget."""
    service = Module("ministack.services.budgets")
    create, delete = service.get("_create_budget"), service.get("_delete_budget")
    handlers = Module("ministack.services.cloudformation.provisioners").get("_RESOURCE_HANDLERS")

    def create_budget(logical_id: str, props: dict[str, Any], stack_name: str) -> tuple[str, dict[str, Any]]:
        budget = {"BudgetName": f"{stack_name}-{logical_id}", **props["Budget"]}
        limit = budget["BudgetLimit"]
        budget["BudgetLimit"] = {"Amount": str(limit["Amount"]), "Unit": limit["Unit"]}
        request = {"Budget": budget, "NotificationsWithSubscribers": props.get("NotificationsWithSubscribers")}
        status, _, body = create(request)
        if status >= 400:
            raise ValueError(body.decode())
        return budget["BudgetName"], {}

    def delete_budget(physical_id: str, props: dict[str, Any]) -> None:
        delete({"BudgetName": physical_id})

    def update_budget(
        physical_id: str, old: dict[str, Any], new: dict[str, Any], stack_name: str
    ) -> tuple[str, dict[str, Any]]:
        delete_budget(physical_id, old)
        return create_budget("", {**new, "Budget": {**new["Budget"], "BudgetName": physical_id}}, stack_name)

    handlers["AWS::Budgets::Budget"] = {"create": create_budget, "update": update_budget, "delete": delete_budget}
