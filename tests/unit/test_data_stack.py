"""DataStack's template: every promise of storage and registry, one assertion each."""

import json

import aws_cdk as cdk
import pytest
from aws_cdk.assertions import Match, Template

from stacks.data_stack import DataStack
from tests.support.stacks import FLAGS, data_template, only
from training_image.config.lab_settings import LabConfig

KEPT = {"DeletionPolicy": "RetainExceptOnCreate", "UpdateReplacePolicy": "Retain"}
"""Kept by every deletion and replacement; only a first deploy that is rolled back takes its own empty ones along."""


@pytest.fixture(scope="module")
def data() -> Template:
    return data_template()


@pytest.fixture(scope="module")
def with_github() -> Template:
    return data_template(LabConfig(github_repository="octo/lab", alert_email="me@example.com"))


def test_buckets_are_encrypted_versioned_private_and_kept(data):
    data.all_resources_properties(
        "AWS::S3::Bucket",
        {
            "VersioningConfiguration": {"Status": "Enabled"},
            "BucketEncryption": Match.any_value(),
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": True,
                "BlockPublicPolicy": True,
                "IgnorePublicAcls": True,
                "RestrictPublicBuckets": True,
            },
            "BucketName": Match.absent(),
        },
    )
    data.all_resources("AWS::S3::Bucket", KEPT)
    data.resource_count_is("AWS::S3::Bucket", 2)


def test_buckets_refuse_requests_without_tls(data):
    deny = {"Effect": "Deny", "Condition": {"Bool": {"aws:SecureTransport": "false"}}}
    data.all_resources_properties(
        "AWS::S3::BucketPolicy", {"PolicyDocument": {"Statement": Match.array_with([Match.object_like(deny)])}}
    )
    data.all_resources("AWS::S3::BucketPolicy", KEPT)  # a bucket that is kept stays so


def test_checkpoints_expire_and_results_never_do(data):
    rules = [
        rule
        for bucket in data.find_resources("AWS::S3::Bucket").values()
        for rule in bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    ]
    assert [rule["Prefix"] for rule in rules if "ExpirationInDays" in rule] == ["checkpoints/"]
    assert sum(rule.get("AbortIncompleteMultipartUpload") == {"DaysAfterInitiation": 1} for rule in rules) == 2
    kept = {rule.get("Prefix"): rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays") for rule in rules}
    assert kept == {None: 30, "checkpoints/": 1, "runs/": None}


def test_repository_is_immutable_scanned_and_kept_and_lets_cdk_publish(data):
    repository = only(data, "AWS::ECR::Repository")
    assert {name: repository[name] for name in KEPT} == KEPT
    properties = repository["Properties"]
    assert properties["ImageTagMutability"] == "IMMUTABLE"
    assert properties["ImageScanningConfiguration"] == {"ScanOnPush": True}
    (statement,) = properties["RepositoryPolicyText"]["Statement"]
    assert "cdk-hnb659fds-image-publishing-role-" in json.dumps(statement["Principal"])
    assert "ecr:PutImage" in statement["Action"]
    assert "*" not in json.dumps(statement["Action"])


def test_images_of_active_runs_never_expire(data):
    """An image that a rule matches is out of reach of every rule of lower priority (a higher number)."""
    text = only(data, "AWS::ECR::Repository")["Properties"]["LifecyclePolicy"]["LifecyclePolicyText"]
    rules = sorted(json.loads(text)["rules"], key=lambda rule: rule["rulePriority"])
    selections = [rule["selection"] for rule in rules]
    assert selections[0]["tagPrefixList"] == ["run-"]
    assert selections[0]["countType"] == "imageCountMoreThan"
    assert selections[0]["countNumber"] >= 100_000  # more than a repository can hold
    assert [(s["tagStatus"], s["countNumber"]) for s in selections[1:]] == [("untagged", 7), ("any", 50)]


def test_a_bootstrap_with_its_own_qualifier_may_publish_and_be_deployed_through():
    app = cdk.App(context={**FLAGS, "@aws-cdk/core:bootstrapQualifier": "mine"})
    stack = DataStack(app, "DataStack", config=LabConfig(github_repository="octo/lab"))
    text = json.dumps(Template.from_stack(stack).to_json())
    assert "hnb659fds" not in text
    for kind in ("deploy", "file-publishing", "image-publishing", "lookup"):
        assert f":role/cdk-mine-{kind}-role-" in text


def test_alarms_and_budgets_of_this_account_alone_may_publish_alerts_and_only_by_tls(data):
    policy = only(data, "AWS::SNS::TopicPolicy")["Properties"]["PolicyDocument"]
    by_sid = {statement["Sid"]: statement for statement in policy["Statement"]}
    deny = by_sid.pop("AllowPublishThroughSSLOnly")
    assert (deny["Effect"], deny["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    services = {"budgets.amazonaws.com", "cloudwatch.amazonaws.com"}
    assert {statement["Principal"]["Service"] for statement in by_sid.values()} == services
    for statement in by_sid.values():
        assert statement["Action"] == "sns:Publish"
        assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
    data.has_resource_properties("AWS::SNS::Topic", {"KmsMasterKeyId": Match.absent(), "TopicName": Match.absent()})


def test_the_alert_address_is_subscribed_here_if_there_is_one(data, with_github):
    data.resource_count_is("AWS::SNS::Subscription", 0)
    subscription = only(with_github, "AWS::SNS::Subscription")["Properties"]
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "me@example.com")


def test_secrets_are_made_without_a_value_and_say_how_to_fill_them(data):
    """A generated value would be sent to the service as if it were a token."""
    data.resource_count_is("AWS::SecretsManager::Secret", 2)
    for secret in data.find_resources("AWS::SecretsManager::Secret").values():
        assert set(secret["Properties"]) == {"Description"}
        assert "aws secretsmanager put-secret-value" in secret["Properties"]["Description"]


OUTPUTS = {"TrainingBucket", "OutputsBucket", "RepositoryUri", "AlertTopicArn"}
PARAMETERS = OUTPUTS | {"HuggingFaceTokenSecretArn", "WandbApiKeySecretArn"}


def published(template: Template) -> tuple[set[str], set[str]]:
    """Names of outputs and of parameters."""
    parameters = {p["Properties"]["Name"] for p in template.find_resources("AWS::SSM::Parameter").values()}
    assert all(name.startswith("/llm-tuning-lab/default/DataStack/") for name in parameters)
    return set(template.find_outputs("*")), {name.rsplit("/", 1)[1] for name in parameters}


def test_what_others_need_is_published_as_output_and_as_parameter(data, with_github):
    assert published(data) == (OUTPUTS, PARAMETERS)
    assert published(with_github) == (
        OUTPUTS | {"GithubActionsRoleArn"},
        PARAMETERS | {"GithubActionsRoleArn", "GithubActionsDeployRoleArn"},
    )


def test_nothing_is_exported_or_imported(with_github):
    text = json.dumps(with_github.to_json())
    assert '"Export"' not in text
    assert "Fn::ImportValue" not in text


def test_every_statement_has_a_name(with_github):
    for kind, key in (("AWS::IAM::Policy", "PolicyDocument"), ("AWS::ECR::Repository", "RepositoryPolicyText")):
        for resource in with_github.find_resources(kind).values():
            for statement in resource["Properties"][key]["Statement"]:
                assert statement["Sid"]


STATEFUL = {
    "AWS::S3::Bucket": {"StorageTraining0BB4FD5D", "StorageOutputsB8203D69"},
    "AWS::ECR::Repository": {"RegistryRepositoryC6C96DCD"},
    "AWS::IAM::OIDCProvider": {"GithubProvider4A78AD48"},
    "AWS::SNS::Topic": {"AlertsTopicCF7C81C9"},
    "AWS::SecretsManager::Secret": {"TokensHuggingFace80651496", "TokensWandbB6633725"},
}


def test_logical_ids_of_what_has_state_never_change(with_github):
    """A changed id would make CloudFormation create an empty bucket beside the old one, lose a token, or ask everybody
    to confirm the alerts again."""
    assert {kind: set(with_github.find_resources(kind)) for kind in STATEFUL} == STATEFUL
