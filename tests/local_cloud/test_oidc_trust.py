"""GitHub's tokens at the door of the account: whom STS lets in, and what they can do then, with IAM enforced."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_cloud.cloud import ACCOUNT, REGION, LocalCloud
from tests.support.cdk_cli import cdk

SETTINGS = ("-c", "github_repository=octo/lab", "-c", "github_branch=main", "-c", "github_environment=training")
MAIN, TRAINING = "repo:octo/lab:ref:refs/heads/main", "repo:octo/lab:environment:training"
AUDIENCE = "sts.amazonaws.com"
ISSUER = "https://token.actions.githubusercontent.com"
MANIFEST = json.dumps({"schemaVersion": 2, "layers": []})


def token(sub: str, aud: str = AUDIENCE, iss: str = ISSUER) -> str:
    """A token as GitHub makes them, but unsigned: the local cloud does not check signatures."""
    parts = [{"alg": "RS256", "typ": "JWT"}, {"iss": iss, "sub": sub, "aud": aud}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "unsigned"])


class Account:
    def __init__(self, cloud: LocalCloud, folder: Path) -> None:
        self.cloud, self.folder = cloud, folder
        self.ssm = cloud.client("ssm")
        self.push_role, self.deploy_role = (
            self.parameter(name) for name in ("GithubActionsRoleArn", "GithubActionsDeployRoleArn")
        )
        self.repository = self.parameter("RepositoryUri").split("/", 1)[1]

    def parameter(self, name: str) -> str:
        return str(self.ssm.get_parameter(Name=f"/llm-tuning-lab/default/DataStack/{name}")["Parameter"]["Value"])

    def enter(self, role: str, web_identity: str) -> dict[str, str]:
        """Credentials as boto3 wants them."""
        answer = self.cloud.client("sts").assume_role_with_web_identity(
            RoleArn=role, RoleSessionName="GitHubActions", WebIdentityToken=web_identity
        )["Credentials"]
        return {
            "aws_access_key_id": answer["AccessKeyId"],
            "aws_secret_access_key": answer["SecretAccessKey"],
            "aws_session_token": answer["SessionToken"],
        }


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("oidc")
    with LocalCloud(folder) as cloud:
        cloud.bootstrap()
        done = cdk(cloud, folder / "out", "deploy", "DataStack", "--require-approval", "never", *SETTINGS)
        assert done.returncode == 0, done.stdout
        cloud.client("ecr").create_repository(repositoryName="somebody/else")
        yield Account(cloud, folder)


@pytest.fixture(scope="module")
def pusher(account: Account) -> dict[str, str]:
    return account.enter(account.push_role, token(MAIN))


@pytest.fixture(scope="module")
def deployer(account: Account) -> dict[str, str]:
    return account.enter(account.deploy_role, token(TRAINING))


# --- who is let in ----------------------------------------------------------------------------------------------------
STRANGERS = {
    "another repository": token("repo:octo/other:ref:refs/heads/main"),
    "another owner": token("repo:evil/lab:ref:refs/heads/main"),
    "a longer name": token("repo:octo/lab-fork:ref:refs/heads/main"),
    "another branch": token("repo:octo/lab:ref:refs/heads/feature"),
    "a longer branch": token("repo:octo/lab:ref:refs/heads/main2"),
    "a tag": token("repo:octo/lab:ref:refs/tags/main"),
    "a pull request": token("repo:octo/lab:pull_request"),
    "another environment": token("repo:octo/lab:environment:production"),
    "the immutable form": token("repo:octo@1/lab@2:ref:refs/heads/main"),
    "a pattern": token("repo:octo/*"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_other_subjects_enter_neither_role(account: Account, stranger: str) -> None:
    for role in (account.push_role, account.deploy_role):
        with pytest.raises(ClientError, match="AccessDenied"):
            account.enter(role, STRANGERS[stranger])


@pytest.mark.parametrize("audience", ["sts.amazonaws.com.cn", "https://github.com/octo", "", "STS.amazonaws.com"])
def test_another_audience_is_refused(account: Account, audience: str) -> None:
    for role, sub in ((account.push_role, MAIN), (account.deploy_role, TRAINING)):
        with pytest.raises(ClientError, match=r"Incorrect token audience|AccessDenied"):
            account.enter(role, token(sub, aud=audience))


def test_another_issuer_is_refused(account: Account) -> None:
    with pytest.raises(ClientError, match="No OpenIDConnect provider found"):
        account.enter(account.push_role, token(MAIN, iss="https://token.actions.example.com"))


def test_each_role_has_its_own_door(account: Account) -> None:
    """A job in the environment cannot push images by itself, and the branch cannot deploy without the reviewers."""
    with pytest.raises(ClientError, match="AccessDenied"):
        account.enter(account.push_role, token(TRAINING))
    with pytest.raises(ClientError, match="AccessDenied"):
        account.enter(account.deploy_role, token(MAIN))


# --- what they can do then --------------------------------------------------------------------------------------------
def push(ecr: Any, repository: str, tag: str) -> None:
    """The calls of ``docker push``."""
    ecr.get_authorization_token()
    layer = b"layer"
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    ecr.batch_check_layer_availability(repositoryName=repository, layerDigests=[digest])
    upload = ecr.initiate_layer_upload(repositoryName=repository)["uploadId"]
    ecr.upload_layer_part(
        repositoryName=repository, uploadId=upload, partFirstByte=0, partLastByte=len(layer) - 1, layerPartBlob=layer
    )
    ecr.complete_layer_upload(repositoryName=repository, uploadId=upload, layerDigests=[digest])
    ecr.put_image(repositoryName=repository, imageManifest=MANIFEST, imageTag=tag)


def test_the_push_role_pushes_to_the_labs_repository(account: Account, pusher: dict[str, str]) -> None:
    ecr = account.cloud.client("ecr", **pusher)
    push(ecr, account.repository, "from-ci")
    found = ecr.describe_images(repositoryName=account.repository, imageIds=[{"imageTag": "from-ci"}])
    assert found["imageDetails"][0]["imageTags"] == ["from-ci"]


def test_the_push_role_touches_no_other_repository(account: Account, pusher: dict[str, str]) -> None:
    ecr = account.cloud.client("ecr", **pusher)
    other = {"repositoryName": "somebody/else"}
    for call in (
        lambda: ecr.put_image(**other, imageManifest=MANIFEST, imageTag="x"),
        lambda: ecr.initiate_layer_upload(**other),
        lambda: ecr.describe_images(**other),
        lambda: ecr.batch_get_image(**other, imageIds=[{"imageTag": "x"}]),
        lambda: ecr.create_repository(repositoryName="a-new-one"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            call()


def test_the_push_role_neither_deletes_images_nor_changes_the_repository(
    account: Account, pusher: dict[str, str]
) -> None:
    ecr = account.cloud.client("ecr", **pusher)
    own = {"repositoryName": account.repository}
    for call in (
        lambda: ecr.batch_delete_image(**own, imageIds=[{"imageTag": "from-ci"}]),
        lambda: ecr.put_image_tag_mutability(**own, imageTagMutability="MUTABLE"),
        lambda: ecr.set_repository_policy(**own, policyText="{}"),
        lambda: ecr.delete_repository(**own, force=True),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            call()


@pytest.mark.parametrize("credentials", ["pusher", "deployer"])
def test_neither_role_reads_data_or_secrets_or_starts_machines(
    account: Account, credentials: str, request: pytest.FixtureRequest
) -> None:
    keys = request.getfixturevalue(credentials)
    bucket, secret = account.parameter("TrainingBucket"), account.parameter("HuggingFaceTokenSecretArn")
    s3, secrets, ec2 = (account.cloud.client(name, **keys) for name in ("s3", "secretsmanager", "ec2"))
    account.cloud.client("s3").put_object(Bucket=bucket, Key="data/a", Body=b"x")
    for call in (
        lambda: s3.list_objects_v2(Bucket=bucket),
        lambda: s3.get_object(Bucket=bucket, Key="data/a"),
        lambda: s3.put_object(Bucket=bucket, Key="data/b", Body=b"x"),
        lambda: secrets.get_secret_value(SecretId=secret),
        lambda: ec2.run_instances(ImageId="ami-0123456789abcdef0", MinCount=1, MaxCount=1),
    ):
        with pytest.raises(ClientError, match=r"AccessDenied|UnauthorizedOperation"):
            call()


def test_the_deploy_role_assumes_the_bootstraps_roles_and_no_other(account: Account, deployer: dict[str, str]) -> None:
    sts = account.cloud.client("sts", **deployer)
    for kind in ("deploy", "file-publishing", "image-publishing", "lookup"):
        sts.assume_role(RoleArn=bootstrap_role(kind), RoleSessionName="ci")
    for other in (bootstrap_role("cfn-exec"), account.push_role, account.deploy_role):
        with pytest.raises(ClientError, match="AccessDenied"):
            sts.assume_role(RoleArn=other, RoleSessionName="ci")


def test_the_push_role_assumes_none(account: Account, pusher: dict[str, str]) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        account.cloud.client("sts", **pusher).assume_role(RoleArn=bootstrap_role("deploy"), RoleSessionName="ci")


def bootstrap_role(kind: str) -> str:
    return f"arn:aws:iam::{ACCOUNT}:role/cdk-hnb659fds-{kind}-role-{ACCOUNT}-{REGION}"


def test_the_deploy_role_alone_is_enough_for_the_real_cli(account: Account, deployer: dict[str, str]) -> None:
    shell = {name.upper(): value for name, value in deployer.items()}
    change = ("-c", "alert_email=me@example.com")
    arguments = ("deploy", "DataStack", "--require-approval", "never", *SETTINGS, *change)
    done = cdk(account.cloud, account.folder / "out", *arguments, **shell)
    assert done.returncode == 0, done.stdout
    topic = account.parameter("AlertTopicArn")
    subscribed = account.cloud.client("sns").list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert [item["Endpoint"] for item in subscribed] == ["me@example.com"]
