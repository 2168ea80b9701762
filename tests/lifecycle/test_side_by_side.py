"""Two runs at once, a DataStack that changes under them, and `cdk destroy` in every phase of a run's life."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.stage import ENDLESS, LONG, QUICK, SHORT, Stage
from training_image.core import contract

pytestmark = pytest.mark.lifecycle


def inventory(stage: Stage) -> set[str]:
    """Everything in the account that a stack could leave behind, by kind and name."""

    def names(service: str, call: str, listed: str, name: str, **arguments: Any) -> Iterator[str]:
        for item in getattr(stage.cloud.client(service), call)(**arguments)[listed]:
            yield f"{service}:{item if name == '' else item[name]}"

    found = [
        names("ec2", "describe_vpcs", "Vpcs", "VpcId"),
        names("ec2", "describe_subnets", "Subnets", "SubnetId"),
        names("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
        names("ec2", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
        names("ec2", "describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
        names("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups", "AutoScalingGroupName"),
        names("autoscaling", "describe_scheduled_actions", "ScheduledUpdateGroupActions", "ScheduledActionName"),
        names("iam", "list_roles", "Roles", "RoleName"),
        names("iam", "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
        names("lambda", "list_functions", "Functions", "FunctionName"),
        names("logs", "describe_log_groups", "logGroups", "logGroupName"),
        names("events", "list_rules", "Rules", "Name"),
        names("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
        names("cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
        names("sns", "list_topics", "Topics", "TopicArn"),
        names("budgets", "describe_budgets", "Budgets", "BudgetName", AccountId="000000000000"),
    ]
    return {name for some in found for name in some}


def gone(stage: Stage, before: set[str]) -> None:
    """Nothing costs money and nothing is left that was not there before."""
    assert not stage.instances()
    # The account's spot role outlives every stack, as on AWS.
    assert {name for name in inventory(stage) - before if "AWSServiceRoleFor" not in name} == set()


def durable(stage: Stage, run_id: str, beyond: int = 0) -> Callable[[], int]:
    """Condition: a checkpoint of a step after ``beyond`` is durable."""
    return lambda: max(0, (stage.heartbeat(run_id).get("durable_step") or 0) - beyond)


def test_two_runs_train_at_once_and_data_stack_changes_under_them(stage: Stage):
    before = inventory(stage)
    first, second = (
        stage.deploy("-c", f"run={run}", *stage.trainer(ENDLESS), **LONG)["RunId"] for run in ("one", "two")
    )
    for run_id in (first, second):
        stage.wait("a checkpoint", durable(stage, run_id), run_id)
    assert len(stage.instances()) == 2

    changed = stage.cdk("deploy", "DataStack", "--require-approval", "never", "-c", "alert_email=me@example.com")
    assert changed.returncode == 0, changed.stdout
    assert "TrainingStack" not in changed.stdout
    step = stage.heartbeat(second)["durable_step"]
    stage.destroy("one")
    outcome = stage.outcome(first)
    assert outcome is not None
    assert outcome["reason"] == "stopped"
    assert len(stage.instances()) == 1, "the other run's box is left alone"
    stage.wait("the other run goes on", durable(stage, second, beyond=step), second)
    assert stage.heartbeat(second)["attempt"] == 1
    assert stage.outcome(second) is None
    stage.destroy("two")
    gone(stage, before)


def test_destroy_before_there_was_any_capacity(stage: Stage):
    before = inventory(stage)
    stage.cloud.fault("no-capacity", on=True)
    run_id = stage.deploy(*stage.trainer(QUICK), **SHORT)["RunId"]
    assert not stage.instances(), "a deploy neither waits for capacity nor fails without"
    stage.destroy()
    stage.cloud.fault("no-capacity", on=False)
    outcome = stage.outcome(run_id)
    assert outcome is not None
    assert (outcome["reason"], outcome["by"]) == ("stopped", "controller")
    gone(stage, before)


def test_destroy_while_the_instance_boots(stage: Stage):
    before = inventory(stage)
    run_id = stage.deploy(*stage.trainer(ENDLESS), **LONG)["RunId"]
    stage.destroy()
    outcome = stage.outcome(run_id)
    assert outcome is not None
    assert outcome["reason"] == "stopped"
    gone(stage, before)


def test_destroy_while_results_are_uploaded(stage: Stage):
    """The upload is made slow; what a run has finished is not lost to an impatient operator."""
    before = inventory(stage)
    run_id = stage.deploy(*stage.trainer(QUICK), **SHORT)["RunId"]
    slow = {"latency_seconds": 12.0, "only_keys_with": "/adapter/"}
    stage.cloud.fault("s3", settings=slow)
    stage.wait("the upload", lambda: stage.heartbeat(run_id).get("phase") == "uploading", run_id)
    stage.destroy()
    stage.cloud.fault("s3", settings={})
    outcome = stage.outcome(run_id)
    assert outcome is not None
    assert outcome["reason"] == "succeeded", stage.log(run_id)
    assert contract.RunKeys(run_id).adapter + "adapter_model.safetensors" in stage.objects("runs/")
    gone(stage, before)
