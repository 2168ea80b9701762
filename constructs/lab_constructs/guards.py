"""What no template of this lab may lack or contain: read from the resolved template, said as error annotations.

`problems` is pure: a template in, sentences out. `synth` is the edge. A sentence stops `cdk deploy` and lets
`cdk destroy` pass; an exception, or a validation plugin that fails synth, would keep a machine alive that costs money.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from training_image.core import contract

Template = dict[str, Any]
Resource = dict[str, Any]

ENDING_ACTIONS = (
    "autoscaling:DeleteAutoScalingGroup",
    "autoscaling:PutScheduledUpdateGroupAction",
    "autoscaling:SetDesiredCapacity",
    "autoscaling:TerminateInstanceInAutoScalingGroup",
    "autoscaling:UpdateAutoScalingGroup",
    "ec2:StopInstances",
    "ec2:TerminateInstances",
)
"""Whoever may do one of these can end somebody's training."""

UNTAGGABLE = frozenset(
    {
        "AWS::Budgets::Budget",  # tagged as a resource of Budgets, whose cost is nil
        "AWS::CDK::Metadata",
        "AWS::CloudWatch::Dashboard",
        "AWS::EC2::Route",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPCGatewayAttachment",
        "AWS::IAM::InstanceProfile",
        "AWS::IAM::Policy",
        "AWS::Lambda::Permission",
        "AWS::S3::BucketPolicy",
        "AWS::SNS::Subscription",
        "AWS::SNS::TopicPolicy",
        "AWS::AutoScaling::LifecycleHook",
        "Custom::TrainingRun",
    }
)
"""Types that CloudFormation (or CDK) gives no tags; every other one must carry the lab's."""

PUBLIC_ACLS = ("PublicRead", "PublicReadWrite", "AuthenticatedRead")
ACCESS_BLOCK = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")


def synth(app: cdk.App, *, training: cdk.Stack) -> None:
    """Synthesise ``app``; if a guard objects to a template, synthesise again with its sentences as error annotations.

    Args:
        training: the stack that must have a deadline, a terminator and an alarm; the other rules hold for every stack.
    """
    directory = Path(app.synth().directory)
    broken = False
    for stack in app.node.children:
        if not isinstance(stack, cdk.Stack):
            continue
        template = json.loads((directory / stack.template_file).read_text())
        for sentence in problems(template, training=stack is training):
            cdk.Annotations.of(stack).add_error(f"Guard: {sentence}")
            broken = True
    if broken:
        app.synth(force=True)


def problems(template: Template, *, training: bool) -> list[str]:
    """Everything wrong with a resolved template, one sentence each; empty if nothing is."""
    rules = [_untagged, _ingress, _public_buckets, _unbounded_endings]
    if training:
        rules = [_no_deadline, _no_terminator, _no_alarm, *rules]
    return [sentence for rule in rules for sentence in rule(template)]


# --- a TrainingStack has ----------------------------------------------------------------------------------------------
def _no_deadline(template: Template) -> Iterator[str]:
    runs = list(_of_type(template, "Custom::TrainingRun"))
    if len(runs) != 1:
        yield f"the stack holds {len(runs)} Custom::TrainingRun resources, not 1: no run, no deadline."
        return
    name, run = runs[0]
    hours = re.search(r'"max_runtime_hours": ([0-9.]+)', _text(run["Properties"].get("Spec", "")))
    if hours is None or float(hours[1]) <= 0:
        yield f"{name} has no max_runtime_hours: the run would have no deadline."
    controller = _referred(run["Properties"].get("ServiceToken"))
    if "autoscaling:PutScheduledUpdateGroupAction" not in _actions_of(template, controller):
        yield f"the controller of {name} may not put the scheduled action that ends the group after the deadline."


def _no_terminator(template: Template) -> Iterator[str]:
    controllers = {
        _referred(run["Properties"].get("ServiceToken")) for _, run in _of_type(template, "Custom::TrainingRun")
    }
    for name, rule in _of_type(template, "AWS::Events::Rule"):
        properties = rule["Properties"]
        if "ScheduleExpression" not in properties or properties.get("State", "ENABLED") != "ENABLED":
            continue
        for target in properties.get("Targets", []):
            function = _referred(target.get("Arn"))
            ends = {"ec2:TerminateInstances", "autoscaling:UpdateAutoScalingGroup"} <= _actions_of(template, function)
            if function not in controllers and ends and _may_invoke(template, name, function):
                return
    yield "no schedule calls a function that may end the instance: the auto-terminator is missing."


def _no_alarm(template: Template) -> Iterator[str]:
    groups = {name for name, _ in _of_type(template, "AWS::AutoScaling::AutoScalingGroup")}
    for _, alarm in _of_type(template, "AWS::CloudWatch::Alarm"):
        properties = alarm["Properties"]
        watched = {
            _referred(item.get("Value")) for item in _dicts(properties) if item.get("Name") == "AutoScalingGroupName"
        }
        if watched & groups and properties.get("AlarmActions") and properties.get("ActionsEnabled", True) is True:
            return
    yield "no alarm with an action watches the Auto Scaling group: nobody would hear of an instance that stays."


def _untagged(template: Template) -> Iterator[str]:
    for name, resource in template.get("Resources", {}).items():
        if resource["Type"] in UNTAGGABLE:
            continue
        properties = resource.get("Properties", {})
        if not _tagged(properties.get("Tags") or properties.get("TagSpecifications", [{}])[0].get("Tags")):
            yield f"{name} ({resource['Type']}) lacks the cost tag {contract.LAB_TAG}."
        if resource["Type"] == "AWS::EC2::LaunchTemplate":
            specifications = properties.get("LaunchTemplateData", {}).get("TagSpecifications", [])
            kinds = {item.get("ResourceType") for item in specifications if _tagged(item.get("Tags"))}
            for kind in sorted({"instance", "volume", "network-interface"} - kinds):
                yield f"{name} launches a {kind} without the cost tag {contract.LAB_TAG}."


# --- no stack has -----------------------------------------------------------------------------------------------------
def _ingress(template: Template) -> Iterator[str]:
    for name, _ in _of_type(template, "AWS::EC2::SecurityGroupIngress"):
        yield f"{name} is an ingress rule: people come in through Session Manager, nothing else does."
    for name, group in _of_type(template, "AWS::EC2::SecurityGroup"):
        if group.get("Properties", {}).get("SecurityGroupIngress"):
            yield f"{name} has an ingress rule: people come in through Session Manager, nothing else does."


def _public_buckets(template: Template) -> Iterator[str]:
    for name, bucket in _of_type(template, "AWS::S3::Bucket"):
        properties = bucket.get("Properties", {})
        block = properties.get("PublicAccessBlockConfiguration", {})
        if not all(block.get(key) is True for key in ACCESS_BLOCK):
            yield f"{name} does not block all public access."
        if properties.get("AccessControl") in PUBLIC_ACLS:
            yield f"{name} has the public ACL {properties['AccessControl']}."
        if "WebsiteConfiguration" in properties:
            yield f"{name} is a public website."
    for name, policy in _of_type(template, "AWS::S3::BucketPolicy"):
        for statement in _listed(policy["Properties"]["PolicyDocument"]["Statement"]):
            if statement["Effect"] == "Allow" and "*" in _principals(statement):
                yield f"{name} lets everybody into a bucket."


def _unbounded_endings(template: Template) -> Iterator[str]:
    groups = {name for name, _ in _of_type(template, "AWS::AutoScaling::AutoScalingGroup")}
    for name, role in _of_type(template, "AWS::IAM::Role"):
        if role["Properties"].get("ManagedPolicyArns"):
            yield f"{name} has a managed policy, whose permissions nobody here can bound."
    for name, statement in allowed(template):
        endings = [action for action in ENDING_ACTIONS if _covers(statement, action)]
        if endings and not (_bounded_by_tag(statement) or _bounded_by_name(statement, groups)):
            yield f"{name} may {endings[0]} beyond its own stack: bound it by {contract.STACK_TAG} or the group's name."


def _bounded_by_tag(statement: dict[str, Any]) -> bool:
    """By StringEquals on the stack's tag; the value must come from the stack's id."""
    for key, value in statement.get("Condition", {}).get("StringEquals", {}).items():
        if re.fullmatch(rf"(aws|ec2|autoscaling):ResourceTag/{contract.STACK_TAG}", key):
            return "AWS::StackId" in json.dumps(value) and not isinstance(value, list)
    return False


def _bounded_by_name(statement: dict[str, Any], groups: set[str]) -> bool:
    """By an ARN that ends with a reference to a group of this template."""

    def exact(resource: Any) -> bool:
        parts = resource.get("Fn::Join", ["", []])[1] if isinstance(resource, dict) else []
        return bool(parts) and isinstance(parts[-1], dict) and parts[-1].get("Ref") in groups

    resources = _listed(statement.get("Resource", []))
    return bool(resources) and all(exact(resource) for resource in resources)


# --- reading a template -----------------------------------------------------------------------------------------------
def allowed(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Allow statement of identity policies, with the logical id of the policy or role that holds it."""
    for name, resource in template.get("Resources", {}).items():
        if not resource["Type"].startswith("AWS::IAM::"):
            continue
        properties = resource.get("Properties", {})
        documents = [
            properties.get("PolicyDocument"),
            *(item["PolicyDocument"] for item in properties.get("Policies", [])),
        ]
        for document in documents:
            for statement in _listed(document["Statement"]) if document else []:
                if statement["Effect"] == "Allow":
                    yield name, statement


def _covers(statement: dict[str, Any], action: str) -> bool:
    if "NotAction" in statement:
        return not any(fnmatchcase(action.lower(), item.lower()) for item in _listed(statement["NotAction"]))
    return any(fnmatchcase(action.lower(), item.lower()) for item in _listed(statement.get("Action", [])))


def _actions_of(template: Template, function: str | None) -> set[str]:
    """What the role of the function with this logical id may do, whatever the resource."""
    resource = template["Resources"].get(function or "", {})
    role = _referred(resource.get("Properties", {}).get("Role"))
    found: set[str] = set()
    for name, statement in allowed(template):
        holders = {name} | {_referred(item) for item in template["Resources"][name]["Properties"].get("Roles", [])}
        if role in holders:
            found |= set(_listed(statement.get("Action", [])))
    return found


def _may_invoke(template: Template, rule: str, function: str | None) -> bool:
    for _, permission in _of_type(template, "AWS::Lambda::Permission"):
        properties = permission["Properties"]
        if _referred(properties.get("FunctionName")) == function and _referred(properties.get("SourceArn")) == rule:
            return True
    return False


def _of_type(template: Template, kind: str) -> Iterator[tuple[str, Resource]]:
    return ((name, item) for name, item in template.get("Resources", {}).items() if item["Type"] == kind)


def _tagged(tags: Any) -> bool:
    """Whether ``Tags``, as a list of pairs or as a map, hold the lab's tag with a value."""
    if isinstance(tags, dict):
        return bool(tags.get(contract.LAB_TAG))
    return any(item.get("Key") == contract.LAB_TAG and item.get("Value") for item in tags or [])


def _principals(statement: dict[str, Any]) -> list[Any]:
    principal = statement.get("Principal", {})
    return _listed(principal.get("AWS", []) if isinstance(principal, dict) else principal)


def _referred(value: Any) -> str | None:
    """Logical id behind a Ref or Fn::GetAtt."""
    if not isinstance(value, dict):
        return None
    attribute = value.get("Fn::GetAtt")
    return str(attribute[0]) if attribute else value.get("Ref")


def _text(value: Any) -> str:
    """A string property, with tokens left out of a join."""
    parts = value.get("Fn::Join", ["", []])[1] if isinstance(value, dict) else [value]
    return "".join(part for part in parts if isinstance(part, str))


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _dicts(item)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
