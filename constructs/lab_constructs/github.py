"""GitHub Actions' way into the account: no key stored anywhere, one repository, two roles."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from constructs import Construct

from lab_constructs.bootstrap import bootstrap_role_arn
from lab_constructs.permissions import allow
from lab_constructs.registry import PUSH_ACTIONS

ISSUER = "token.actions.githubusercontent.com"
AUDIENCE = "sts.amazonaws.com"
BOOTSTRAP_ROLES = ("deploy", "file-publishing", "image-publishing", "lookup")


def subject(repository: str, context: str, ids: tuple[int, int] | None) -> str:
    """The ``sub`` of GitHub's tokens for ``repository`` (``owner/name``), spelled as GitHub spells it.

    Args:
        context: ``ref:refs/heads/<branch>``, or ``environment:<name>`` for a job that names an environment.
        ids: owner's and repository's numbers: the immutable form, which repositories made, renamed or transferred after
            2026-07-15 emit. None: the classic form of older ones.
    """
    if ids is None:
        return f"repo:{repository}:{context}"
    owner, name = repository.split("/")
    return f"repo:{owner}@{ids[0]}/{name}@{ids[1]}:{context}"


class Github(Construct):
    """The identity provider, a role that pushes images, and one that deploys.

    Trust is exact: ``StringEquals`` on audience and subject, no patterns.

    Args:
        repository: ``owner/name``.
        ids: see ``subject``.
        branch: its jobs outside any environment may push to ``images``, and to nothing else.
        environment: its jobs may assume the CDK bootstrap's roles of this account and region. By CDK's default the
            bootstrap lets CloudFormation do anything, so give the environment reviewers.
        create_provider: False: the account has it already; it is global, so another lab or region made it.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        repository: str,
        ids: tuple[int, int] | None,
        branch: str,
        environment: str,
        create_provider: bool,
        images: ecr.IRepository,
    ) -> None:
        super().__init__(scope, construct_id)
        provider_arn = self._provider_arn(create_provider)
        self.push_role = self._role(
            "PushRole",
            provider_arn,
            subject(repository, f"ref:refs/heads/{branch}", ids),
            f"Pushes training images from {repository}, branch {branch}",
        )
        allow(
            self.push_role,
            "LogsInToRegistry",
            ["ecr:GetAuthorizationToken"],
            ["*"],
            wildcard="AWS offers no resource for the token; what it is good for is decided by the next statement.",
        )
        allow(self.push_role, "PushesImages", PUSH_ACTIONS, [images.repository_arn])
        self.deploy_role = self._role(
            "DeployRole",
            provider_arn,
            subject(repository, f"environment:{environment}", ids),
            f"Deploys the lab from {repository}, environment {environment}",
        )
        bootstrap_roles = [bootstrap_role_arn(self, kind) for kind in BOOTSTRAP_ROLES]
        allow(self.deploy_role, "AssumesBootstrapRoles", ["sts:AssumeRole"], bootstrap_roles)

    def _provider_arn(self, create: bool) -> str:
        if not create:
            return cdk.Stack.of(self).format_arn(
                service="iam", region="", resource="oidc-provider", resource_name=ISSUER
            )
        # No thumbprints: AWS verifies GitHub's certificate by its own authorities. Kept when the stack is deleted,
        # because other labs of the account may use it; a first deploy that is rolled back takes it along.
        provider = iam.OidcProviderNative(
            self,
            "Provider",
            url=f"https://{ISSUER}",
            client_ids=[AUDIENCE],
            removal_policy=cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
        )
        return provider.oidc_provider_arn

    def _role(self, construct_id: str, provider_arn: str, sub: str, description: str) -> iam.Role:
        trusted = iam.WebIdentityPrincipal(
            provider_arn, {"StringEquals": {f"{ISSUER}:aud": AUDIENCE, f"{ISSUER}:sub": sub}}
        )
        return iam.Role(
            self,
            construct_id,
            assumed_by=trusted,
            description=description,
            max_session_duration=cdk.Duration.hours(1),
        )
