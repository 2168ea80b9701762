"""Findings of the checkers that are accepted: each by its own id, with its reason, beside the code that causes it.

cdk-nag reads them from the construct tree, cfn-lint and checkov from the resource's metadata in the template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import aws_cdk as cdk
from constructs import IConstruct


def acknowledge(construct: IConstruct, reason: str, *findings: str) -> None:
    """Accept ``findings`` on the one resource of ``construct``, all for the same reason.

    Args:
        findings: ids as the checkers print them: ``AwsSolutions-S1`` (cdk-nag), ``CKV_AWS_18`` (checkov), ``W3005``
            (cfn-lint).
    """
    resource = construct if cdk.CfnResource.is_cfn_resource(construct) else construct.node.default_child
    if not isinstance(resource, cdk.CfnResource):
        raise TypeError(f"{construct.node.path} is not one resource; acknowledge a finding where it is.")
    for finding in findings:
        if finding.startswith("AwsSolutions-"):
            acknowledgment = cdk.Acknowledgment(id=f"AwsSolutions::{finding}", reason=reason)
            cdk.Validations.of(construct).acknowledge(acknowledgment)
        elif finding.startswith("CKV"):
            skipped = (resource.get_metadata("checkov") or {"skip": []})["skip"]
            resource.add_metadata("checkov", {"skip": [*skipped, {"id": finding, "comment": reason}]})
        else:
            known = resource.get_metadata("cfn-lint") or {"config": {"ignore_checks": []}, "reasons": {}}
            ignored = [*known["config"]["ignore_checks"], finding]
            reasons = {**known["reasons"], finding: reason}
            resource.add_metadata("cfn-lint", {"config": {"ignore_checks": ignored}, "reasons": reasons})
            # The CDK runs the same rules, and does not read that metadata.
            acknowledgment = cdk.Acknowledgment(id=f"CloudFormation-Validate::{finding}", reason=reason)
            cdk.Validations.of(construct).acknowledge(acknowledgment)


def acknowledge_wildcards(role: IConstruct, resources: Sequence[str], reason: str) -> None:
    """Accept the wildcards in ``resources`` of one statement of the role's policy (cdk-nag's AwsSolutions-IAM5)."""
    for resource in resources:
        text = _flat(cdk.Stack.of(role).resolve(resource))
        if "*" in text:
            acknowledge(role, reason, f"AwsSolutions-IAM5[Resource::{text}]")


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
