"""The role that the instance works with: every permission it has, and its bound."""

from collections.abc import Sequence

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3_assets as s3_assets
from constructs import Construct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.permissions import allow
from training_image.core import contract


def instance_role(
    scope: Construct,
    *,
    stack_suffix: str,
    run_prefix: str,
    training_bucket: str,
    outputs_bucket: str,
    repository: ecr.IRepository,
    secret_arns: Sequence[str],
    host_files: s3_assets.Asset,
) -> iam.Role:
    """The role; arguments as those of ``Compute``, and the archive that user data fetches."""
    role = iam.Role(
        scope,
        "Role",
        assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
        description="Training instance: reads data, writes its own stack's runs, pulls the image, ends itself",
    )
    _allow_data_and_results(role, training_bucket, outputs_bucket, run_prefix, stack_suffix)
    _allow_ending_itself(role, stack_suffix)
    _allow_session_manager(role)
    allow(role, "ReadsTokens", ["secretsmanager:GetSecretValue"], secret_arns)
    _allow_pulling(role, repository)
    # Not grant_read, which is for the whole bucket: that holds every other stack's assets too.
    archive = cdk.Stack.of(role).format_arn(
        service="s3",
        region="",
        account="",
        resource=host_files.s3_bucket_name,
        resource_name=host_files.s3_object_key,
    )
    allow(role, "ReadsHostFiles", ["s3:GetObject"], [archive])
    return role


def _allow_data_and_results(
    role: iam.Role, training_bucket: str, outputs_bucket: str, run_prefix: str, stack_suffix: str
) -> None:
    stack = cdk.Stack.of(role)

    def arn(bucket: str, path: str = "") -> str:
        return stack.format_arn(service="s3", region="", account="", resource=bucket, resource_name=path or None)

    own = [f"runs/{run_prefix}-*", f"checkpoints/{run_prefix}-*"]
    every_object = "Every object of the training bucket is input of this lab's runs; this only reads it."
    own_keys = "Run ids end in a number that is not known yet; their prefix is this stack's own."
    allow(role, "ReadsData", ["s3:GetObject"], [arn(training_bucket, "*")], wildcard=every_object)
    allow(role, "ListsData", ["s3:ListBucket"], [arn(training_bucket)])
    mirror = "Which Hub models are mirrored is the runs' choice; an instance verifies what it reads from there."
    allow(role, "MirrorsModels", ["s3:PutObject"], [arn(training_bucket, f"{contract.HUB_MIRROR}*")], wildcard=mirror)
    readable = [arn(outputs_bucket, path) for path in (contract.pointer_key(stack_suffix), *own)]
    allow(role, "ReadsOwnRuns", ["s3:GetObject"], readable, wildcard=own_keys)
    written = [arn(outputs_bucket, path) for path in own]
    allow(role, "WritesOwnRuns", ["s3:PutObject"], written, wildcard=own_keys)
    allow(role, "PrunesOwnCheckpoints", ["s3:DeleteObject"], written[1:], wildcard=own_keys)
    kept = ("run.json", "base_model.json", "metrics/eval_before.json", "adapter/*")
    inherited = [*(f"runs/*/{name}" for name in kept), "checkpoints/*"]
    allow(
        role,
        "ReadsEarlierRuns",
        ["s3:GetObject"],
        [arn(outputs_bucket, path) for path in inherited],
        wildcard="A run may begin with what any earlier one of this lab has left; it is only read.",
    )
    # A missing key answers 403 to this role; the list tells it from a refusal.
    prefixes = {"StringLike": {"s3:prefix": ["runs/*", "checkpoints/*"]}}
    allow(role, "ListsRuns", ["s3:ListBucket"], [arn(outputs_bucket)], prefixes)


def _allow_ending_itself(role: iam.Role, stack_suffix: str) -> None:
    group = cdk.Stack.of(role).format_arn(
        service="autoscaling",
        resource="autoScalingGroup:*:autoScalingGroupName",
        resource_name="*",
    )
    # By tag, not by name: the group refers to the role, so a reference back would be a cycle.
    allow(
        role,
        "EndsItself",
        [
            "autoscaling:TerminateInstanceInAutoScalingGroup",
            "autoscaling:UpdateAutoScalingGroup",
            "autoscaling:CompleteLifecycleAction",
        ],
        [group],
        {"StringEquals": {f"aws:ResourceTag/{contract.STACK_TAG}": stack_suffix}},
        wildcard="The tag of this very stack bounds it; the name would be a cycle.",
    )


def _allow_session_manager(role: iam.Role) -> None:
    """The part of AmazonSSMManagedInstanceCore that a session needs; these actions know no resource."""
    allow(
        role,
        "SessionManager",
        [
            "ssm:UpdateInstanceInformation",
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
        ],
        ["*"],
        wildcard="AWS offers no resource for them; they let the machine be reached, and reach nothing themselves.",
    )
    policy = role.node.find_child("DefaultPolicy")
    acknowledge(policy, "The writes without a resource are Session Manager's, which have none.", "CKV_AWS_111")


def _allow_pulling(role: iam.Role, repository: ecr.IRepository) -> None:
    allow(
        role,
        "LogsInToRegistry",
        ["ecr:GetAuthorizationToken"],
        ["*"],
        wildcard="AWS offers no resource for the token; what it is good for is decided by the next statement.",
    )
    pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    allow(role, "PullsImage", pull, [repository.repository_arn])
