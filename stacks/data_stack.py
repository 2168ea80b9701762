"""DataStack: what stays. Buckets, the image repository, and the parameters that TrainingStack reads."""

from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from lab_constructs.registry import Registry
from lab_constructs.storage import Storage
from training_image import contract
from training_image.lab_config import LabConfig


class DataStack(cdk.Stack):
    """Persistent; deploys alone and survives every TrainingStack.

    What others need is published twice: as stack outputs for people, and as SSM parameters for TrainingStack. A
    construct reference, even a weak one, would make `cdk deploy TrainingStack` and `cdk destroy DataStack` drag in the
    other stack.
    """

    def __init__(self, scope: Construct, construct_id: str, *, config: LabConfig, **kwargs: Any) -> None:
        super().__init__(
            scope, construct_id, description="LLM Tuning Lab: data, results, images (persistent)", **kwargs
        )
        storage = Storage(self, "Storage")
        registry = Registry(self, "Registry", repository_name=contract.repository_name(config.lab))
        self._publish(
            config.lab,
            {
                "TrainingBucket": storage.training_bucket.bucket_name,
                "OutputsBucket": storage.outputs_bucket.bucket_name,
                "RepositoryUri": registry.repository.repository_uri,
            },
        )

    def _publish(self, lab: str, values: dict[str, str]) -> None:
        for name, value in values.items():
            cdk.CfnOutput(self, name, value=value)
            ssm.StringParameter(
                self, f"{name}Parameter", parameter_name=contract.parameter_name(lab, name), string_value=value
            )
