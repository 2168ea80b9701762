"""The lab's alert topic, and who is told."""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sns as sns
from constructs import Construct

from lab_constructs.acknowledge import acknowledge

PUBLISHERS = {"BudgetsPublish": "budgets.amazonaws.com", "AlarmsPublish": "cloudwatch.amazonaws.com"}


class Alerts(Construct):
    """One topic for every alert of the lab. It lives here, because an e-mail subscription is confirmed once, not at
    every run.

    Alarms and budgets of this account publish by the topic's policy, Lambdas by their own roles. EventBridge is left
    out: it sends SNS no source account to check, so letting it in would let in every account's rules.

    No customer key: ``alias/aws/sns`` silently drops what alarms send, a key of our own costs 1 USD a month, and the
    messages hold no secrets. TLS is required.

    Args:
        email: subscribed once it has confirmed AWS's question (within 48 hours); None: subscribe by hand.
    """

    def __init__(self, scope: Construct, construct_id: str, *, email: str | None) -> None:
        super().__init__(scope, construct_id)
        self.topic = sns.Topic(self, "Topic", display_name="LLM Tuning Lab", enforce_ssl=True)
        acknowledge(
            self.topic,
            "No customer key, see the class: what it would protect is an e-mail a second later.",
            "CKV_AWS_26",
        )
        account = cdk.Stack.of(self).account
        for sid, service in PUBLISHERS.items():
            self.topic.add_to_resource_policy(
                iam.PolicyStatement(
                    sid=sid,
                    principals=[iam.ServicePrincipal(service)],
                    actions=["sns:Publish"],
                    resources=[self.topic.topic_arn],
                    conditions={"StringEquals": {"aws:SourceAccount": account}},
                )
            )
        if email is not None:
            sns.Subscription(self, "Email", topic=self.topic, protocol=sns.SubscriptionProtocol.EMAIL, endpoint=email)
