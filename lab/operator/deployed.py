"""`lab output`: the values that a deployed lab is used with, by the names that Terraform users type."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from training_image.config import lab_settings
from training_image.config.lab_settings import LabConfig
from training_image.core import contract
from training_image.core.contract import DATA_STACK, TRAINING_STACK, RunKeys
from training_image.core.errors import UserError
from training_image.core.records import read_outcome
from training_image.core.store import Store

STACK_OUTPUTS = {
    "training_bucket": (DATA_STACK, "TrainingBucket"),
    "outputs_bucket": (DATA_STACK, "OutputsBucket"),
    "repository_uri": (DATA_STACK, "RepositoryUri"),
    "ecr_repository_url": (DATA_STACK, "RepositoryUri"),
    "alert_topic_arn": (DATA_STACK, "AlertTopicArn"),
    "github_actions_role_arn": (DATA_STACK, "GithubActionsRoleArn"),
    "auto_scaling_group_name": (TRAINING_STACK, "AutoScalingGroupName"),
    "run_id": (TRAINING_STACK, "RunId"),
    "run_prefix": (TRAINING_STACK, "RunPrefix"),
    "dashboard_url": (TRAINING_STACK, "DashboardUrl"),
    "training_log": (TRAINING_STACK, "TrainingLog"),
    "connect_command": (TRAINING_STACK, "ConnectCommand"),
}
DEPLOY_ROLE = "github_actions_deploy_role_arn"
"""Published as a parameter only: the stacks' outputs are what everybody types, this is typed once."""
INSTANCE = "instance_id"
NAMES = (*STACK_OUTPUTS, DEPLOY_ROLE, INSTANCE)
GITHUB = ("github_actions_role_arn", DEPLOY_ROLE)


class OutputError(UserError):
    """There is no such value, or not now. One sentence for the operator."""


class Outputs:
    """The values of one lab and run, read from AWS when asked for; botocore's errors pass through.

    Args:
        client: makes a boto3 client of a service in the lab's region.
    """

    def __init__(self, config: LabConfig, region: str | None, client: Callable[[str], Any]) -> None:
        self._config = config
        self._region = region
        self._client = client
        self._stacks: dict[str, dict[str, str]] = {}

    def value(self, name: str) -> str:
        """One value.

        Raises:
            OutputError: unknown name, stack not deployed, or no instance at the moment.
        """
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(NAMES)}."
            raise OutputError(f"There is no output {name!r}. {hint}")
        if name == INSTANCE:
            return self._instance()
        if name == DEPLOY_ROLE:
            return self._deploy_role()
        stack, key = STACK_OUTPUTS[name]
        found = self._of(stack).get(key)
        if found is None:
            raise OutputError(self._absent(name, stack))
        return found

    def everything(self) -> dict[str, str]:
        """All values there are now, by name. A stack that is not deployed has none.

        Raises:
            OutputError: no stack is deployed.
        """
        self._of(DATA_STACK)
        found: dict[str, str] = {}
        for name in NAMES:
            # An instance that is not there needs no reason here.
            if name != INSTANCE or (TRAINING_STACK in self._stacks and not all(map(_going, self._members()))):
                with contextlib.suppress(OutputError):
                    found[name] = self.value(name)
        return found

    def results(self) -> Store:
        """The bucket of the runs.

        Raises:
            OutputError: DataStack is not deployed.
        """
        return Store(self._client("s3"), self.value("outputs_bucket"))

    def command(self, words: str) -> str:
        """``words`` as the operator types them for this lab and run."""
        return self._config.command(words)

    def _of(self, stack: str) -> dict[str, str]:
        """A stack's outputs by their names in CloudFormation."""
        if stack not in self._stacks:
            name = self._config.data_stack_name if stack == DATA_STACK else self._config.training_stack_name
            try:
                (described,) = self._client("cloudformation").describe_stacks(StackName=name)["Stacks"]
            except ClientError as error:
                if error.response["Error"]["Code"] != "ValidationError":
                    raise
                raise OutputError(
                    f"{name} is not deployed in {self._region}: {self._config.command(f'cdk deploy {stack}')} "
                    "(deployed elsewhere? Set region in lab.yaml, or AWS_REGION)."
                ) from None
            outputs = {item["OutputKey"]: item["OutputValue"] for item in described.get("Outputs", [])}
            if not outputs:
                raise OutputError(
                    f"{name} is in state {described['StackStatus']} and has no outputs yet: wait for the deploy to "
                    f"end, or repeat it: {self._config.command(f'cdk deploy {stack}')}"
                )
            self._stacks[stack] = outputs
        return self._stacks[stack]

    def _absent(self, name: str, stack: str) -> str:
        command = self._config.command(f"cdk deploy {stack}")
        if name in GITHUB:
            return f"{stack} has no GitHub roles: set github_repository in lab.yaml, then {command}"
        return f"{stack} has no output {name}, so it was deployed by an older version: {command}"

    def _deploy_role(self) -> str:
        name = contract.parameter_name(self._config.lab, "GithubActionsDeployRoleArn")
        ssm = self._client("ssm")
        try:
            return str(ssm.get_parameter(Name=name)["Parameter"]["Value"])
        except ssm.exceptions.ParameterNotFound:
            self._of(DATA_STACK)  # says so if it is not deployed at all
            raise OutputError(self._absent(DEPLOY_ROLE, DATA_STACK)) from None

    def _instance(self) -> str:
        members = self._members()
        for member in members:
            if not _going(member):
                return str(member["InstanceId"])
        raise OutputError(f"There is no instance now: {self._run_state([m['InstanceId'] for m in members])}")

    def _members(self) -> list[dict[str, Any]]:
        group = self.value("auto_scaling_group_name")
        found = self._client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[group])
        return [item for each in found["AutoScalingGroups"] for item in each["Instances"]]

    def _run_state(self, going: Sequence[str]) -> str:
        """Why there is no instance, as far as the run's own objects tell."""
        run_id = self.value("run_id")
        if run_id == "none":
            return "no run was started (create_instance: false)."
        if outcome := read_outcome(self.results(), RunKeys(run_id)):
            return f"run {run_id} ended as {outcome.reason} ({outcome.sentence})."
        if going:
            return f"{', '.join(going)} is ending, and run {run_id} goes on with the next instance."
        return f"run {run_id} waits for capacity; ask again later."


def _going(member: dict[str, Any]) -> bool:
    return str(member["LifecycleState"]).startswith("Terminat")


def load(root: Path, context: Mapping[str, str]) -> tuple[Outputs, str | None, tuple[str, ...]]:
    """(outputs, region, what is wrong in lab.yaml) of the lab that ``cdk`` in this clone and shell would deploy.

    ``context`` are the words after ``-c``; they win over lab.yaml, as they do for ``cdk``.
    """
    loaded = lab_settings.load(root / "lab.yaml", context, os.environ)
    # boto3 does not read AWS_REGION, cdk does.
    session = boto3.session.Session(region_name=loaded.config.region or os.environ.get("AWS_REGION"))
    return Outputs(loaded.config, session.region_name, session.client), session.region_name, loaded.lab_problems
