"""Findings of cdk-nag that are accepted: each by its own id, with its reason, beside the code that causes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import aws_cdk as cdk
from constructs import IConstruct


def acknowledge(construct: IConstruct, rule: str, reason: str) -> None:
    """Accept one finding on ``construct``; ``rule`` as cdk-nag prints it without its pack, e.g. ``AwsSolutions-S1``."""
    cdk.Validations.of(construct).acknowledge(cdk.Acknowledgment(id=f"AwsSolutions::{rule}", reason=reason))


def acknowledge_wildcards(role: IConstruct, resources: Sequence[str], reason: str) -> None:
    """Accept the wildcards in ``resources`` of one statement, and in no other statement of the role's policy."""
    for resource in resources:
        text = _flat(cdk.Stack.of(role).resolve(resource))
        if "*" in text:
            acknowledge(role, f"AwsSolutions-IAM5[Resource::{text}]", reason)


def _flat(value: Any) -> str:
    """A resolved ARN as cdk-nag spells it in a finding's id: ``<LogicalId>`` for a reference."""
    if isinstance(value, str):
        return value.replace("${", "<").replace("}", ">")
    if "Fn::Join" in value:
        delimiter, items = value["Fn::Join"]
        return str(delimiter).join(_flat(item) for item in items)
    if "Fn::GetAtt" in value:
        return "<" + ".".join(value["Fn::GetAtt"]) + ">"
    if "Ref" in value:
        return f"<{value['Ref']}>"
    return json.dumps(value, separators=(",", ":"))
