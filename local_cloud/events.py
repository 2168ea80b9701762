"""AWS's own events on the default bus, which the emulator does not send: of EC2 instances and Auto Scaling groups."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import eventbridge

logger = logging.getLogger("lab.events")


def of_instance(instance_id: str, detail_type: str, **detail: str) -> None:
    arn = f"arn:aws:ec2:{get_region()}:{get_account_id()}:instance/{instance_id}"
    _emit("aws.ec2", detail_type, {"instance-id": instance_id, **detail}, arn)


def of_group(group: dict[str, Any], what: str, instance_id: str = "") -> None:
    """``what``: Launch Successful, Launch Unsuccessful, Terminate Successful."""
    detail = {"AutoScalingGroupName": group["AutoScalingGroupName"], "EC2InstanceId": instance_id}
    _emit("aws.autoscaling", f"EC2 Instance {what}", detail, group["AutoScalingGroupARN"])


def _emit(source: str, detail_type: str, detail: dict[str, str], arn: str) -> None:
    """From any thread, without waiting for what the event sets off."""
    entry = {"Source": source, "DetailType": detail_type, "Detail": json.dumps(detail), "Resources": [arn]}

    def put() -> None:
        try:
            eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)
        except Exception:
            logger.exception("event %s", detail_type)

    threading.Thread(target=put, daemon=True, name="event").start()
