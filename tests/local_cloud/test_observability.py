"""An instance's figures and log reach CloudWatch with the very permissions that the template gives its role."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_cloud.cloud import ACCOUNT, REGION
from tests.support.local_lab import Lab, wait_for
from tests.support.runs import run_json
from tests.support.stacks import training_template
from training_image.core import contract

ROOT = Path(__file__).parents[2]
RUN_ID, LOG_GROUP, STACK = "run-12345678-1", "the-training-log", "TrainingStack"
USER_DATA = """#!/bin/bash
export AWS_DEFAULT_REGION=us-east-1
aws ecr get-login-password | docker login --username AWS --password-stdin "@HOST@"
docker pull "@IMAGE@"
docker run --rm --name training --ipc=host -v @WORK@:@WORK@ -e AWS_DEFAULT_REGION=us-east-1 @IMAGE@ \
  --bucket box-outputs --run-id @RUN_ID@ --work-dir @WORK@ --interval 0.3 >"$DESTDIR/supervisor.log" 2>&1
"""


@pytest.fixture(scope="module")
def statements() -> list[dict[str, Any]]:
    """What the template lets the instance do in CloudWatch, with its log group filled in."""
    policies = training_template().find_resources("AWS::IAM::Policy").values()
    found = [
        statement
        for policy in policies
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if statement.get("Sid") in ("WritesTrainingLog", "PutsMetrics")
    ]
    (log,) = [statement for statement in found if statement["Sid"] == "WritesTrainingLog"]
    log["Resource"] = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{LOG_GROUP}:*"  # what Fn::GetAtt Arn gives
    return found


def push_supervisor(lab: Lab) -> str:
    """An image that holds the product's own package."""
    context = lab.scratch / "supervisor"
    shutil.copytree(ROOT / "training_image", context)
    (context / "Dockerfile").write_text(
        "FROM python:3.11-slim\nWORKDIR /app\nCOPY . training_image/\n"
        'ENTRYPOINT ["python", "-m", "training_image.supervisor"]\n'
    )
    uri = lab.image.replace(":1", ":supervisor")
    for step in (("build", "--tag", "supervisor", "."), ("tag", "supervisor", uri), ("push", uri)):
        result = lab.docker(*step, cwd=context)
        assert result.returncode == 0, result.stderr
    return uri


def test_figures_and_log_arrive_through_the_instance_role(
    lab: Lab, statements: list[dict[str, Any]], tmp_path: Path
) -> None:
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    lab.cloud.client("iam").put_role_policy(RoleName="box", PolicyName="cloudwatch", PolicyDocument=policy)
    logs, cloudwatch = lab.cloud.client("logs"), lab.cloud.client("cloudwatch")
    logs.create_log_group(logGroupName=LOG_GROUP)
    work, keys = tmp_path / "work", contract.RunKeys(RUN_ID)
    settings = {"model": {"base_model": f"s3://{lab.bucket}/model/"}}
    work.mkdir()
    run = run_json(
        run_id=RUN_ID,
        max_attempts=3,
        data_uri=f"s3://{lab.bucket}/data/",
        settings=settings,
        training_command=[sys.executable, str(ROOT / "tests/support/fake_trainer.py")],
        stack_name=STACK,
        log_group=LOG_GROUP,
    )
    lab.s3.put_object(Bucket=lab.bucket, Key=keys.run, Body=json.dumps(run).encode())
    lab.s3.put_object(Bucket=lab.bucket, Key="model/config.json", Body=b"{}")
    lab.s3.put_object(Bucket=lab.bucket, Key="data/train.jsonl", Body=b'{"prompt": "a", "completion": "b"}\n')

    image = push_supervisor(lab)
    script = USER_DATA
    values = {"HOST": image.split("/")[0], "IMAGE": image, "WORK": str(work), "RUN_ID": RUN_ID}
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    box = lab.up(lab.group("observed", script))
    said = lab.box(box) / "supervisor.log"
    wait_for("an outcome", lambda: lab.object(keys.outcome) or (said.exists() and "failed:" in said.read_text()))
    assert lab.object(keys.outcome), said.read_text()

    def lines() -> str:
        found = logs.get_log_events(logGroupName=LOG_GROUP, logStreamName=f"{RUN_ID}/1", startFromHead=True)
        return "\n".join(event["message"] for event in found["events"])

    wait_for("the log's last line", lambda: "Attempt 1 is over: 6 steps" in lines())
    assert "starting at step 0" in lines(), "the trainer's own lines too"
    assert "CloudWatch did not take" not in said.read_text()
    figures = {"Step": 6, "DurableStep": 6, "Attempt": 1}
    dimensions = [{"Name": "Stack", "Value": STACK}]
    for name, value in figures.items():
        found = cloudwatch.get_metric_statistics(
            Namespace=contract.METRIC_NAMESPACE,
            MetricName=name,
            Dimensions=dimensions,
            StartTime=datetime.now(UTC) - timedelta(hours=1),
            EndTime=datetime.now(UTC) + timedelta(minutes=5),
            Period=3600,
            Statistics=["Maximum"],
        )["Datapoints"]
        assert max(point["Maximum"] for point in found) == value, name


def test_no_other_log_group_and_no_other_namespace(lab: Lab, statements: list[dict[str, Any]]) -> None:
    iam = lab.cloud.client("iam")
    iam.create_user(UserName="like-the-box")
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.put_user_policy(UserName="like-the-box", PolicyName="cloudwatch", PolicyDocument=policy)
    key = iam.create_access_key(UserName="like-the-box")["AccessKey"]
    keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    logs, cloudwatch = lab.cloud.client("logs", **keys), lab.cloud.client("cloudwatch", **keys)
    datum = [{"MetricName": "Step", "Value": 1.0}]

    cloudwatch.put_metric_data(Namespace=contract.METRIC_NAMESPACE, MetricData=datum)
    for namespace in ("AWS/EC2", "LLMTuningLabs"):
        with pytest.raises(ClientError, match="AccessDenied"):
            cloudwatch.put_metric_data(Namespace=namespace, MetricData=datum)
    for group in ("another", f"{LOG_GROUP}-2"):
        lab.cloud.client("logs").create_log_group(logGroupName=group)
        with pytest.raises(ClientError, match="AccessDenied"):
            logs.create_log_stream(logGroupName=group, logStreamName="s")
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.create_log_group(logGroupName="a-new-one")
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.get_log_events(logGroupName=LOG_GROUP, logStreamName=f"{RUN_ID}/1")
