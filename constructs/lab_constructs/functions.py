"""A Lambda function as this lab has them: a role and a log of its own, and the code that it shares with the
instance."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.permissions import allow

ROOT = Path(__file__).parents[2]
SHARED = "core"
"""Room of ``training_image`` that the functions share with the instance: standard library and boto3 only."""


@dataclass(frozen=True)
class LabFunction:
    function: lambda_.Function
    role: iam.Role
    log_group: logs.LogGroup


def lab_function(
    scope: Construct,
    construct_id: str,
    *,
    code: str,
    description: str,
    may: str,
    timeout: cdk.Duration,
    environment: Mapping[str, str] | None = None,
) -> LabFunction:
    """A function, its role, which may write its own log and nothing yet, and that log, gone with the stack.

    Args:
        code: folder below ``lambda/``.
        may: description of the role.
    """
    log_group = logs.LogGroup(
        scope, "Log", retention=logs.RetentionDays.ONE_MONTH, removal_policy=cdk.RemovalPolicy.DESTROY
    )
    role = iam.Role(scope, "Role", assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"), description=may)
    acknowledge(
        log_group, "Encrypted by CloudWatch; the log names runs and decisions, no data, no token.", "CKV_AWS_158"
    )
    # Not CreateLogGroup: late output would bring back a log group that the stack has deleted.
    allow(role, "WritesOwnLog", ["logs:CreateLogStream", "logs:PutLogEvents"], [log_group.log_group_arn])
    function = lambda_.Function(
        scope,
        construct_id,
        runtime=lambda_.Runtime.PYTHON_3_14,
        handler="index.handler",
        code=staged_code(code),
        role=role,
        log_group=log_group,
        timeout=timeout,
        memory_size=256,
        environment=dict(environment) if environment else None,
        description=description,
    )
    acknowledge(
        function, "It calls AWS's public APIs only; in a VPC it would need endpoints, paid by the hour.", "CKV_AWS_117"
    )
    acknowledge(function, "CDK names the role's policy and, redundantly, the role.", "W3005")
    return LabFunction(function, role, log_group)


def staged_code(name: str) -> lambda_.Code:
    """The handler's folder together with what it shares with the instance, by the same names as everywhere."""
    staging = Path(tempfile.mkdtemp(prefix="lambda-"))
    code = staging / name
    shutil.copytree(ROOT / "lambda" / name, code, ignore=shutil.ignore_patterns("__pycache__"))
    package = code / "training_image"
    shutil.copytree(ROOT / "training_image" / SHARED, package / SHARED, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "training_image" / "__init__.py", package)
    return lambda_.Code.from_asset(str(code))
