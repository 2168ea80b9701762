"""DataStack destroyed and deployed again over what it left behind, by the commands that README names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_cloud.cloud import LocalCloud
from tests.support.cdk_cli import cdk
from training_image.storage.secrets import read_secret

GITHUB = ("-c", "github_repository=octo/lab")
KNOWN_PROVIDER = (*GITHUB, "-c", "create_oidc_provider=false")
IMPORT = "--import-existing-resources"


class Account:
    """The account as its administrator sees it."""

    def __init__(self, cloud: LocalCloud, folder: Path) -> None:
        self.cloud, self._folder = cloud, folder
        self._synthesised: dict[tuple[str, ...], Path] = {}
        self.s3, self.ecr, self.iam = (cloud.client(name) for name in ("s3", "ecr", "iam"))
        self.cloudformation = cloud.client("cloudformation")

    def cdk(self, verb: str, settings: tuple[str, ...], *options: str) -> tuple[int, str]:
        """``cdk VERB DataStack SETTINGS OPTIONS``; each combination of settings is synthesised once."""
        if settings not in self._synthesised:
            target = self._folder / str(len(self._synthesised))
            done = cdk(self.cloud, target, "synth", "DataStack", "--quiet", *settings)
            assert done.returncode == 0, done.stdout
            self._synthesised[settings] = target
        target = self._synthesised[settings]
        done = cdk(self.cloud, target, verb, "DataStack", "--app", str(target), *options)
        return done.returncode, done.stdout

    def deploy(self, settings: tuple[str, ...], *options: str) -> tuple[int, str]:
        return self.cdk("deploy", settings, "--require-approval", "never", *options)

    def unprotect(self) -> None:
        self.cloudformation.update_termination_protection(StackName="DataStack", EnableTerminationProtection=False)

    def stack(self) -> dict[str, Any]:
        return dict(self.cloudformation.describe_stacks(StackName="DataStack")["Stacks"][0])

    def outputs(self) -> dict[str, str]:
        return {item["OutputKey"]: item["OutputValue"] for item in self.stack()["Outputs"]}

    def buckets(self) -> set[str]:
        names = {bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]}
        return {name for name in names if not name.startswith("cdk-")}

    def tags(self) -> list[str]:
        images = self.ecr.list_images(repositoryName="llm-tuning-lab/default/datastack-training")["imageIds"]
        return [image["imageTag"] for image in images]

    def providers(self) -> list[str]:
        return [item["Arn"] for item in self.iam.list_open_id_connect_providers()["OpenIDConnectProviderList"]]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("again")
    with LocalCloud(folder) as cloud:
        cloud.bootstrap()
        yield Account(cloud, folder / "cdk.out")


@pytest.fixture(scope="module")
def first(account: Account) -> dict[str, str]:
    """Outputs of the first DataStack, with an object and an image in it."""
    code, output = account.deploy(GITHUB)
    assert code == 0, output
    outputs = account.outputs()
    account.s3.put_object(Bucket=outputs["OutputsBucket"], Key="runs/r/adapter/x", Body=b"worth the money")
    manifest = json.dumps({"schemaVersion": 2, "layers": []})
    repository = outputs["RepositoryUri"].split("/", 1)[1]
    account.ecr.put_image(repositoryName=repository, imageManifest=manifest, imageTag="kept")
    return outputs


@pytest.fixture(scope="module")
def destroyed(account: Account, first: dict[str, str]) -> dict[str, str]:
    """The first one's outputs, after it was destroyed as README says."""
    code, output = account.cdk("destroy", GITHUB, "--force")
    assert code != 0
    assert "TerminationProtection is enabled" in output
    account.unprotect()
    code, output = account.cdk("destroy", GITHUB, "--force")
    assert code == 0, output
    return first


def test_its_secrets_have_no_value_until_somebody_gives_one(
    account: Account, first: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in account.cloud.environ().items():
        monkeypatch.setenv(name, value)
    name = "/llm-tuning-lab/default/DataStack/HuggingFaceTokenSecretArn"
    arn = account.cloud.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    assert read_secret(arn) is None
    account.cloud.client("secretsmanager").put_secret_value(SecretId=arn, SecretString="hf_x\n")
    assert read_secret(arn) == "hf_x"


def test_destroyed_it_leaves_data_images_and_provider_and_nothing_else(
    account: Account, destroyed: dict[str, str]
) -> None:
    assert account.buckets() == {destroyed["TrainingBucket"], destroyed["OutputsBucket"]}
    assert account.tags() == ["kept"]
    assert len(account.providers()) == 1
    assert not account.cloud.client("secretsmanager").list_secrets()["SecretList"]
    assert not account.cloud.client("sns").list_topics()["Topics"]
    parameters = account.cloud.client("ssm").describe_parameters()["Parameters"]
    assert not [item["Name"] for item in parameters if item["Name"].startswith("/llm-tuning-lab/")]
    names = {role["RoleName"] for role in account.iam.list_roles()["Roles"]}
    assert not [name for name in names if name.startswith("DataStack")]


def test_a_bucket_that_was_left_is_still_tls_only(account: Account, destroyed: dict[str, str]) -> None:
    policy = account.s3.get_bucket_policy(Bucket=destroyed["OutputsBucket"])["Policy"]
    assert "aws:SecureTransport" in policy


def test_a_plain_deploy_says_what_exists_already(account: Account, destroyed: dict[str, str]) -> None:
    code, output = account.deploy(KNOWN_PROVIDER)
    assert code != 0
    assert "'llm-tuning-lab/default/datastack-training' already exists" in output
    assert account.stack()["StackStatus"] == "ROLLBACK_COMPLETE"
    # The CLI set the protection before the first resource, so it must be lifted before the next try.
    code, output = account.deploy(KNOWN_PROVIDER, IMPORT)
    assert code != 0
    assert "TerminationProtection is enabled" in output
    account.unprotect()


def test_a_provider_that_was_left_is_named_too(account: Account, destroyed: dict[str, str]) -> None:
    """CloudFormation cannot adopt it: its identifier, the ARN, stands in no template."""
    code, output = account.deploy(GITHUB, IMPORT)
    assert code != 0
    assert "https://token.actions.githubusercontent.com already exists" in output
    assert account.tags() == ["kept"]  # the adopted repository was not taken along by the rollback
    account.unprotect()


def test_the_documented_command_adopts_the_repository_and_leaves_the_old_data_alone(
    account: Account, destroyed: dict[str, str]
) -> None:
    code, output = account.deploy(KNOWN_PROVIDER, IMPORT)
    assert code == 0, output
    assert account.stack()["StackStatus"] in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
    assert account.tags() == ["kept"]
    resources = account.cloudformation.describe_stack_resources(StackName="DataStack")["StackResources"]
    assert "AWS::ECR::Repository" in {resource["ResourceType"] for resource in resources}

    new = account.outputs()
    assert new["RepositoryUri"] == destroyed["RepositoryUri"]
    assert new["OutputsBucket"] != destroyed["OutputsBucket"]
    assert account.buckets() == {
        bucket[key] for bucket in (new, destroyed) for key in ("TrainingBucket", "OutputsBucket")
    }
    old = account.s3.get_object(Bucket=destroyed["OutputsBucket"], Key="runs/r/adapter/x")["Body"].read()
    assert old == b"worth the money"

    policy = account.ecr.get_repository_policy(repositoryName=new["RepositoryUri"].split("/", 1)[1])["policyText"]
    assert "CdkPublishesImageAssets" in policy


def test_the_provider_of_another_lab_serves_the_new_roles(account: Account, destroyed: dict[str, str]) -> None:
    role = account.outputs()["GithubActionsRoleArn"].rsplit("/", 1)[1]
    trust = account.iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
    assert trust["Statement"][0]["Principal"]["Federated"] == account.providers()[0]


def test_an_unchanged_deploy_of_the_adopted_stack_changes_nothing(account: Account, destroyed: dict[str, str]) -> None:
    code, output = account.deploy(KNOWN_PROVIDER)
    assert code == 0, output
    assert "no changes" in output
