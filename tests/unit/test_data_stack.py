"""DataStack's template: every promise of storage and registry, one assertion each."""

import json

import pytest
from aws_cdk.assertions import Match, Template
from stack_support import data_template, only


@pytest.fixture(scope="module")
def data() -> Template:
    return data_template()


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
    data.all_resources("AWS::S3::Bucket", {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"})
    data.resource_count_is("AWS::S3::Bucket", 2)


def test_buckets_refuse_requests_without_tls(data):
    deny = {"Effect": "Deny", "Condition": {"Bool": {"aws:SecureTransport": "false"}}}
    data.all_resources_properties(
        "AWS::S3::BucketPolicy", {"PolicyDocument": {"Statement": Match.array_with([Match.object_like(deny)])}}
    )


def test_checkpoints_expire_and_results_never_do(data):
    rules = [
        rule
        for bucket in data.find_resources("AWS::S3::Bucket").values()
        for rule in bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    ]
    assert [rule["Prefix"] for rule in rules if "ExpirationInDays" in rule] == ["checkpoints/"]
    assert sum(rule.get("AbortIncompleteMultipartUpload") == {"DaysAfterInitiation": 1} for rule in rules) == 2
    assert sum("NoncurrentVersionExpiration" in rule for rule in rules) == 2


def test_repository_is_immutable_scanned_and_kept_and_lets_cdk_publish(data):
    repository = only(data, "AWS::ECR::Repository")
    assert repository["DeletionPolicy"] == "Retain"
    properties = repository["Properties"]
    assert properties["ImageTagMutability"] == "IMMUTABLE"
    assert properties["ImageScanningConfiguration"] == {"ScanOnPush": True}
    (statement,) = properties["RepositoryPolicyText"]["Statement"]
    assert "cdk-hnb659fds-image-publishing-role-" in json.dumps(statement["Principal"])
    assert "ecr:PutImage" in statement["Action"]
    assert "*" not in json.dumps(statement["Action"])


def test_what_others_need_is_published_as_output_and_as_parameter(data):
    for name in ("TrainingBucket", "OutputsBucket", "RepositoryUri"):
        data.has_output(name, {})
        data.has_resource_properties("AWS::SSM::Parameter", {"Name": f"/llm-tuning-lab/default/DataStack/{name}"})


def test_logical_ids_of_what_is_kept_never_change(data):
    """A changed id would make CloudFormation create a new, empty bucket beside the old one."""
    kept = [name for kind in ("AWS::S3::Bucket", "AWS::ECR::Repository") for name in data.find_resources(kind)]
    assert sorted(kept) == ["RegistryRepositoryC6C96DCD", "StorageOutputsB8203D69", "StorageTraining0BB4FD5D"]
