"""The roles that `cdk bootstrap` made in this account and region."""

import aws_cdk as cdk
from constructs import Construct


def bootstrap_role_arn(scope: Construct, kind: str) -> str:
    """ARN of one of them, e.g. ``deploy`` or ``image-publishing``; the stack's own qualifier counts."""
    stack = cdk.Stack.of(scope)
    qualifier = stack.synthesizer.bootstrap_qualifier or cdk.DefaultStackSynthesizer.DEFAULT_QUALIFIER
    return stack.format_arn(
        service="iam",
        region="",
        resource="role",
        resource_name=f"cdk-{qualifier}-{kind}-role-{stack.account}-{stack.region}",
    )
