"""A run controller that never answers: how long a stack waits for it, and the way out in the docs."""

import json
import re
import time

import boto3
import pytest

from tests.support.box import REGION
from tests.support.stacks import ROOT, training_template

SILENT_ON_DELETE = """
import json, urllib.request

def handler(event, context):
    if event["RequestType"] == "Delete":
        return
    answer = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
    answer |= {"Status": "SUCCESS", "PhysicalResourceId": "training-run"}
    body = json.dumps(answer).encode()
    urllib.request.urlopen(urllib.request.Request(event["ResponseURL"], data=body, method="PUT"))
"""
TRUST = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
END_SECONDS = 180


@pytest.fixture
def cloudformation(s3_endpoint):
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("cloudformation", endpoint_url=s3_endpoint, region_name=REGION, **keys)


def ended(cloudformation, stack_id):
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        status = cloudformation.describe_stacks(StackName=stack_id)["Stacks"][0]["StackStatus"]
        if not status.endswith("IN_PROGRESS"):
            return status
        time.sleep(0.1)
    raise AssertionError(f"still {status}")


def test_a_stack_waits_no_longer_than_the_service_timeout_and_goes_without_the_answer(cloudformation):
    ((run, resource),) = training_template().find_resources("Custom::TrainingRun").items()
    assert resource["Properties"]["ServiceTimeout"] == "900"
    code = {"Runtime": "python3.12", "Handler": "index.handler", "Code": {"ZipFile": SILENT_ON_DELETE}}
    trusted = {"AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [TRUST]}}
    asked = {"ServiceToken": {"Fn::GetAtt": ["Silent", "Arn"]}, "ServiceTimeout": "2"}
    resources = {
        "Role": {"Type": "AWS::IAM::Role", "Properties": trusted},
        "Silent": {"Type": "AWS::Lambda::Function", "Properties": {**code, "Role": {"Fn::GetAtt": ["Role", "Arn"]}}},
        run: {"Type": resource["Type"], "Properties": asked},
    }
    stack = cloudformation.create_stack(StackName="silent", TemplateBody=json.dumps({"Resources": resources}))
    assert ended(cloudformation, stack["StackId"]) == "CREATE_COMPLETE"

    began = time.monotonic()
    cloudformation.delete_stack(StackName="silent")
    assert ended(cloudformation, stack["StackId"]) == "DELETE_FAILED"
    assert time.monotonic() - began >= 2

    (retained,) = re.findall(r"--retain-resources (\w+)", (ROOT / "docs" / "troubleshooting.md").read_text())
    cloudformation.delete_stack(StackName="silent", RetainResources=[retained])
    assert ended(cloudformation, stack["StackId"]) == "DELETE_COMPLETE"
