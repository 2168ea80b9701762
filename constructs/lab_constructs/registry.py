"""The ECR repository of training images, for CDK's own image assets and for CI alike."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from constructs import Construct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.bootstrap import bootstrap_role_arn
from training_image.core import contract

PUSH_ACTIONS = (
    "ecr:DescribeImages",
    "ecr:BatchCheckLayerAvailability",
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
)
REPOSITORY_QUOTA = 100_000
"""Images that ECR lets a repository hold: a rule that keeps as many expires none."""


class Registry(Construct):
    """Repository with immutable tags, scanned on push, kept when the stack is deleted.

    TrainingStack's image assets go here instead of the bootstrap repository, whose images never expire. The bootstrap's
    publishing role may push only to its own repository, so this repository's policy lets it in (same account: either
    policy suffices; ecr:GetAuthorizationToken the role has already).

    Args:
        repository_name: fixed, because the asset publisher needs it at synth. A retained one is adopted again by
            `cdk deploy DataStack --import-existing-resources`.
        keep_images: newest images kept; older ones expire, except those of active runs.
    """

    def __init__(self, scope: Construct, construct_id: str, *, repository_name: str, keep_images: int = 50) -> None:
        super().__init__(scope, construct_id)
        self.repository = ecr.Repository(
            self,
            "Repository",
            repository_name=repository_name,
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            # A first deploy that is rolled back takes it along; else the next one would fail with "already exists".
            removal_policy=cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
            lifecycle_rules=[
                # First, and so of the highest priority: an image that a rule matches is out of reach of those below.
                ecr.LifecycleRule(
                    description="active runs",
                    tag_status=ecr.TagStatus.TAGGED,
                    tag_prefix_list=[contract.RUN_TAG_PREFIX],
                    max_image_count=REPOSITORY_QUOTA,
                ),
                ecr.LifecycleRule(
                    description="untagged", tag_status=ecr.TagStatus.UNTAGGED, max_image_age=cdk.Duration.days(7)
                ),
                ecr.LifecycleRule(description="newest only", max_image_count=keep_images),
            ],
        )
        acknowledge(
            self.repository,
            "Encrypted with ECR's own key: the images hold public packages and this repository's code, no data.",
            "CKV_AWS_136",
        )
        self.repository.add_to_resource_policy(
            iam.PolicyStatement(
                sid="CdkPublishesImageAssets",
                principals=[iam.ArnPrincipal(bootstrap_role_arn(self, "image-publishing"))],
                actions=["ecr:DescribeRepositories", *PUSH_ACTIONS],
            )
        )
