"""The template of what ends, alarms and warns."""

import json

import pytest
from aws_cdk.assertions import Match, Template

from lab_constructs.safety import LOOK_EVERY_MINUTES
from tests.support.stacks import only, training_template
from training_image.config.lab_settings import LabConfig


@pytest.fixture(scope="module")
def training() -> Template:
    return training_template()


def rules(template: Template) -> list[dict]:
    return [rule["Properties"] for rule in template.find_resources("AWS::Events::Rule").values()]


def test_the_terminator_looks_every_few_minutes_and_on_events(training):
    schedules = [rule["ScheduleExpression"] for rule in rules(training) if "ScheduleExpression" in rule]
    assert schedules == [f"rate({LOOK_EVERY_MINUTES} minutes)"]
    (pattern,) = [rule["EventPattern"] for rule in rules(training) if "EventPattern" in rule]
    for event in ("State-change Notification", "Spot Instance Interruption Warning", "Terminate Successful"):
        assert any(event in kind for kind in pattern["detail-type"])
    for rule in rules(training):
        (target,) = rule["Targets"]
        assert "SafetyTerminator" in json.dumps(target["Arn"])


def test_the_terminator_ends_instances_with_its_stacks_tag_only(training):
    (policy,) = [
        policy["Properties"]["PolicyDocument"]["Statement"]
        for policy in training.find_resources("AWS::IAM::Policy").values()
        if policy["Properties"]["Roles"][0]["Ref"].startswith("SafetyRole")
    ]
    (statement,) = [item for item in policy if item["Action"] == "ec2:TerminateInstances"]
    (key,) = statement["Condition"]["StringEquals"]
    assert key == "aws:ResourceTag/llm-tuning-lab:stack"
    assert "AWS::StackId" in json.dumps(statement["Condition"])
    writes = [item for item in policy if item["Action"] == "s3:PutObject"]
    assert len(writes) == 1
    assert all("/outcome.json" in json.dumps(r) or "/events/*" in json.dumps(r) for r in writes[0]["Resource"])


@pytest.mark.parametrize(("hours", "periods"), [(12, 12), (0.5, 1), (36.5, 37), (336, 168)])
def test_the_runtime_alarm_counts_hours_as_the_original_promised(hours, periods):
    template = training_template(LabConfig(max_runtime_hours=hours))
    template.has_resource_properties(
        "AWS::CloudWatch::Alarm",
        {
            "Namespace": "AWS/AutoScaling",
            "MetricName": "GroupInServiceInstances",
            "Period": 3600,
            "EvaluationPeriods": periods,
            "TreatMissingData": "notBreaching",
            # The operator is told, and the terminator looks.
            "AlarmActions": Match.array_with([{"Fn::GetAtt": [Match.string_like_regexp("SafetyTerminator"), "Arn"]}]),
        },
    )


def test_a_failing_terminator_is_told(training):
    training.has_resource_properties(
        "AWS::CloudWatch::Alarm",
        {
            "Namespace": "AWS/Lambda",
            "MetricName": "Errors",
            "AlarmActions": [{"Ref": Match.string_like_regexp("AlertTopicArn")}],
        },
    )


def budget(config: LabConfig) -> dict:
    return only(training_template(config), "AWS::Budgets::Budget")["Properties"]


def test_the_budget_warns_at_half_at_four_fifths_at_all_and_at_the_forecast():
    properties = budget(LabConfig(cost_alert_threshold=80))
    assert properties["Budget"]["BudgetLimit"] == {"Amount": 80, "Unit": "USD"}
    assert properties["Budget"]["TimeUnit"] == "MONTHLY"
    warnings = [item["Notification"] for item in properties["NotificationsWithSubscribers"]]
    assert [(item["NotificationType"], item["Threshold"]) for item in warnings] == [
        ("ACTUAL", 50),
        ("ACTUAL", 80),
        ("ACTUAL", 100),
        ("FORECASTED", 100),
    ]
    for item in properties["NotificationsWithSubscribers"]:
        (subscriber,) = item["Subscribers"]
        assert subscriber["SubscriptionType"] == "SNS"


def test_the_budget_counts_by_tag_only_once_the_tag_is_active():
    assert budget(LabConfig())["Budget"]["CostFilters"] == {"Service": ["Amazon Elastic Compute Cloud - Compute"]}
    by_tag = budget(LabConfig(lab="mine", cost_tag_active=True))["Budget"]["CostFilters"]
    assert by_tag == {"TagKeyValue": ["user:llm-tuning-lab:lab$mine"]}
