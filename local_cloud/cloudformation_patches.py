"""What the emulator's CloudFormation lacks for the lab's stacks: see docs/local-cloud.md."""

from __future__ import annotations

import json
from typing import Any

from ministack.services import budgets, ecr, iam, secretsmanager
from ministack.services.cloudformation import changesets, engine
from ministack.services.cloudformation.provisioners import _RESOURCE_HANDLERS as HANDLERS

from training_image.config.zones import zone_count

Props = dict[str, Any]
Result = tuple[str, dict[str, Any]]
"""A provisioned resource's physical id and attributes."""
EMULATED_ZONES = 3
"""What the emulator itself shows in every region."""


def apply() -> None:
    """Apply every patch of this module."""
    repositories_that_exist()
    HANDLERS["AWS::IAM::OIDCProvider"] = {
        "create": create_oidc_provider,
        "update": update_oidc_provider,
        "delete": lambda physical_id, props: iam._oidc_providers.pop(physical_id, None),
    }
    HANDLERS["AWS::Budgets::Budget"] = {
        "create": create_budget,
        "update": update_budget,
        "delete": lambda physical_id, props: budgets._delete_budget({"BudgetName": physical_id}),
    }
    secrets_without_a_value()
    zones_of_the_region()


def repositories_that_exist() -> None:
    """A repository that exists already is refused, not taken over in silence; ImportExistingResources adopts it, as it
    is: CloudFormation changes nothing of what it imports."""
    handler, repositories = HANDLERS["AWS::ECR::Repository"], ecr._repositories
    create = handler["create"]

    def create_repository(logical_id: str, props: Props, stack_name: str) -> Result:
        if (name := props.get("RepositoryName")) in repositories:
            raise ValueError(f"Resource of type 'AWS::ECR::Repository' with identifier '{name}' already exists.")
        result: Result = create(logical_id, props, stack_name)
        return result

    def adopt(identifier: dict[str, str]) -> Result:
        name = identifier["RepositoryName"]
        found = repositories[name]
        return name, {"Arn": found["repositoryArn"], "RepositoryUri": found["repositoryUri"]}

    def problem(name: str) -> str | None:
        return None if name in repositories else f"The repository with name '{name}' does not exist"

    handler.update(create=create_repository, **{"import": adopt})
    changesets._IMPORT_LOOKUPS["AWS::ECR::Repository"] = (("RepositoryName",), problem)


def create_oidc_provider(logical_id: str, props: Props, stack_name: str) -> Result:
    """One per account and address: a second one is refused."""
    arn = f"arn:aws:iam::{iam.get_account_id()}:oidc-provider/{props['Url'].removeprefix('https://').rstrip('/')}"
    if arn in iam._oidc_providers:
        raise ValueError(f"OIDC provider with url {props['Url']} already exists.")
    audiences = {f"ClientIDList.member.{n}": each for n, each in enumerate(props.get("ClientIdList", []), 1)}
    iam._create_oidc_provider({"Url": props["Url"], **audiences})
    return arn, {"Arn": arn}


def update_oidc_provider(physical_id: str, old: Props, new: Props, stack_name: str) -> Result:
    if old["Url"] != new["Url"]:
        raise ValueError("the local cloud does not replace an OIDC provider by one of another address")
    iam._oidc_providers[physical_id]["ClientIDList"] = list(new.get("ClientIdList", []))
    return physical_id, {"Arn": physical_id}


def create_budget(logical_id: str, props: Props, stack_name: str) -> Result:
    budget = {"BudgetName": f"{stack_name}-{logical_id}", **props["Budget"]}
    budget["BudgetLimit"] = {**budget["BudgetLimit"], "Amount": str(budget["BudgetLimit"]["Amount"])}
    subscribers = props.get("NotificationsWithSubscribers")
    status, _, body = budgets._create_budget({"Budget": budget, "NotificationsWithSubscribers": subscribers})
    if status >= 400:
        raise ValueError(json.loads(body)["message"])
    return budget["BudgetName"], {}


def update_budget(physical_id: str, old: Props, new: Props, stack_name: str) -> Result:
    budgets._delete_budget({"BudgetName": physical_id})
    return create_budget("", {**new, "Budget": {**new["Budget"], "BudgetName": physical_id}}, stack_name)


def secrets_without_a_value() -> None:
    """A secret whose template gives no value has no version, instead of an empty one."""
    handler = HANDLERS["AWS::SecretsManager::Secret"]
    create = handler["create"]

    def create_secret(logical_id: str, props: Props, stack_name: str) -> Result:
        result: Result = create(logical_id, props, stack_name)
        if not {"SecretString", "GenerateSecretString"} & set(props):
            secretsmanager._secrets[result[0]]["Versions"] = {}
        return result

    handler["create"] = create_secret


def zones_of_the_region() -> None:
    """Fn::GetAZs lists at least the zones that the catalog of zones promises."""
    resolve = engine._resolve_refs

    def resolve_refs(value: Any, *context: Any, **named: Any) -> Any:
        found = resolve(value, *context, **named)
        if isinstance(value, dict) and set(value) == {"Fn::GetAZs"} and found:
            region = found[0][:-1]
            return [f"{region}{letter}" for letter in "abcdef"[: max(EMULATED_ZONES, zone_count(region))]]
        return found

    engine._resolve_refs = resolve_refs
