"""TrainingStack: what comes and goes. One run's instance, its network, and the run itself."""

from pathlib import Path
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from lab_constructs.compute import Compute
from lab_constructs.network import Network
from lab_constructs.observability import Observability
from lab_constructs.safety import Safety
from lab_constructs.training_run import TrainingRun
from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import RunSettings
from training_image.core import contract

IMAGE_DIRECTORY = Path(__file__).parents[1] / "training_image"


class TrainingStack(cdk.Stack):
    """Ephemeral: `cdk deploy` starts a run, `cdk destroy` stops it with a checkpoint and leaves nothing behind.

    Args:
        cli_region: the region of the CLI's credentials, where it is known: it decides the number of zones, if the
            settings name no region.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        config: LabConfig,
        settings: RunSettings,
        cli_region: str | None = None,
        **kwargs: Any,
    ) -> None:
        repository_name = contract.repository_name(config.lab)
        super().__init__(
            scope,
            construct_id,
            description="LLM Tuning Lab: one training run at a time (ephemeral)",
            # The image goes to DataStack's own repository, whose scan, lifecycle and grants then really apply.
            synthesizer=cdk.DefaultStackSynthesizer(
                image_assets_repository_name=repository_name, docker_tag_prefix="lab-"
            ),
            **kwargs,
        )
        # Printed at every synth, because the CLI's own error, an unknown repository, does not say what to do.
        cdk.Annotations.of(self).add_info(
            f"Needs the buckets and the repository of DataStack (lab {config.lab!r}); if they are missing, deploy it "
            f"first: {config.command('cdk deploy DataStack')}"
        )
        suffix = self._suffix()
        run_prefix = f"{config.run}-{suffix}"
        training_bucket, outputs_bucket, hugging_face_arn, alert_topic = (
            # SSM-typed parameters: they follow a recreated DataStack, and a missing one names it.
            ssm.StringParameter.value_for_string_parameter(self, contract.parameter_name(config.lab, output))
            for output in ("TrainingBucket", "OutputsBucket", "HuggingFaceTokenSecretArn", "AlertTopicArn")
        )
        repository = ecr.Repository.from_repository_name(self, "Repository", repository_name)
        network = Network(
            self,
            "Network",
            create_vpc=config.create_vpc,
            vpc_id=config.vpc_id,
            subnet_ids=config.subnet_ids,
            availability_zone=config.availability_zone,
            region=config.region or cli_region,
        )
        compute = Compute(
            self,
            "Compute",
            lab=config.lab,
            network=network,
            stack_suffix=suffix,
            run_prefix=run_prefix,
            training_bucket=training_bucket,
            outputs_bucket=outputs_bucket,
            repository=repository,
            secret_arns=[hugging_face_arn],
            acceptable_types=config.acceptable_types,
            use_spot=config.use_spot,
            max_spot_price=config.max_spot_price,
            volume_size=config.volume_size,
            volume_throughput=config.volume_throughput,
            ami_id=config.ami_id,
        )
        observability = Observability(self, "Observability", group=compute.group)
        observability.grant_publish(compute.role)
        safety = Safety(
            self,
            "Safety",
            lab=config.lab,
            group=compute.group,
            stack_suffix=suffix,
            run_prefix=run_prefix,
            outputs_bucket=outputs_bucket,
            alert_topic=alert_topic,
            max_runtime_hours=config.max_runtime_hours,
            cost_alert_threshold=config.cost_alert_threshold,
            cost_tag_active=config.cost_tag_active,
        )
        run = TrainingRun(
            self,
            "Run",
            spec={
                "lab": config.lab,
                "stack_name": self.stack_name,
                "deploy_command": config.command(f"cdk deploy {contract.TRAINING_STACK}"),
                "destroy_command": config.command(f"cdk destroy {contract.TRAINING_STACK}"),
                "stack_suffix": suffix,
                "run_name": config.run,
                "region": self.region,
                "group": compute.group.auto_scaling_group_name,
                "create_instance": config.create_instance,
                "new_run": config.new_run,
                # said: the settings given explicitly. The controller refuses those that differ from the run's.
                "resume": config.resume
                and {"run_id": config.resume, "said": settings.model_dump(mode="json", exclude_unset=True)},
                "use_spot": config.use_spot,
                "instance_types": list(config.acceptable_types),
                "gpus": 0 if settings.training.use_cpu else config.gpus,
                "max_runtime_hours": config.max_runtime_hours,
                "max_attempts": config.max_attempts,
                "auto_shutdown": config.auto_shutdown,
                "training_command": list(config.training_command) or None,
                "image": self._image(config.image_tag, repository, "cpu" if settings.training.use_cpu else "gpu"),
                "training_bucket": training_bucket,
                "outputs_bucket": outputs_bucket,
                "alert_topic": alert_topic,
                "usd_per_hour": config.usd_per_hour,
                "log_group": observability.log_group.log_group_name,
                "secrets": {"hugging_face": hugging_face_arn},  # where the token is, not the token
                "data_uri": settings.data.uri or f"s3://{training_bucket}/data/",
                "settings": settings.model_dump(mode="json"),
            },
            group=compute.group,
            repository=repository,
            run_prefix=run_prefix,
        )
        run.after(network, compute, observability, safety)
        self._outputs(compute, observability, run, outputs_bucket, run_prefix)

    def _suffix(self) -> str:
        """First group of the stack id's UUID: another one for every incarnation of the stack."""
        uuid = cdk.Fn.select(2, cdk.Fn.split("/", self.stack_id))
        return cdk.Fn.select(0, cdk.Fn.split("-", uuid))

    def _image(self, image_tag: str | None, repository: ecr.IRepository, variant: str) -> str:
        """URI of the image: built from ``training_image/`` unless a tag or digest in the lab's repository is named.

        All that a build is told stands here, because it is part of the image's hash. ``variant`` is gpu or cpu.
        """
        if image_tag:
            return repository.repository_uri_for_tag_or_digest(image_tag)
        return ecr_assets.DockerImageAsset(
            self,
            "Image",
            directory=str(IMAGE_DIRECTORY),
            platform=ecr_assets.Platform.LINUX_AMD64,
            build_args={"VARIANT": variant},
        ).image_uri

    def _outputs(
        self, compute: Compute, observability: Observability, run: TrainingRun, outputs_bucket: str, run_prefix: str
    ) -> None:
        group = compute.group.auto_scaling_group_name
        instance = (
            f"aws autoscaling describe-auto-scaling-groups --auto-scaling-group-names {group} "
            "--query 'AutoScalingGroups[0].Instances[0].InstanceId' --output text"
        )
        values = {
            "AutoScalingGroupName": group,
            "RunId": run.run_id,
            "RunPrefix": f"s3://{outputs_bucket}/runs/{run_prefix}-",
            "DashboardUrl": observability.dashboard_url,
            "TrainingLog": observability.log_group.log_group_name,
            "ConnectCommand": f'aws ssm start-session --target "$({instance})"',
        }
        for name, value in values.items():
            cdk.CfnOutput(self, name, value=value)
