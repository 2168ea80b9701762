"""What the emulator's CloudFormation lacks for DataStack, and what STS should refuse: see docs/local-cloud.md."""

from __future__ import annotations

import re
from typing import Any

from local_cloud.hooks import Module

Result = tuple[str, dict[str, Any]]
"""A provisioned resource's physical id and attributes."""


def apply() -> None:
    """Apply every patch of this module.

    Raises:
        IncompatibleEmulatorError: a hook is missing.
    """
    repositories_that_exist()
    oidc_providers()
    secrets_without_a_value()
    web_identity_needs_its_provider()


def _handlers() -> Any:
    return Module("ministack.services.cloudformation.provisioners").get("_RESOURCE_HANDLERS")


def repositories_that_exist() -> None:
    """A repository that exists already is refused, not taken over in silence; ImportExistingResources adopts it, as it
    is: CloudFormation changes nothing of what it imports."""
    handler = _handlers()["AWS::ECR::Repository"]
    repositories = Module("ministack.services.ecr").get("_repositories")
    create = handler["create"]

    def create_repository(logical_id: str, props: dict[str, Any], stack_name: str) -> Result:
        if (name := props.get("RepositoryName")) in repositories:
            raise ValueError(f"Resource of type 'AWS::ECR::Repository' with identifier '{name}' already exists.")
        result: Result = create(logical_id, props, stack_name)
        return result

    def adopt(identifier: dict[str, str]) -> Result:
        repository = repositories[identifier["RepositoryName"]]
        return identifier["RepositoryName"], {
            "Arn": repository["repositoryArn"],
            "RepositoryUri": repository["repositoryUri"],
        }

    def problem(name: str) -> str | None:
        return None if name in repositories else f"The repository with name '{name}' does not exist"

    handler.update(create=create_repository, **{"import": adopt})
    lookups = Module("ministack.services.cloudformation.changesets").get("_IMPORT_LOOKUPS")
    lookups["AWS::ECR::Repository"] = (("RepositoryName",), problem)


def oidc_providers() -> None:
    """The type AWS::IAM::OIDCProvider. One per account and address: a second one is refused."""
    iam = Module("ministack.services.iam")
    create, providers = iam.get("_create_oidc_provider"), iam.get("_oidc_providers")

    def create_provider(logical_id: str, props: dict[str, Any], stack_name: str) -> Result:
        request = {"Url": props["Url"]}
        for number, audience in enumerate(props.get("ClientIdList", []), 1):
            request[f"ClientIDList.member.{number}"] = audience
        status, _, body = create(request)
        if status >= 400:
            message = re.search("<Message>(.*)</Message>", body.decode())
            raise ValueError(message[1] if message else body.decode())
        arn = re.search("<OpenIDConnectProviderArn>(.*)</OpenIDConnectProviderArn>", body.decode())
        assert arn is not None  # noqa: S101 the emulator's own answer
        return arn[1], {"Arn": arn[1]}

    def update_provider(physical_id: str, old: dict[str, Any], new: dict[str, Any], stack_name: str) -> Result:
        if old["Url"] != new["Url"]:
            raise ValueError("the local cloud does not replace an OIDC provider by one of another address")
        providers[physical_id]["ClientIDList"] = list(new.get("ClientIdList", []))
        return physical_id, {"Arn": physical_id}

    def delete_provider(physical_id: str, props: dict[str, Any]) -> None:
        providers.pop(physical_id, None)

    _handlers()["AWS::IAM::OIDCProvider"] = {
        "create": create_provider,
        "update": update_provider,
        "delete": delete_provider,
    }


def secrets_without_a_value() -> None:
    """A secret whose template gives no value has no version, instead of an empty one."""
    handler = _handlers()["AWS::SecretsManager::Secret"]
    secrets = Module("ministack.services.secretsmanager").get("_secrets")
    create = handler["create"]

    def create_secret(logical_id: str, props: dict[str, Any], stack_name: str) -> Result:
        result: Result = create(logical_id, props, stack_name)
        if not {"SecretString", "GenerateSecretString"} & set(props):
            secrets[result[0]]["Versions"] = {}
        return result

    handler["create"] = create_secret


def web_identity_needs_its_provider() -> None:
    """STS refuses a token whose issuer is no provider of the account, or whose audience that provider does not list.
    (Signature and expiry stay unchecked: GitHub's keys are out of reach.)"""
    sts = Module("ministack.services.sts")
    providers = Module("ministack.services.iam").get("_oidc_providers")
    error, parameter, principal = (sts.get(name) for name in ("_error", "_p", "_web_identity_principal"))
    denied = sts.get("_web_identity_trust_denied")

    def trust_denied(role_arn: str, params: dict[str, Any], use_json: bool) -> Any:
        arn, claims = principal(parameter(params, "WebIdentityToken"), parameter(params, "ProviderId"), role_arn)
        host = arn.rsplit("oidc-provider/", 1)[-1]
        if arn not in providers:
            message = f"No OpenIDConnect provider found in your account for https://{host}"
            return error(400, "InvalidIdentityToken", message, ns="sts")
        if claims.get(f"{host}:aud") not in providers[arn]["ClientIDList"]:
            return error(400, "InvalidIdentityToken", "Incorrect token audience", ns="sts")
        return denied(role_arn, params, use_json)

    sts.replace("_web_identity_trust_denied", trust_denied)
