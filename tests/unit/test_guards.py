"""Each guard, seen to object: a synthesised template is broken in one place, and one sentence names it.

That a sentence stops a deploy and lets a destroy pass is tests/local_cloud/test_guarded_deploy.py.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_constructs import guards
from tests.support.examples import examples
from tests.support.stacks import ROOT
from tests.support.whole_app import templates, whole_app
from training_image.core import contract

Template = dict[str, Any]


@pytest.fixture(scope="module")
def both() -> dict[str, Template]:
    return templates(whole_app()[0])


@pytest.fixture
def training(both) -> Template:
    return copy.deepcopy(both["TrainingStack"])


@pytest.fixture
def data(both) -> Template:
    return copy.deepcopy(both["DataStack"])


def named(template: Template, kind: str, start: str = "") -> tuple[str, dict[str, Any]]:
    """The first resource of its type whose logical id begins with ``start``."""
    return next(
        (name, item) for name, item in template["Resources"].items() if item["Type"] == kind and name.startswith(start)
    )


def drop(template: Template, kind: str) -> None:
    template["Resources"] = {name: item for name, item in template["Resources"].items() if item["Type"] != kind}


def one_problem(template: Template, words: str, *, training: bool = True) -> None:
    problems = guards.problems(template, training=training)
    assert any(words in problem for problem in problems), problems


def test_both_stacks_pass_as_they_are(both):
    assert guards.problems(both["DataStack"], training=False) == []
    assert guards.problems(both["TrainingStack"], training=True) == []


# --- deadline, terminator, alarm --------------------------------------------------------------------------------------
def test_a_stack_without_a_run_has_no_deadline(training):
    drop(training, "Custom::TrainingRun")
    one_problem(training, "no run, no deadline")


def test_a_run_without_hours_has_no_deadline(training):
    _, run = named(training, "Custom::TrainingRun")
    run["Properties"]["Spec"] = json.loads(json.dumps(run["Properties"]["Spec"]).replace("max_runtime_hours", "hours"))
    one_problem(training, "no max_runtime_hours")


@pytest.mark.parametrize("hours", ["0", "0.0", "null", "-1"])
def test_hours_that_never_end_are_no_deadline(training, hours):
    _, run = named(training, "Custom::TrainingRun")
    run["Properties"]["Spec"] = f'{{"max_runtime_hours": {hours}}}'
    one_problem(training, "no max_runtime_hours")


def test_a_controller_that_cannot_schedule_the_end_is_no_deadline(training):
    for statement in statements(training, "RunRole"):
        if statement.get("Sid") == "Scales":
            statement["Action"].remove("autoscaling:PutScheduledUpdateGroupAction")
    one_problem(training, "may not put the scheduled action")


def break_schedule(template: Template) -> None:
    for rule in of_type(template, "AWS::Events::Rule"):
        rule["Properties"].pop("ScheduleExpression", None)


def disable(template: Template) -> None:
    for rule in of_type(template, "AWS::Events::Rule"):
        rule["Properties"]["State"] = "DISABLED"


def aim_at_the_controller(template: Template) -> None:
    controller = named(template, "Custom::TrainingRun")[1]["Properties"]["ServiceToken"]
    for rule in of_type(template, "AWS::Events::Rule"):
        for target in rule["Properties"]["Targets"]:
            target["Arn"] = controller


def take_its_permission(template: Template) -> None:
    for _, statement in guards.allowed(template):
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        statement["Action"] = [item for item in actions if item != "ec2:TerminateInstances"] or [
            "ec2:DescribeInstances"
        ]


@pytest.mark.parametrize(
    "breakage",
    [
        lambda template: drop(template, "AWS::Events::Rule"),
        lambda template: drop(template, "AWS::Lambda::Permission"),
        break_schedule,
        disable,
        aim_at_the_controller,
        take_its_permission,
    ],
    ids=[
        "no rule",
        "rule may not call it",
        "no schedule",
        "rule disabled",
        "rule calls another",
        "it may not terminate",
    ],
)
def test_a_stack_without_a_working_terminator(training, breakage: Callable[[Template], None]):
    breakage(training)
    one_problem(training, "the auto-terminator is missing")


@pytest.mark.parametrize("key", ["AlarmActions", "Dimensions"])
def test_an_alarm_that_tells_nobody_or_watches_nothing_is_none(training, key):
    for alarm in of_type(training, "AWS::CloudWatch::Alarm"):
        alarm["Properties"].pop(key, None)
    one_problem(training, "no alarm with an action")


def test_a_muted_alarm_is_none(training):
    for alarm in of_type(training, "AWS::CloudWatch::Alarm"):
        alarm["Properties"]["ActionsEnabled"] = False
    one_problem(training, "no alarm with an action")


# --- cost tag ---------------------------------------------------------------------------------------------------------
def test_every_resource_needs_the_cost_tag_or_is_of_a_type_without_tags(both):
    for stack, template in both.items():
        for name, resource in template["Resources"].items():
            if resource["Type"] in guards.UNTAGGABLE:
                continue
            broken = copy.deepcopy(template)
            broken["Resources"][name]["Properties"].pop("Tags", None)
            broken["Resources"][name]["Properties"].pop("TagSpecifications", None)
            one_problem(broken, f"{name} (", training=stack == "TrainingStack")


@pytest.mark.parametrize("kind", ["instance", "volume", "network-interface"])
def test_what_is_launched_needs_the_cost_tag(training, kind):
    launch = named(training, "AWS::EC2::LaunchTemplate")[1]["Properties"]["LaunchTemplateData"]
    launch["TagSpecifications"] = [item for item in launch["TagSpecifications"] if item["ResourceType"] != kind]
    one_problem(training, f"launches a {kind} without the cost tag")


def test_an_empty_cost_tag_is_none(data):
    _, bucket = named(data, "AWS::S3::Bucket")
    bucket["Properties"]["Tags"] = [{"Key": contract.LAB_TAG, "Value": ""}]
    one_problem(data, "lacks the cost tag", training=False)


# --- ingress, public buckets ------------------------------------------------------------------------------------------
def test_an_inline_ingress_rule(training):
    _, group = named(training, "AWS::EC2::SecurityGroup")
    group["Properties"]["SecurityGroupIngress"] = [{"IpProtocol": "tcp", "FromPort": 22, "CidrIp": "10.0.0.0/8"}]
    one_problem(training, "has an ingress rule")


def test_an_ingress_rule_of_its_own(training):
    training["Resources"]["Door"] = {"Type": "AWS::EC2::SecurityGroupIngress", "Properties": {}}
    one_problem(training, "Door is an ingress rule")


@given(flags=st.fixed_dictionaries({key: st.sampled_from([True, False, None, "true"]) for key in guards.ACCESS_BLOCK}))
@settings(max_examples=examples(60))
def test_anything_but_a_full_access_block_is_public(flags):
    block = {key: value for key, value in flags.items() if value is not None}
    bucket = {"Type": "AWS::S3::Bucket", "Properties": {"PublicAccessBlockConfiguration": block, "Tags": TAGS}}
    problems = guards.problems({"Resources": {"Bucket": bucket}}, training=False)
    assert (problems == []) == (set(flags.values()) == {True})


TAGS = [{"Key": contract.LAB_TAG, "Value": "default"}]


@pytest.mark.parametrize("acl", guards.PUBLIC_ACLS)
def test_a_public_acl(data, acl):
    _, bucket = named(data, "AWS::S3::Bucket")
    bucket["Properties"]["AccessControl"] = acl
    one_problem(data, f"public ACL {acl}", training=False)


@pytest.mark.parametrize("principal", ["*", {"AWS": "*"}, {"AWS": ["arn:aws:iam::1:root", "*"]}])
def test_a_public_bucket_policy(data, principal):
    _, policy = named(data, "AWS::S3::BucketPolicy")
    policy["Properties"]["PolicyDocument"]["Statement"].append(
        {"Effect": "Allow", "Principal": principal, "Action": "s3:GetObject", "Resource": "*"}
    )
    one_problem(data, "lets everybody into a bucket", training=False)


# --- who may end an instance
# ------------------------------------------------------------------------------------------------
SUFFIX = {"Fn::Select": [0, {"Fn::Split": ["-", {"Ref": "AWS::StackId"}]}]}
OWN_GROUP = {"Fn::Join": ["", ["arn:aws:autoscaling:::autoScalingGroup:*:autoScalingGroupName/", {"Ref": "Group"}]]}
BOUNDED = (
    {"Resource": "*", "Condition": {"StringEquals": {f"aws:ResourceTag/{contract.STACK_TAG}": SUFFIX}}},
    {"Resource": "*", "Condition": {"StringEquals": {f"ec2:ResourceTag/{contract.STACK_TAG}": SUFFIX}}},
    {"Resource": OWN_GROUP},
    {"Resource": [OWN_GROUP]},
)
UNBOUNDED = (
    {"Resource": "*"},
    {"Resource": []},
    {"Resource": [OWN_GROUP, "*"]},
    {"Resource": {"Fn::Join": ["", ["autoScalingGroupName/", {"Ref": "Group"}, "*"]]}},
    {"Resource": {"Fn::Join": ["", ["autoScalingGroupName/", {"Ref": "AWS::Region"}]]}},
    {"Resource": "*", "Condition": {"StringLike": {f"aws:ResourceTag/{contract.STACK_TAG}": SUFFIX}}},
    {"Resource": "*", "Condition": {"StringEqualsIfExists": {f"aws:ResourceTag/{contract.STACK_TAG}": SUFFIX}}},
    {"Resource": "*", "Condition": {"StringEquals": {f"aws:ResourceTag/{contract.STACK_TAG}": "x"}}},
    {"Resource": "*", "Condition": {"StringEquals": {f"aws:ResourceTag/{contract.LAB_TAG}": SUFFIX}}},
    {"Resource": "*", "Condition": {"StringEquals": {f"aws:RequestTag/{contract.STACK_TAG}": SUFFIX}}},
)
ACTIONS = (*guards.ENDING_ACTIONS, "ec2:Terminate*", "ec2:*", "autoscaling:*", "*", "EC2:terminateinstances")


def template_with(statement: dict[str, Any]) -> Template:
    policy = {"PolicyDocument": {"Statement": [{"Effect": "Allow", **statement}]}, "Roles": []}
    group = {"Type": "AWS::AutoScaling::AutoScalingGroup", "Properties": {"Tags": TAGS}}
    return {"Resources": {"Policy": {"Type": "AWS::IAM::Policy", "Properties": policy}, "Group": group}}


@given(action=st.sampled_from(ACTIONS), bound=st.sampled_from(BOUNDED))
@settings(max_examples=examples(60))
def test_a_bounded_ending_is_fine(action, bound):
    assert guards.problems(template_with({"Action": action, **bound}), training=False) == []


@given(
    action=st.sampled_from(ACTIONS), bound=st.sampled_from(UNBOUNDED), beside=st.sampled_from([[], ["s3:GetObject"]])
)
@settings(max_examples=examples(120))
def test_an_unbounded_ending_is_a_problem(action, bound, beside):
    problems = guards.problems(template_with({"Action": [*beside, action], **bound}), training=False)
    assert len(problems) == 1
    assert "beyond its own stack" in problems[0]


def test_everything_but_is_an_ending_too():
    assert guards.problems(template_with({"NotAction": "s3:*", "Resource": "*"}), training=False)
    assert not guards.problems(
        template_with({"NotAction": ["ec2:*", "autoscaling:*"], "Resource": "*"}), training=False
    )


def test_a_policy_inside_a_role_counts():
    role = {
        "Tags": TAGS,
        "Policies": [
            {"PolicyDocument": {"Statement": {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*"}}}
        ],
    }
    problems = guards.problems({"Resources": {"Role": {"Type": "AWS::IAM::Role", "Properties": role}}}, training=False)
    assert "beyond its own stack" in problems[0]


def test_a_managed_policy_cannot_be_bounded():
    role = {"Tags": TAGS, "ManagedPolicyArns": ["arn:aws:iam::aws:policy/AdministratorAccess"]}
    problems = guards.problems({"Resources": {"Role": {"Type": "AWS::IAM::Role", "Properties": role}}}, training=False)
    assert "nobody here can bound" in problems[0]


@pytest.mark.parametrize("sid", ["EndsItself", "Scales"])
def test_the_real_permissions_become_problems_when_their_bound_goes(training, sid):
    for _, statement in guards.allowed(training):
        if statement.get("Sid") == sid:
            statement.pop("Condition", None)
            statement["Resource"] = "*"
    one_problem(training, "beyond its own stack")


# --- the edge ---------------------------------------------------------------------------------------------------------
def test_a_broken_guard_is_an_error_annotation_and_no_exception():
    app, _, training = whole_app()
    training.node.find_child("Network").security_group.add_ingress_rule(
        cdk.aws_ec2.Peer.any_ipv4(), cdk.aws_ec2.Port.tcp(22)
    )
    guards.synth(app, training=training)
    text = "".join(path.read_text() for path in metadata(app))
    assert "Guard: NetworkInstance" in text
    assert '"aws:cdk:error"' in text


def test_a_whole_app_is_synthesised_once_and_says_nothing():
    app, _, training = whole_app()
    guards.synth(app, training=training)
    assert "Guard:" not in "".join(path.read_text() for path in metadata(app))


def test_cdks_own_rules_warn_and_never_block_a_destroy():
    """They fail synth with the flag that `cdk init` sets; the linters' tests hold the templates to the same rules."""
    app, _, training = whole_app()
    cdk.CfnResource(training, "Bad", type="AWS::EC2::SecurityGroup", properties={"GroupDescription": 1, "NoSuch": 1})
    guards.synth(app, training=training)
    assert (Path(app.outdir) / training.template_file).exists()


def test_app_py_is_guarded():
    text = (ROOT / "app.py").read_text()
    assert "guards.synth(app, training=training)" in text
    assert "app.synth(" not in text


def metadata(app: cdk.App) -> list[Path]:
    return [*Path(app.outdir).glob("*.metadata.json"), Path(app.outdir) / "manifest.json"]


def of_type(template: Template, kind: str) -> list[dict[str, Any]]:
    return [item for item in template["Resources"].values() if item["Type"] == kind]


def statements(template: Template, role: str) -> list[dict[str, Any]]:
    """Statements of the policies attached to the role whose logical id starts with ``role``."""
    return [
        statement
        for policy in of_type(template, "AWS::IAM::Policy")
        if any(attached["Ref"].startswith(role) for attached in policy["Properties"]["Roles"])
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
    ]
