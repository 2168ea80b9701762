"""The ECR repository of training images, for CDK's own image assets and for CI alike."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from constructs import Construct

PUBLISH_ACTIONS = (
    "ecr:DescribeRepositories",
    "ecr:DescribeImages",
    "ecr:BatchCheckLayerAvailability",
    "ecr:InitiateLayerUpload",
    "ecr:UploadLayerPart",
    "ecr:CompleteLayerUpload",
    "ecr:PutImage",
    "ecr:BatchGetImage",
    "ecr:GetDownloadUrlForLayer",
)


class Registry(Construct):
    """Repository with immutable tags, scanned on push, kept when the stack is deleted.

    TrainingStack's image assets go here instead of the bootstrap repository, whose images never expire. The bootstrap's
    publishing role may push only to its own repository, so this repository's policy lets it in (same account: either
    policy suffices; ecr:GetAuthorizationToken the role has already).

    Args:
        repository_name: fixed, because the asset publisher needs it at synth.
        keep_images: newest images kept; older ones expire.
    """

    def __init__(self, scope: Construct, construct_id: str, *, repository_name: str, keep_images: int = 50) -> None:
        super().__init__(scope, construct_id)
        self.repository = ecr.Repository(
            self,
            "Repository",
            repository_name=repository_name,
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            removal_policy=cdk.RemovalPolicy.RETAIN,
            lifecycle_rules=[
                ecr.LifecycleRule(
                    description="untagged", tag_status=ecr.TagStatus.UNTAGGED, max_image_age=cdk.Duration.days(7)
                ),
                ecr.LifecycleRule(description="newest only", max_image_count=keep_images),
            ],
        )
        stack = cdk.Stack.of(self)
        qualifier = stack.synthesizer.bootstrap_qualifier or "hnb659fds"
        publisher = stack.format_arn(
            service="iam",
            region="",
            resource="role",
            resource_name=f"cdk-{qualifier}-image-publishing-role-{stack.account}-{stack.region}",
        )
        self.repository.add_to_resource_policy(
            iam.PolicyStatement(
                sid="CdkPublishesImageAssets",
                principals=[iam.ArnPrincipal(publisher)],
                actions=list(PUBLISH_ACTIONS),
            )
        )
