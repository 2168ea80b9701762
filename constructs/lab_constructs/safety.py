"""What ends an instance that did not end itself, what tells, and what the month may cost."""

import math

import aws_cdk as cdk
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from constructs import Construct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.functions import lab_function
from lab_constructs.permissions import allow
from training_image.core import contract

LOOK_EVERY_MINUTES = 2
ALARM_HOURS_LIMIT = 168
"""CloudWatch keeps an alarm's window below a week."""
WARN_AT_PERCENT = (50, 80, 100)
ALL_OF_EC2 = "Amazon Elastic Compute Cloud - Compute"


class Safety(Construct):
    """The auto-terminator (killer 2), two alarms, and the budget.

    Killer 1 is the instance itself and killer 3 the scheduled action that the run controller puts; each works without
    the others. The alarms tell and do not kill: an alarm's window starts anew at each relaunch. Nor does the budget:
    AWS computes cost up to three times a day, typically 8 to 12 hours late.

    Args:
        group: the group whose instances are ended, this stack's own.
        alert_topic: ARN of DataStack's topic.
        cost_alert_threshold: USD a month.
        cost_tag_active: count what carries the lab's tag; otherwise all of EC2 in the account. An inactive
            cost-allocation tag would count zero for ever.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        lab: str,
        group: autoscaling.IAutoScalingGroup,
        stack_suffix: str,
        run_prefix: str,
        outputs_bucket: str,
        alert_topic: str,
        max_runtime_hours: float,
        cost_alert_threshold: float,
        cost_tag_active: bool,
    ) -> None:
        super().__init__(scope, construct_id)
        stack = cdk.Stack.of(self)
        self._group = group
        topic = sns.Topic.from_topic_arn(self, "Alerts", alert_topic)
        self.function = self._terminator(
            {
                "GROUP": group.auto_scaling_group_name,
                "OUTPUTS_BUCKET": outputs_bucket,
                "STACK_SUFFIX": stack_suffix,
                "STACK_NAME": stack.stack_name,
                "ALERT_TOPIC": alert_topic,
                "MAX_RUNTIME_HOURS": str(max_runtime_hours),
            }
        )
        self._allow(stack_suffix, run_prefix, outputs_bucket, alert_topic)
        self._wake()
        self._alarms(topic, max_runtime_hours)
        self._budget(lab, alert_topic, cost_alert_threshold, cost_tag_active)

    def _terminator(self, environment: dict[str, str]) -> lambda_.Function:
        made = lab_function(
            self,
            "Terminator",
            code="auto_terminator",
            description="Ends the instances of one TrainingStack that did not end themselves",
            may="Auto-terminator: sees this stack's group and runs, ends its instances, sends its alerts",
            timeout=cdk.Duration.minutes(1),
            environment=environment,
        )
        self.role = made.role
        acknowledge(
            made.function,
            "Two looks at once do no harm, and what one misses the next sees minutes later: nothing to limit or keep.",
            "CKV_AWS_115",
            "CKV_AWS_116",
        )
        reason = "Names of a group, a bucket and a topic: nothing to encrypt with a key."
        acknowledge(made.function, reason, "CKV_AWS_173")
        return made.function

    def _allow(self, stack_suffix: str, run_prefix: str, outputs_bucket: str, alert_topic: str) -> None:
        stack = cdk.Stack.of(self)
        bucket = stack.format_arn(service="s3", region="", account="", resource=outputs_bucket)
        runs, pointer = f"runs/{run_prefix}-*", contract.pointer_key(stack_suffix)
        number = "Run ids end in a number that is not known yet; their prefix is this stack's own."
        allow(self.role, "ReadsRuns", ["s3:GetObject"], [f"{bucket}/{runs}", f"{bucket}/{pointer}"], wildcard=number)
        allow(
            self.role,
            "WritesOutcomes",
            ["s3:PutObject"],
            [f"{bucket}/{runs}/outcome.json", f"{bucket}/{runs}/events/*"],
            wildcard=number,
        )
        # A missing key answers 403 to this role; the list tells it from a refusal.
        allow(self.role, "ListsRuns", ["s3:ListBucket"], [bucket], {"StringLike": {"s3:prefix": [runs, pointer]}})
        allow(
            self.role,
            "SeesInstances",
            [
                "autoscaling:DescribeAutoScalingGroups",
                "autoscaling:DescribeScalingActivities",
                "ec2:DescribeInstances",
            ],
            ["*"],
            wildcard="AWS offers no resource for these; they only read.",
        )
        group = stack.format_arn(
            service="autoscaling",
            resource="autoScalingGroup:*:autoScalingGroupName",
            resource_name=self._group.auto_scaling_group_name,
        )
        allow(
            self.role,
            "TakesCapacity",
            ["autoscaling:UpdateAutoScalingGroup"],
            [group],
            wildcard="The star stands for the group's UUID, which CloudFormation does not tell; the name is exact.",
        )
        allow(
            self.role,
            "EndsInstances",
            ["ec2:TerminateInstances"],
            [stack.format_arn(service="ec2", resource="instance", resource_name="*")],
            {"StringEquals": {f"aws:ResourceTag/{contract.STACK_TAG}": stack_suffix}},
            wildcard="Instance ids are not known yet; the tag is this stack's own.",
        )
        allow(self.role, "SendsAlerts", ["sns:Publish"], [alert_topic])

    def _wake(self) -> None:
        """On schedule, and at once when something happens. Events cannot be filtered by a tag: those of other instances
        make it look in vain, which costs nothing to speak of."""
        target = targets.LambdaFunction(self.function)
        every = events.Schedule.rate(cdk.Duration.minutes(LOOK_EVERY_MINUTES))
        events.Rule(self, "Schedule", schedule=every, targets=[target])
        events.Rule(
            self,
            "Events",
            targets=[target],
            event_pattern=events.EventPattern(
                source=["aws.ec2", "aws.autoscaling"],
                detail_type=[
                    "EC2 Instance State-change Notification",
                    "EC2 Spot Instance Interruption Warning",
                    "EC2 Instance Rebalance Recommendation",
                    "EC2 Instance Launch Successful",
                    "EC2 Instance Launch Unsuccessful",
                    "EC2 Instance Terminate Successful",
                    "EC2 Instance Terminate Unsuccessful",
                ],
            ),
        )

    def _alarms(self, topic: sns.ITopic, max_runtime_hours: float) -> None:
        hours = min(max(1, math.ceil(max_runtime_hours)), ALARM_HOURS_LIMIT)
        runtime = cloudwatch.Alarm(
            self,
            "MaxRuntime",
            alarm_description=f"An instance has been in service for {hours} hours: longer than a run may take",
            metric=cloudwatch.Metric(
                namespace="AWS/AutoScaling",
                metric_name="GroupInServiceInstances",
                dimensions_map={"AutoScalingGroupName": self._group.auto_scaling_group_name},
                statistic="Maximum",
                period=cdk.Duration.hours(1),
            ),
            threshold=1,
            evaluation_periods=hours,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        failing = cloudwatch.Alarm(
            self,
            "TerminatorErrors",
            alarm_description="The auto-terminator fails: only the instance and the scheduled action still end the run",
            metric=self.function.metric_errors(period=cdk.Duration.minutes(5)),
            threshold=1,
            evaluation_periods=1,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        for alarm in (runtime, failing):
            alarm.add_alarm_action(actions.SnsAction(topic))
        runtime.add_alarm_action(actions.LambdaAction(self.function))

    def _budget(self, lab: str, alert_topic: str, threshold: float, by_tag: bool) -> None:
        filters = {"TagKeyValue": [f"user:{contract.LAB_TAG}${lab}"]} if by_tag else {"Service": [ALL_OF_EC2]}
        alerts = [("ACTUAL", percent) for percent in WARN_AT_PERCENT] + [("FORECASTED", 100)]
        budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=threshold, unit="USD"),
                cost_filters=filters,
            ),
            notifications_with_subscribers=[
                budgets.CfnBudget.NotificationWithSubscribersProperty(
                    notification=budgets.CfnBudget.NotificationProperty(
                        notification_type=kind,
                        comparison_operator="GREATER_THAN",
                        threshold=percent,
                        threshold_type="PERCENTAGE",
                    ),
                    subscribers=[budgets.CfnBudget.SubscriberProperty(subscription_type="SNS", address=alert_topic)],
                )
                for kind, percent in alerts
            ],
        )
