"""What an account holds of one lab, by its tags: asked of the services themselves, never of what a stack says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lab.operator.resources import LIVE_STATES
from training_image.core import contract

GONE_SECONDS = 300
"""Volumes and interfaces outlive their instance by a while, and tag listings lag behind."""
_POLL_SECONDS = 5.0


def of_instance(ec2: Any, suffix: str) -> set[str]:
    """Volumes and network interfaces that belonged to instances of the stack with this suffix."""
    mine = [{"Name": f"tag:{contract.STACK_TAG}", "Values": [suffix]}]
    volumes = ec2.describe_volumes(Filters=mine)["Volumes"]
    interfaces = ec2.describe_network_interfaces(Filters=mine)["NetworkInterfaces"]
    return {item["VolumeId"] for item in volumes} | {item["NetworkInterfaceId"] for item in interfaces}


def tagged(client: Callable[[str], Any], lab: str) -> set[str]:
    """Everything with the lab's tag. EC2 is asked directly, because the tagging API still lists what is gone;
    terminated instances do not count."""
    ec2 = client("ec2")
    mine = [{"Name": "key", "Values": [contract.LAB_TAG]}, {"Name": "value", "Values": [lab]}]
    pages = ec2.get_paginator("describe_tags").paginate(Filters=mine)
    found = {item["ResourceId"] for page in pages for item in page["Tags"] if item["ResourceType"] != "instance"}
    live = [
        {"Name": f"tag:{contract.LAB_TAG}", "Values": [lab]},
        {"Name": "instance-state-name", "Values": list(LIVE_STATES)},
    ]
    for page in ec2.get_paginator("describe_instances").paginate(Filters=live):
        found |= {item["InstanceId"] for group in page["Reservations"] for item in group["Instances"]}
    pages = (
        client("resourcegroupstaggingapi")
        .get_paginator("get_resources")
        .paginate(TagFilters=[{"Key": contract.LAB_TAG, "Values": [lab]}])
    )
    arns = {item["ResourceARN"] for page in pages for item in page["ResourceTagMappingList"]}
    return found | {arn for arn in arns if arn.split(":")[2] != "ec2"}


def until_none(look: Callable[[], set[str]], sleep: Callable[[float], None] = time.sleep) -> set[str]:
    """What ``look`` still finds after at most ``GONE_SECONDS``; empty as soon as it finds nothing."""
    for _ in range(int(GONE_SECONDS / _POLL_SECONDS)):
        if not (found := look()):
            return found
        sleep(_POLL_SECONDS)
    return look()
