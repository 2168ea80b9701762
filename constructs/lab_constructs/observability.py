"""What people watch a run by: its log in a log group of the stack, and a dashboard."""

import aws_cdk as cdk
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.permissions import allow
from training_image.core import contract

LOG_LINES = 50
PERIOD = cdk.Duration.minutes(1)
HALF, FULL, HEIGHT = 12, 24, 6


class Observability(Construct):
    """Created and removed with the stack; S3 keeps what must last.

    A dashboard costs 3 USD a month beyond the first three of an account. There is no alarm on progress or on an idle
    GPU: evaluations and uploads look idle too, and the auto-terminator, which reads the heartbeat, knows better.

    Args:
        group: whose instances are counted.
    """

    def __init__(self, scope: Construct, construct_id: str, *, group: autoscaling.IAutoScalingGroup) -> None:
        super().__init__(scope, construct_id)
        self.log_group = logs.LogGroup(
            self, "TrainingLog", retention=logs.RetentionDays.ONE_MONTH, removal_policy=cdk.RemovalPolicy.DESTROY
        )
        acknowledge(self.log_group, "Encrypted by CloudWatch; the trainer logs figures and no token.", "CKV_AWS_158")
        self._group = group
        # No name: two labs, or a stack that is deployed anew, would collide.
        self.dashboard = cloudwatch.Dashboard(
            self,
            "Dashboard",
            default_interval=cdk.Duration.hours(12),
            period_override=cloudwatch.PeriodOverride.INHERIT,
            widgets=[
                [self._graph("Loss", "Loss"), self._graph("Tokens per second", "TokensPerSecond")],
                [
                    self._graph("GPU, percent", "GpuUtilization", "GpuMemoryUsed", top=100),
                    self._graph("Step, and the step that is safe in S3", "Step", "DurableStep"),
                ],
                [self._graph("Attempt", "Attempt"), self._instances()],
                [self._log()],
            ],
        )

    @property
    def dashboard_url(self) -> str:
        """Where the console shows the dashboard."""
        region = cdk.Stack.of(self).region
        return (
            f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}"
            f"#dashboards/dashboard/{self.dashboard.dashboard_name}"
        )

    def grant_publish(self, role: iam.Role) -> None:
        """The training instance may write this log and the lab's metrics, and read neither."""
        # Not CreateLogGroup: late output would bring back a log group that the stack has deleted.
        write = ["logs:CreateLogStream", "logs:PutLogEvents"]
        allow(role, "WritesTrainingLog", write, [self.log_group.log_group_arn])
        allow(
            role,
            "PutsMetrics",
            ["cloudwatch:PutMetricData"],
            ["*"],
            {"StringEquals": {"cloudwatch:namespace": contract.METRIC_NAMESPACE}},
            wildcard="metrics have no ARN; the namespace bounds the permission",
        )

    def _graph(self, title: str, *names: str, top: float | None = None) -> cloudwatch.GraphWidget:
        """The latest values in each minute, by name as ``training_image.supervisor.cloudwatch`` publishes them."""
        metrics = [
            cloudwatch.Metric(
                namespace=contract.METRIC_NAMESPACE,
                metric_name=name,
                dimensions_map={"Stack": cdk.Stack.of(self).stack_name},
                statistic="Average",
                period=PERIOD,
                label=name,
            )
            for name in names
        ]
        axis = cloudwatch.YAxisProps(min=0, max=top, show_units=False)
        return cloudwatch.GraphWidget(title=title, left=metrics, left_y_axis=axis, width=HALF, height=HEIGHT)

    def _instances(self) -> cloudwatch.GraphWidget:
        metric = cloudwatch.Metric(
            namespace="AWS/AutoScaling",
            metric_name="GroupInServiceInstances",
            dimensions_map={"AutoScalingGroupName": self._group.auto_scaling_group_name},
            statistic="Maximum",
            period=PERIOD,
            label="In service",
        )
        axis = cloudwatch.YAxisProps(min=0, max=1, show_units=False)
        return cloudwatch.GraphWidget(title="Instances", left=[metric], left_y_axis=axis, width=HALF, height=HEIGHT)

    def _log(self) -> cloudwatch.LogQueryWidget:
        return cloudwatch.LogQueryWidget(
            title=f"Training log, last {LOG_LINES} lines",
            log_group_names=[self.log_group.log_group_name],
            query_lines=["fields @timestamp, @message", "sort @timestamp desc", f"limit {LOG_LINES}"],
            width=FULL,
            height=HEIGHT,
        )
