"""Resource ARNs and condition keys that AWS's IAM checks and the emulator's does not have."""

from __future__ import annotations

import json
from typing import Any

import cbor2
from ministack.core import iam_actions, iam_evaluator
from ministack.services import autoscaling, ec2, ecr, iam

LINKED_ROLE = ":role/aws-service-role/"
LINKED_ROLES = {"spot.amazonaws.com": "AWSServiceRoleForEC2Spot"}


def apply() -> None:
    """Apply every patch of this module."""
    resources()
    conditions()
    metric_namespaces()
    service_linked_roles()
    denials_name_the_repository()


def resources() -> None:
    """The resource's ARN: of one described repository, of the group of the instance that an Auto Scaling call names, of
    a service-linked role, and of a log stream, so that a policy on ``<group arn>:*`` admits it."""
    extract, query = iam_actions.extract_resource_arn, iam_actions._query_param

    def extract_resource_arn(
        service: str, method: str, path: str, headers: Any, body: bytes, params: Any, region: str, account: str
    ) -> str:
        arn = str(extract(service, method, path, headers, body, params, region, account))
        if service == "ecr" and arn == "*":
            names = json.loads(body or b"{}").get("repositoryNames") or []
            return str(ecr._repo_arn(names[0])) if len(names) == 1 else arn
        if service == "autoscaling" and arn == "*" and (instance := query(params, "InstanceId")):
            for group in list(autoscaling._asgs.values()):
                if any(member["InstanceId"] == instance for member in group["Instances"]):
                    return str(group["AutoScalingGroupARN"])
        if service == "iam" and query(params, "Action") == "CreateServiceLinkedRole":
            name = query(params, "AWSServiceName")
            return f"arn:aws:iam::{account}{LINKED_ROLE}{name}/{LINKED_ROLES.get(name, 'AWSServiceRole')}"
        if service == "logs" and ":log-group:" in arn:
            stream = json.loads(body).get("logStreamName")
            return f"{arn}:log-stream:{stream}" if isinstance(stream, str) else arn
        return arn

    iam_actions.extract_resource_arn = extract_resource_arn


def conditions() -> None:
    """``aws:ResourceTag`` and the services' own spelling, for EC2 instances and Auto Scaling groups; and
    ``iam:AWSServiceName`` of a service-linked role."""
    enforce = iam_evaluator.enforce
    stores = {"ec2": ec2._tags, "autoscaling": autoscaling._tags}

    def enforce_with_context(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", service_context: Any = None
    ) -> Any:
        context = dict(service_context or {})
        for tag in stores.get(service, {}).get(resource_arn.rsplit("/", 1)[-1], []):
            for prefix in ("aws", service):
                context[f"{prefix}:resourcetag/{tag['Key']}".lower()] = tag["Value"]
        if action == "iam:CreateServiceLinkedRole" and LINKED_ROLE in resource_arn:
            context["iam:awsservicename"] = resource_arn.split(LINKED_ROLE)[1].split("/")[0]
        return enforce(key, action, service, region, resource_arn=resource_arn, service_context=context)

    iam_evaluator.enforce = enforce_with_context


def metric_namespaces() -> None:
    """The condition key ``cloudwatch:namespace`` of PutMetricData, in each of the three protocols it is spoken in."""
    tags_of = iam_actions.request_tag_context

    def context(service: str, action: str, body: bytes, params: dict[str, Any]) -> dict[str, Any]:
        found = dict(tags_of(service, action, body, params))
        if action == "cloudwatch:PutMetricData":
            found["cloudwatch:namespace"] = _namespace(body, params)
        return found

    iam_actions.request_tag_context = context


def _namespace(body: bytes, params: dict[str, Any]) -> str:
    """AWS takes the namespace of the request; one that cannot be read is nobody's."""
    if query := iam_actions._query_param(params, "Namespace"):
        return str(query)
    try:
        fields = json.loads(body) if body[:1] == b"{" else cbor2.loads(body)
        return str(fields["Namespace"])
    except (ValueError, KeyError, TypeError, cbor2.CBORDecodeError):
        return ""


def service_linked_roles() -> None:
    """A second role of one service is refused in AWS's words."""
    create = iam._IAM_HANDLERS["CreateServiceLinkedRole"]

    def create_service_linked_role(p: dict[str, Any]) -> Any:
        path = f"/aws-service-role/{iam._p(p, 'AWSServiceName')}/"
        if any(role["Path"] == path for role in iam._roles.values()):
            return iam._error(400, "InvalidInput", "Service role name has been taken in this account.", ns="iam")
        return create(p)

    iam._IAM_HANDLERS["CreateServiceLinkedRole"] = create_service_linked_role


def denials_name_the_repository() -> None:
    """A refused ECR call names its resource, as on AWS: the name says which stack is missing."""
    respond = iam_actions.access_denied_response

    def denial(service: str, action: str, principal: str, *rest: Any, **named: Any) -> Any:
        arn = named.get("resource_arn", "*")
        if service == "ecr" and arn != "*" and not named.get("message") and not named.get("error_code"):
            explicit = named.get("explicit_deny", False)
            named["message"] = iam_actions.identity_denial_message(action, principal, arn, explicit)
        return respond(service, action, principal, *rest, **named)

    iam_actions.access_denied_response = denial
