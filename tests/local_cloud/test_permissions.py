"""Every permission of every role is needed, and nothing else is allowed: tried with the deployed roles' own credentials
under IAM enforcement, by the product's own code where it has some."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_cloud.cloud import ACCOUNT, LocalCloud
from tests.support import permission_uses as uses
from tests.support.cdk_cli import cdk
from tests.support.permission_uses import ROLES, UNTRIED, USES, World, cases, table_of
from training_image.core.store import Store

OPTIONS = (
    "github_repository=me/lab",
    "alert_email=me@example.org",
    "create_instance=false",
    "availability_zone=us-east-1a",
)
REFUSALS = ("AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation", "403")
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "sts:AssumeRole"},
    ],
}


class Roles:
    """The deployed roles by their names in the table: their policies, and their credentials."""

    def __init__(self, cloud: LocalCloud, resources: list[dict[str, Any]]) -> None:
        self._iam, self._sts = cloud.client("iam"), cloud.client("sts")
        self.physical: dict[str, str] = {}
        for item in resources:
            if item["ResourceType"] == "AWS::IAM::Role":
                name = next(
                    (name for start, name in ROLES.items() if item["LogicalResourceId"].startswith(start)), None
                )
                assert name is not None, f"{item['LogicalResourceId']} is not in permission_uses.ROLES"
                self.physical[name] = item["PhysicalResourceId"]
        self._credentials = {name: self._assume(name) for name in self.physical}

    def _assume(self, name: str) -> dict[str, str]:
        """A session of the role. Only who may assume it is changed, for this test; what it may do is the stack's."""
        role = self.physical[name]
        self._iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(TRUST))
        arn = self._iam.get_role(RoleName=role)["Role"]["Arn"]
        keys = self._sts.assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
        }

    def documents(self, name: str) -> dict[str, dict[str, Any]]:
        role = self.physical[name]
        names = self._iam.list_role_policies(RoleName=role)["PolicyNames"]
        return {
            policy: self._iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"] for policy in names
        }

    @contextlib.contextmanager
    def without(self, name: str, sid: str, action: str | None = None) -> Iterator[None]:
        """The role's policy with this Allow statement, or only one action of it, deleted."""
        before = self.documents(name)
        for policy, document in before.items():
            statements = []
            for statement in document["Statement"]:
                if statement.get("Sid") == sid:
                    actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
                    rest = [item for item in actions if item != action]
                    if action is None or not rest:
                        continue
                    statement = {**statement, "Action": rest}
                statements.append(statement)
            # IAM refuses an empty list of statements.
            self._put(name, policy, {**document, "Statement": statements or [NOTHING]})
        try:
            yield
        finally:
            for policy, document in before.items():
                self._put(name, policy, document)

    def _put(self, name: str, policy: str, document: dict[str, Any]) -> None:
        self._iam.put_role_policy(RoleName=self.physical[name], PolicyName=policy, PolicyDocument=json.dumps(document))

    def become(self, name: str, patch: pytest.MonkeyPatch) -> None:
        """From here on, boto3 works with this role's credentials."""
        for variable, value in self._credentials[name].items():
            patch.setenv(variable, value)


NOTHING = {"Effect": "Deny", "Action": "iam:*", "Resource": "*"}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Roles]]:
    folder = tmp_path_factory.mktemp("permissions")
    with LocalCloud(folder) as cloud:
        cloud.bootstrap()
        cloudformation, outputs, resources = cloud.client("cloudformation"), {}, []
        out = folder / "cdk.out"
        typed = [word for option in OPTIONS for word in ("-c", option)]
        for stack, settings in (("DataStack", typed), ("TrainingStack", ["--app", str(out)])):  # synthesised once
            result = cdk(cloud, out, "deploy", stack, "--require-approval", "never", *settings)
            assert result.returncode == 0, result.stdout
            found = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
            outputs[stack] = {item["OutputKey"]: item["OutputValue"] for item in found["Outputs"]}
            outputs[stack]["StackId"] = found["StackId"]
            resources += cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
        for parameter in cloud.client("ssm").get_parameters_by_path(Path="/llm-tuning-lab/", Recursive=True)[
            "Parameters"
        ]:
            outputs["DataStack"][parameter["Name"].rsplit("/", 1)[1]] = parameter["Value"]
        physical = {item["LogicalResourceId"]: item["PhysicalResourceId"] for item in resources}
        world = World(cloud, outputs["DataStack"], outputs["TrainingStack"], physical)
        world.prepare()
        yield world, Roles(cloud, resources)


@pytest.fixture
def world(deployed: tuple[World, Roles], monkeypatch: pytest.MonkeyPatch) -> World:
    """The stacks, with an environment in which boto3 reaches them and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environ = deployed[0].cloud.environ()
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
    ):
        monkeypatch.setenv(name, environ[name])
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    return deployed[0]


@pytest.fixture
def roles(deployed: tuple[World, Roles]) -> Roles:
    return deployed[1]


def refused(use: uses.Use, world: World) -> bool:
    """Whether AWS refused it; any other failure is a mistake of the test and raised."""
    try:
        use(world)
    except ClientError as error:
        if error.response["Error"]["Code"] in REFUSALS:
            return True
        raise
    except PermissionError:  # Store.delete: S3 refuses keys of a batch one by one
        return True
    return False


@pytest.mark.parametrize(("role", "sid", "action"), [pytest.param(*case, id="-".join(case)) for case in cases()])
def test_each_permission_is_needed_and_suffices(role, sid, action, world, roles, monkeypatch):
    use = USES[role][sid][action]
    roles.become(role, monkeypatch)
    with roles.without(role, sid):
        assert refused(use, world), f"{role} can do it without {sid}: the statement is superfluous"
    with roles.without(role, sid, action):
        assert refused(use, world), f"{role} can do it without {action} in {sid}: the action is superfluous"
    assert not refused(use, world), f"{role} needs more than {sid} to do it"


def test_every_allow_statement_and_action_of_every_role_is_tried(roles):
    deployed = {
        (role, sid): actions
        for role in roles.physical
        for sid, actions in table_of(list(roles.documents(role).values())).items()
    }
    tried = {(role, sid): set(USES[role][sid]) for role in USES for sid in USES[role]}
    assert {key: actions for key, actions in deployed.items() if key not in UNTRIED} == tried
    assert set(UNTRIED) <= set(deployed), "an excuse for a statement that no longer exists"


# --- what the full policies refuse ------------------------------------------------------------------------------------
OTHER_RUN = "runs/run-other-1/heartbeat.json"
REFUSED: dict[str, tuple[tuple[str, ...], uses.Use]] = {
    "write another stack's run": (("box", "controller", "terminator"), lambda w: w.outputs.put_json(OTHER_RUN, {})),
    "read another stack's run": (("box", "controller", "terminator"), lambda w: w.outputs.read("runs/run-other-1/x")),
    "move the pointer": (("box",), lambda w: w.outputs.put_json(f"stacks/{w.suffix}/current.json", {})),
    "delete a result": (("box", "controller", "terminator"), lambda w: w.outputs.delete([w.keys.run])),
    "delete a version": (
        ("box", "controller", "terminator"),
        lambda w: w.client("s3").delete_object(Bucket=w.outputs.bucket, Key=w.keys.run, VersionId="x"),
    ),
    "write the training bucket": (("box", "controller", "terminator", "push"), lambda w: w.inputs.put("data/x", b"")),
    "read another asset of the bootstrap's bucket": (("box",), lambda w: uses.host_files(w, "another.zip")),
    "end another stack's box in its group": (
        ("box", "controller", "terminator"),
        lambda w: uses.terminate_in_group(w, "foreign"),
    ),
    "terminate another instance": (("box", "controller", "terminator"), lambda w: uses.terminate(w, "foreign")),
    "change another group's capacity": (("box", "controller", "terminator"), lambda w: uses.resize(w, "foreign")),
    "pull from another repository": (("box", "push"), lambda w: uses.PULL["ecr:BatchGetImage"](w, "somebody/else")),
    "push to another repository": (("push", "controller"), lambda w: uses.PUSH["ecr:PutImage"](w, "somebody/else")),
    "push to the lab's repository": (("box", "terminator"), uses.PUSH["ecr:PutImage"]),
    "delete an image": (
        ("box", "terminator", "push"),
        uses.ecr("batch_delete_image", imageIds=[{"imageTag": "run-gone-1"}]),
    ),
    "read a secret that is not theirs": (
        ("box", "controller", "terminator", "push"),
        lambda w: w.client("secretsmanager").get_secret_value(SecretId=w.data["WandbApiKeySecretArn"]),
    ),
    "publish metrics in another namespace": (
        ("box", "controller", "terminator"),
        lambda w: uses.put_metric(w, "AWS/EC2"),
    ),
    "make a log group": (
        ("box", "controller", "terminator"),
        lambda w: w.client("logs").create_log_group(logGroupName="mine"),
    ),
    "write another log": (("box",), uses.new_stream("RunLog")),
    "rewrite the run's settings": (("terminator",), lambda w: w.outputs.put_json(w.keys.run, {})),
    "publish to another topic": (
        ("controller", "terminator"),
        lambda w: uses.publish(w, w.data["AlertTopicArn"] + "x"),
    ),
    "give itself tags": (
        ("box",),
        lambda w: w.client("ec2").create_tags(Resources=[w.box_of("own")], Tags=[{"Key": "a", "Value": "b"}]),
    ),
    "change IAM": (
        ("box", "controller", "terminator", "push", "deploy"),
        lambda w: w.client("iam").create_user(UserName="me"),
    ),
}


@pytest.mark.parametrize(
    ("role", "what"),
    [pytest.param(role, what, id=f"{role} may not {what}") for what, (roles, _) in REFUSED.items() for role in roles],
)
def test_the_full_policy_refuses(role, what, world, roles, monkeypatch):
    roles.become(role, monkeypatch)
    assert refused(REFUSED[what][1], world), f"{role} may {what}"


def test_the_administrator_could_do_what_is_refused(world, monkeypatch):
    """Else a refusal would prove nothing: the thing might not exist."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert Store(world.client("s3"), world.outputs.bucket).read("runs/run-other-1/x") is not None
    for what in ("write the training bucket", "change another group's capacity", "push to another repository"):
        assert not refused(REFUSED[what][1], world)
