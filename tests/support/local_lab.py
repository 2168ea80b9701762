"""A local cloud with the AWS objects that an instance needs, without the product's stacks."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_cloud.cloud import SHIMS, LocalCloud

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Poll until ``condition`` holds; the message says what did not happen. The bound is a busy machine's."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


class Lab:
    """A bucket, a repository with a pushed image, and a role: what user data works with."""

    def __init__(self, cloud: LocalCloud, scratch: Path) -> None:
        self.cloud, self.scratch = cloud, scratch
        self.s3, self.asg, self.ec2 = (cloud.client(name) for name in ("s3", "autoscaling", "ec2"))
        self.bucket, self.other = "box-outputs", "not-for-boxes"
        for bucket in (self.bucket, self.other):
            self.s3.create_bucket(Bucket=bucket)
        self.image = self.push_image()
        self.make_role()
        self.made: list[str] = []

    def docker(self, *arguments: str, text: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SHIMS / "docker"), *arguments],
            env=self.cloud.environ(), input=text, cwd=cwd, capture_output=True, text=True,
        )  # fmt: skip

    def push_image(self) -> str:
        uri = self.cloud.client("ecr").create_repository(repositoryName="lab/app")["repository"]["repositoryUri"]
        context = self.scratch / "context"
        context.mkdir()
        (context / "__init__.py").write_text("WHERE = 'the copy'\n")
        (context / "app.py").write_text(APP)
        (context / "Dockerfile").write_text(
            "FROM python:3.11-slim\nRUN pip install boto3\nWORKDIR /app\n"
            "COPY . training_image/\nENV BASE=image\n"
            'ENTRYPOINT ["python", "-m", "training_image.app"]\n'
        )
        host = uri.split("/")[0]
        steps = [
            ("login", "--username", "AWS", "--password-stdin", host),
            ("build", "--tag", "app", "."),
            ("tag", "app", f"{uri}:1"),
            ("push", f"{uri}:1"),
        ]
        for step in steps:
            result = self.docker(*step, text="token", cwd=context)
            assert result.returncode == 0, result.stderr
        return f"{uri}:1"

    def make_role(self) -> None:
        iam = self.cloud.client("iam")
        iam.create_role(RoleName="box", AssumeRolePolicyDocument=json.dumps(TRUST))
        statements = [
            {
                "Effect": "Allow",
                "Action": "s3:*",
                "Resource": [f"arn:aws:s3:::{self.bucket}", f"arn:aws:s3:::{self.bucket}/*"],
            },
            {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"},
            {
                "Effect": "Allow",
                "Action": ["autoscaling:TerminateInstanceInAutoScalingGroup", "autoscaling:CompleteLifecycleAction"],
                "Resource": "*",
                "Condition": {"StringEquals": {"autoscaling:ResourceTag/lab": "mine"}},
            },
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        iam.put_role_policy(RoleName="box", PolicyName="p", PolicyDocument=policy)
        iam.create_instance_profile(InstanceProfileName="box")
        iam.add_role_to_instance_profile(InstanceProfileName="box", RoleName="box")

    def group(self, name: str, user_data: str, *, hook_seconds: int | None = None, lab: str = "mine") -> str:
        """A group of at most one spot instance with ``user_data``, still at 0."""
        template = self.ec2.create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData={
                "ImageId": "ami-0123456789abcdef0",
                "InstanceType": "g5.xlarge",
                "UserData": base64.b64encode(user_data.encode()).decode(),
                "IamInstanceProfile": {"Name": "box"},
                "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "from", "Value": "template"}]}],
            },
        )["LaunchTemplate"]
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=0,
            AvailabilityZones=["us-east-1a"],
            MixedInstancesPolicy={
                "LaunchTemplate": {
                    "LaunchTemplateSpecification": {
                        "LaunchTemplateId": template["LaunchTemplateId"],
                        "Version": "$Latest",
                    },
                    "Overrides": [{"InstanceType": "g6.xlarge"}, {"InstanceType": "g5.xlarge"}],
                },
                "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 0, "OnDemandBaseCapacity": 0},
            },
            Tags=[{"Key": "lab", "Value": lab, "PropagateAtLaunch": True}],
        )
        if hook_seconds is not None:
            self.asg.put_lifecycle_hook(
                AutoScalingGroupName=name, LifecycleHookName="drain", HeartbeatTimeout=hook_seconds,
                LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING", DefaultResult="CONTINUE",
            )  # fmt: skip
        self.made.append(name)
        return name

    def up(self, name: str) -> str:
        """Set the group to one instance, and return its id once it serves."""
        self.asg.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=1, DesiredCapacity=1)
        return str(wait_for("a box", lambda: self.members(name))[0]["InstanceId"])

    def describe(self, name: str) -> dict[str, Any]:
        groups = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return dict(groups[0])

    def members(self, name: str) -> list[dict[str, Any]]:
        return list(self.describe(name)["Instances"])

    def last_cause(self, name: str) -> str:
        """Of the newest termination."""
        activities = self.asg.describe_scaling_activities(AutoScalingGroupName=name)["Activities"]
        return str(next(a["Cause"] for a in activities if a["Description"].startswith("Terminating")))

    def state(self, instance_id: str) -> str:
        found = self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        return str(found[0]["Instances"][0]["State"]["Name"])

    def box(self, instance_id: str) -> Path:
        return self.cloud.state / "boxes" / instance_id

    def object(self, key: str) -> str | None:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=key).get("Contents", [])
        if key not in [item["Key"] for item in found]:
            return None
        return str(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read().decode())


APP = '''
"""Runs until SIGTERM, then leaves with 20; says where its code and its environment came from."""
import os, signal, sys, time
import training_image
leave = []
signal.signal(signal.SIGTERM, lambda *_: leave.append(1))
print("code:", training_image.WHERE, "env:", sorted(os.environ), "arguments:", sys.argv[1:], flush=True)
while not leave:
    time.sleep(0.02)
print("got SIGTERM", flush=True)
sys.exit(20)
'''
