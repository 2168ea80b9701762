"""A lab that is deployed, as far as the operator's commands look: stacks with the outputs of the real ones."""

import json

import boto3

DATA = {"TrainingBucket": "in-1", "OutputsBucket": "out-1", "RepositoryUri": "1.dkr/lab", "AlertTopicArn": "arn:topic"}
TRAINING = {
    "AutoScalingGroupName": "group-1",
    "RunId": "run-12345678-1",
    "RunPrefix": "s3://out-1/runs/run-12345678-",
    "DashboardUrl": "https://console",
    "TrainingLog": "log-1",
    "ConnectCommand": 'aws ssm start-session --target "$(x)"',
}


def deploy(name: str, outputs: dict[str, str]) -> None:
    """A stack that has these outputs."""
    parameter = {"Type": "AWS::SSM::Parameter", "Properties": {"Type": "String", "Value": "x", "Name": f"/{name}"}}
    template = {"Resources": {"P": parameter}, "Outputs": {key: {"Value": value} for key, value in outputs.items()}}
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(StackName=name, TemplateBody=json.dumps(template))
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
