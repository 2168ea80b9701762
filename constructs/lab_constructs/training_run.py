"""The run as a resource: Custom::TrainingRun and the Lambda behind it."""

import json
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from constructs import Construct, IConstruct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.functions import lab_function
from lab_constructs.permissions import allow
from training_image.core import contract

CONTROLLER_MINUTES = 15
"""Lambda's own limit, and the resource's ServiceTimeout: CloudFormation's default of an hour would block the stack."""


class TrainingRun(Construct):
    """Deploying starts a run, deleting stops it with a checkpoint.

    Args:
        spec: everything a run is made of; travels as one JSON string, because CloudFormation hands properties over as
            strings. No secret may be in it: the CLI prints the function's log when it fails.
        group: the group that the run's instance lives in.
        repository: where the image's tag is resolved to a digest, and the image tagged while its run needs it.
        run_prefix: what every run id of this stack starts with.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        spec: dict[str, Any],
        group: autoscaling.IAutoScalingGroup,
        repository: ecr.IRepository,
        run_prefix: str,
    ) -> None:
        super().__init__(scope, construct_id)
        made = lab_function(
            self,
            "Controller",
            code="run_controller",
            description="Starts and stops the runs of one TrainingStack",
            may="Run controller: this stack's runs and its group, nothing else",
            timeout=cdk.Duration.minutes(CONTROLLER_MINUTES),
        )
        self._allow(made.role, spec, group, repository, run_prefix)
        acknowledge(
            made.function,
            "CloudFormation calls it and waits for its answer: it needs no concurrency limit and no dead-letter queue.",
            "CKV_AWS_115",
            "CKV_AWS_116",
        )
        self.resource = cdk.CustomResource(
            self,
            "Resource",
            resource_type="Custom::TrainingRun",
            service_token=made.function.function_arn,
            service_timeout=cdk.Duration.minutes(CONTROLLER_MINUTES),
            # Not Stack.to_json_string: it drops nulls, and a setting that is null must arrive as null.
            properties={"Spec": json.dumps(spec, sort_keys=True)},
        )
        self.run_id = self.resource.get_att_string("RunId")
        self.after(made.role, made.log_group)
        acknowledge(
            self.resource.node.default_child or self.resource,
            "The dependencies are stated again, because the order of deletion must not depend on the spec's text.",
            "W3005",
        )

    def after(self, *constructs: IConstruct) -> None:
        """Create the run after these, and so delete it before them: deletion in parallel would take away the routes and
        policies that a draining instance still needs."""
        self.resource.node.add_dependency(*constructs)

    def _allow(
        self,
        role: iam.Role,
        spec: dict[str, Any],
        group: autoscaling.IAutoScalingGroup,
        repository: ecr.IRepository,
        run_prefix: str,
    ) -> None:
        stack = cdk.Stack.of(self)
        bucket = stack.format_arn(service="s3", region="", account="", resource=spec["outputs_bucket"])
        runs, pointer = f"runs/{run_prefix}-*", contract.pointer_key(spec["stack_suffix"])
        group_arn = stack.format_arn(
            service="autoscaling",
            resource="autoScalingGroup:*:autoScalingGroupName",
            resource_name=group.auto_scaling_group_name,
        )
        allow(
            role,
            "Runs",
            ["s3:GetObject", "s3:PutObject"],
            [f"{bucket}/{runs}", f"{bucket}/{pointer}"],
            wildcard="Run ids end in a number that is not known yet; their prefix is this stack's own.",
        )
        allow(
            role,
            "ReadsEarlierRuns",
            ["s3:GetObject"],
            [f"{bucket}/runs/*/{name}" for name in ("run.json", "outcome.json", "adapter/adapter_config.json")],
            wildcard="A run may continue any earlier one of this lab, also of a stack that is gone; it is only read.",
        )
        # A missing key answers 403 to this role; the list tells it from a refusal.
        allow(role, "ListsRuns", ["s3:ListBucket"], [bucket], {"StringLike": {"s3:prefix": ["runs/*", pointer]}})
        allow(
            role,
            "Scales",
            [
                "autoscaling:UpdateAutoScalingGroup",
                "autoscaling:PutScheduledUpdateGroupAction",
                "autoscaling:SuspendProcesses",
            ],
            [group_arn],
            wildcard="The star stands for the group's UUID, which CloudFormation does not tell; the name is exact.",
        )
        allow(
            role,
            "SeesGroups",
            ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities"],
            ["*"],
            wildcard="AWS offers no resource for it; it only reads.",
        )
        allow(role, "SendsAlerts", ["sns:Publish"], [spec["alert_topic"]])
        allow(role, "PinsImage", ["ecr:DescribeImages"], [repository.repository_arn])
        hold = ["ecr:BatchGetImage", "ecr:PutImage", "ecr:BatchDeleteImage"]
        allow(role, "HoldsImage", hold, [repository.repository_arn])
        allow(role, "SeesRollback", ["cloudformation:DescribeStacks"], [stack.stack_id])
        spot_role = stack.format_arn(
            service="iam",
            region="",
            resource="role",
            resource_name="aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot",
        )
        only_spot = {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
        allow(role, "SpotRole", ["iam:CreateServiceLinkedRole"], [spot_role], only_spot)
