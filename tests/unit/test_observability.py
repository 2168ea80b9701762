"""TrainingStack's dashboard, log group and the instance's permissions to fill them."""

import json
import re

import pytest
from aws_cdk.assertions import Match, Template

from tests.support.stacks import only, training_template
from training_image.config.lab_settings import LabConfig
from training_image.core import contract
from training_image.supervisor import cloudwatch


@pytest.fixture(scope="module")
def template() -> Template:
    return training_template(LabConfig(alert_email="me@example.com"))


def dashboard(template: Template) -> dict:
    """The dashboard's body, references left out as ``<>``."""
    body = only(template, "AWS::CloudWatch::Dashboard")["Properties"]["DashboardBody"]
    parts = body["Fn::Join"][1]
    return json.loads("".join(part if isinstance(part, str) else "<>" for part in parts))


def training_log(template: Template) -> tuple[str, dict]:
    groups = template.find_resources("AWS::Logs::LogGroup")
    (found,) = [(name, group) for name, group in groups.items() if name.startswith("Observability")]
    return found


def statement(template: Template, sid: str) -> dict:
    policies = template.find_resources("AWS::IAM::Policy").values()
    (found,) = [
        item for policy in policies for item in policy["Properties"]["PolicyDocument"]["Statement"]
        if item.get("Sid") == sid
    ]  # fmt: skip
    return found


def test_the_dashboard_shows_every_metric_the_instance_publishes_under_the_stacks_name(template):
    shown = {
        metric[1]: metric[:4]
        for widget in dashboard(template)["widgets"]
        for metric in widget["properties"].get("metrics", [])
    }
    assert set(shown) == {*cloudwatch.UNITS, "GroupInServiceInstances"}
    for name in cloudwatch.UNITS:
        assert shown[name] == [contract.METRIC_NAMESPACE, name, "Stack", "TrainingStack"]


def test_the_dashboard_shows_the_end_of_the_training_log(template):
    (log,) = [widget for widget in dashboard(template)["widgets"] if widget["type"] == "log"]
    assert "@message" in log["properties"]["query"]
    assert "sort @timestamp desc" in log["properties"]["query"]


def test_the_instances_on_the_dashboard_are_counted_by_the_group(template):
    group = only(template, "AWS::AutoScaling::AutoScalingGroup")["Properties"]
    (collected,) = group["MetricsCollection"]
    assert "GroupInServiceInstances" in collected["Metrics"]


def test_log_and_dashboard_have_no_fixed_name_and_go_with_the_stack(template):
    _, group = training_log(template)
    assert group["DeletionPolicy"] == "Delete"
    assert group["Properties"]["RetentionInDays"] == 30
    assert "LogGroupName" not in group["Properties"]
    assert "DashboardName" not in only(template, "AWS::CloudWatch::Dashboard")["Properties"]


def test_the_instance_writes_one_log_group_and_one_namespace(template):
    name, _ = training_log(template)
    log = statement(template, "WritesTrainingLog")
    assert log["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"], "never logs:CreateLogGroup"
    assert log["Resource"] == {"Fn::GetAtt": [name, "Arn"]}
    assert statement(template, "PutsMetrics") == {
        "Sid": "PutsMetrics",
        "Effect": "Allow",
        "Action": "cloudwatch:PutMetricData",
        "Resource": "*",
        "Condition": {"StringEquals": {"cloudwatch:namespace": contract.METRIC_NAMESPACE}},
    }


def test_the_run_is_created_after_log_and_dashboard_and_knows_the_log(template):
    name, _ = training_log(template)
    (board,) = template.find_resources("AWS::CloudWatch::Dashboard")
    run = only(template, "Custom::TrainingRun")
    assert {name, board} <= set(run["DependsOn"])
    spec = run["Properties"]["Spec"]["Fn::Join"][1]
    before = spec[spec.index({"Ref": name}) - 1]
    assert re.search(r'"log_group": "$', before)


def test_dashboard_and_log_are_outputs(template):
    name, _ = training_log(template)
    template.has_output("TrainingLog", {"Value": {"Ref": name}})
    template.has_output("DashboardUrl", {"Value": {"Fn::Join": ["", Match.any_value()]}})
