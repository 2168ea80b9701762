"""DataStack: what stays. Buckets, image repository, alerts, tokens, GitHub's access, and the parameters of them all."""

from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from lab_constructs.alerts import Alerts
from lab_constructs.github import Github
from lab_constructs.registry import Registry
from lab_constructs.secrets import Tokens
from lab_constructs.storage import Storage
from training_image.config.lab_settings import LabConfig
from training_image.core import contract


class DataStack(cdk.Stack):
    """Persistent; deploys alone and survives every TrainingStack.

    What others need is published as SSM parameters for TrainingStack, and what people type is a stack output too. A
    construct reference, even a weak one, would make `cdk deploy TrainingStack` and `cdk destroy DataStack` drag in the
    other stack.
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: LabConfig, **kwargs: Any) -> None:
        super().__init__(
            scope, construct_id, description="LLM Tuning Lab: data, results, images (persistent)", **kwargs
        )
        storage = Storage(self, "Storage")
        registry = Registry(self, "Registry", repository_name=contract.repository_name(config.lab))
        alerts = Alerts(self, "Alerts", email=config.alert_email)
        tokens = Tokens(self, "Tokens")
        outputs = {
            "TrainingBucket": storage.training_bucket.bucket_name,
            "OutputsBucket": storage.outputs_bucket.bucket_name,
            "RepositoryUri": registry.repository.repository_uri,
            "AlertTopicArn": alerts.topic.topic_arn,
        }
        parameters = {"HuggingFaceTokenSecretArn": tokens.hugging_face_arn, "WandbApiKeySecretArn": tokens.wandb_arn}
        if config.github_repository is not None:
            github = Github(
                self,
                "Github",
                repository=config.github_repository,
                ids=config.github_ids,
                branch=config.github_branch,
                environment=config.github_environment,
                create_provider=config.create_oidc_provider,
                images=registry.repository,
            )
            outputs["GithubActionsRoleArn"] = github.push_role.role_arn
            parameters["GithubActionsDeployRoleArn"] = github.deploy_role.role_arn
        for name, value in outputs.items():
            cdk.CfnOutput(self, name, value=value)
        for name, value in (outputs | parameters).items():
            ssm.StringParameter(
                self, f"{name}Parameter", parameter_name=contract.parameter_name(config.lab, name), string_value=value
            )
