"""`lab output`: bare values on stdout, one sentence on stderr, exit code 0 only for a value."""

import json
import subprocess
from pathlib import Path

import boto3
import pytest
from botocore import exceptions
from typer.testing import CliRunner, Result

from lab import cli
from lab.operator import aws_errors
from lab.operator.deployed import GITHUB, INSTANCE, NAMES, OutputError, Outputs
from tests.support.account import DATA, TRAINING, deploy
from tests.support.box import REGION
from training_image.config.lab_settings import LabConfig
from training_image.core.contract import RunKeys

RUNNER = CliRunner()
ROOT = Path(__file__).parents[2]


def run(*words: str) -> Result:
    result = RUNNER.invoke(cli.app, ["output", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*words: str) -> str:
    """The sentence on stderr; nothing is on stdout, where a command substitution would take it for a value."""
    result = run(*words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, "one line"
    return result.stderr


# --- values -----------------------------------------------------------------------------------------------------------
def test_a_value_is_printed_bare(shell):
    deploy(f"{shell}-DataStack", DATA)
    deploy(f"{shell}-TrainingStack", TRAINING)
    deploy(f"{shell}-TrainingStack-other", {**TRAINING, "RunId": "other-1"})
    assert run("training_bucket").stdout == "in-1\n"
    assert run("ecr_repository_url").stdout == run("repository_uri").stdout == "1.dkr/lab\n"
    assert run("run_id").stdout == "run-12345678-1\n"
    assert run("run_id", "-c", "run=other").stdout == "other-1\n", "-c as for cdk"
    everything = run().stdout.splitlines()
    assert "outputs_bucket = out-1" in everything
    assert {line.split(" = ")[0] for line in everything} == set(NAMES) - {*GITHUB, INSTANCE}


def test_the_deploy_role_comes_from_its_parameter(shell):
    name = f"/llm-tuning-lab/{shell}/DataStack/GithubActionsDeployRoleArn"
    boto3.client("ssm").put_parameter(Name=name, Value="arn:role", Type="String")
    assert run("github_actions_deploy_role_arn").stdout == "arn:role\n"


def test_the_installed_command_prints_it_too(shell):
    deploy(f"{shell}-DataStack", DATA)
    command = [str(ROOT / ".venv/bin/lab"), "output", "outputs_bucket", "-c", f"lab={shell}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout) == (0, "out-1\n"), done.stderr


# --- refusals ---------------------------------------------------------------------------------------------------------
def test_an_unknown_name_is_answered_with_the_nearest(shell):
    assert "There is no output 'traning_bucket'. Did you mean training_bucket?" in refused("traning_bucket")
    assert "There are: training_bucket, " in refused("xyz")


def test_a_stack_that_is_not_deployed_is_answered_with_the_command(shell):
    said = refused("training_bucket")
    assert f"{shell}-DataStack is not deployed in {REGION}: cdk deploy DataStack -c lab={shell}" in said
    assert "Set region in lab.yaml, or AWS_REGION" in said
    assert f"cdk deploy TrainingStack -c lab={shell} -c run=b" in refused("run_id", "-c", "run=b")
    assert "cdk deploy DataStack" in refused()
    assert "cdk deploy DataStack" in refused("github_actions_deploy_role_arn")


def test_roles_that_were_not_asked_for_are_answered_with_the_setting(shell):
    deploy(f"{shell}-DataStack", DATA)
    for name in GITHUB:
        assert "set github_repository in lab.yaml, then cdk deploy DataStack" in refused(name)


def test_no_credentials(shell, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert refused("training_bucket").startswith("Unable to locate credentials: run `aws configure`")


def test_a_profile_that_does_not_exist(shell, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "set AWS_PROFILE to one of them" in refused("training_bucket")


def test_no_region(shell, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert refused("training_bucket").startswith("No region is known: set `region` in lab.yaml")


def test_the_region_that_cdk_would_take_is_taken(shell, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert "is not deployed in eu-west-1" in refused("training_bucket")
    assert "is not deployed in us-east-2" in refused("training_bucket", "-c", "region=us-east-2")


def test_a_wrong_setting_is_a_warning_here(shell, tmp_path):
    (tmp_path / "lab.yaml").write_text(f"lab: {shell}\ninstance_typ: g5.xlarge\n")
    deploy(f"{shell}-DataStack", DATA)
    result = run("training_bucket")
    assert (result.exit_code, result.stdout) == (0, "in-1\n")
    assert "warning: " in result.stderr
    assert "instance_type" in result.stderr


def test_a_word_after_c_that_is_no_pair(shell):
    result = run("run_id", "-c", "run")
    assert result.exit_code == 2
    assert "write key=value" in result.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ExpiredToken", "expired: sign in again"),
        ("RequestExpired", "expired: sign in again"),
        ("InvalidClientTokenId", "does not know your credentials in region r"),
        ("AccessDenied", "may not do this (DescribeStacks): why"),
        ("Throttling", "DescribeStacks failed: why"),
    ],
)
def test_what_aws_refuses_is_said_in_words(code, words):
    error = exceptions.ClientError({"Error": {"Code": code, "Message": "why"}}, "DescribeStacks")
    assert words in aws_errors.sentence(error, "r")


def test_a_lost_session_and_a_lost_network():
    assert "session has expired" in aws_errors.sentence(exceptions.UnauthorizedSSOTokenError(), "r")
    lost = exceptions.EndpointConnectionError(endpoint_url="https://x")
    assert "does not answer in region eu-wst-1" in aws_errors.sentence(lost, "eu-wst-1")


# --- the instance -----------------------------------------------------------------------------------------------------
class Aws:
    """Stands for every service: both stacks deployed, a group with ``members``, and a bucket with ``objects``."""

    def __init__(self, members: list[tuple[str, str]], objects: dict[str, object], run_id: str = "run-12345678-1"):
        self._members, self._objects, self._run_id = members, objects, run_id

    def __call__(self, service: str) -> "Aws":
        return self

    def describe_stacks(self, *, StackName: str) -> dict:
        outputs = DATA | TRAINING | {"RunId": self._run_id}
        return {"Stacks": [{"Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()]}]}

    def describe_auto_scaling_groups(self, *, AutoScalingGroupNames: list[str]) -> dict:
        assert AutoScalingGroupNames == ["group-1"]
        members = [{"InstanceId": name, "LifecycleState": state} for name, state in self._members]
        return {"AutoScalingGroups": [{"Instances": members}]}

    def get_object(self, *, Bucket: str, Key: str) -> dict:
        if Key not in self._objects:
            raise exceptions.ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        body = json.dumps(self._objects[Key]).encode()
        return {"Body": type("Body", (), {"read": lambda _: body})()}


def instance(*members: tuple[str, str], run_id: str = "run-12345678-1", **outcome: str) -> str:
    objects = {RunKeys(run_id).outcome: outcome} if outcome else {}
    return Outputs(LabConfig(), REGION, Aws(list(members), objects, run_id)).value(INSTANCE)


def test_the_instance_is_asked_for_live():
    assert instance(("i-1", "InService")) == "i-1"
    assert instance(("i-1", "Terminating:Wait"), ("i-2", "Pending")) == "i-2", "its replacement"


def test_without_an_instance_the_run_says_why():
    with pytest.raises(OutputError, match="run run-12345678-1 waits for capacity"):
        instance()
    with pytest.raises(OutputError, match=r"ended as succeeded \(10 steps\)"):
        instance(reason="succeeded", detail="10 steps")
    with pytest.raises(OutputError, match="i-1 is ending, and run run-12345678-1 goes on"):
        instance(("i-1", "Terminating:Wait"))
    with pytest.raises(OutputError, match="no run was started"):
        instance(run_id="none")
