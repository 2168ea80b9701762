"""A template that a guard objects to, with the real CLI: deploy refuses, and destroy still works."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from local_cloud.cloud import LocalCloud
from tests.support.cdk_cli import cdk
from training_image.core import contract

BROKEN = '''
"""app.py with a Network that somebody has put a door into."""
import runpy

from aws_cdk import aws_ec2 as ec2
from lab_constructs import network

whole = network.Network.__init__


def with_a_door(self, *arguments, **named):
    whole(self, *arguments, **named)
    self.security_group.add_ingress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(22))


network.Network.__init__ = with_a_door
runpy.run_path("app.py", run_name="__main__")
'''
NO_RUN = ("-c", "create_instance=false", "-c", "image_tag=v1", "-c", "availability_zone=us-east-1a")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    with LocalCloud(tmp_path_factory.mktemp("guarded")) as cloud:
        cloud.bootstrap()
        ssm = cloud.client("ssm")
        for name in ("TrainingBucket", "OutputsBucket", "HuggingFaceTokenSecretArn", "AlertTopicArn"):
            value = f"arn:aws:sns:us-east-1:000000000000:{name.lower()}" if name.endswith("Arn") else name.lower()
            ssm.put_parameter(Name=contract.parameter_name("default", name), Value=value, Type="String")
        cloud.client("s3").create_bucket(Bucket="outputsbucket")
        yield cloud


def stacks(cloud: LocalCloud) -> dict[str, str]:
    found = cloud.client("cloudformation").describe_stacks()["Stacks"]
    return {item["StackName"]: item["StackStatus"] for item in found}


def test_a_guard_stops_a_deploy_and_lets_a_destroy_pass(cloud, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    broken = ("--app", f"{sys.executable} {tmp_path / 'broken.py'}")
    out, once_more = tmp_path / "cdk.out", tmp_path / "broken"

    refused = cdk(cloud, once_more, "deploy", "TrainingStack", "--require-approval", "never", *broken, *NO_RUN)
    assert refused.returncode != 0
    assert "ingress rule: people come in through Session Manager" in refused.stdout
    assert "TrainingStack" not in stacks(cloud)

    deployed = cdk(cloud, out, "deploy", "TrainingStack", "--require-approval", "never", *NO_RUN)
    assert deployed.returncode == 0, deployed.stdout
    assert stacks(cloud)["TrainingStack"] == "CREATE_COMPLETE"

    known = ("--app", str(once_more))
    refused = cdk(cloud, once_more, "deploy", "TrainingStack", "--require-approval", "never", *known)
    assert refused.returncode != 0
    assert "ingress rule" in refused.stdout
    assert stacks(cloud)["TrainingStack"] == "CREATE_COMPLETE"

    destroyed = cdk(cloud, out, "destroy", "TrainingStack", "--force", *broken, *NO_RUN)
    assert destroyed.returncode == 0, destroyed.stdout
    assert stacks(cloud).get("TrainingStack", "DELETE_COMPLETE") == "DELETE_COMPLETE"
