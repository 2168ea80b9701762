"""Where a run trains: a group of at most one instance, its launch template, and the role it works with."""

import re
from collections.abc import Sequence
from pathlib import Path

import aws_cdk as cdk
import jsii
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_s3_assets as s3_assets
from constructs import Construct

from lab_constructs.acknowledge import acknowledge
from lab_constructs.instance_role import instance_role
from lab_constructs.network import PINNED, Network
from training_image.core import contract

USER_DATA = Path(__file__).with_name("user_data.sh")
USER_DATA_LIMIT_BYTES = 16 * 1024
HOST = Path(__file__).with_name("host")
"""The instance's own files: user data carries what must work without a download, and downloads the rest."""
IN_USER_DATA = [path for path in sorted((HOST / "in_user_data").iterdir()) if path.is_file()]
DOWNLOADED = HOST / "downloaded"
GPU_IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
"""NVIDIA driver, Docker with the NVIDIA runtime, AWS CLI, SSM agent."""


class Compute(Construct):
    """An Auto Scaling group (0 to 1, no desired capacity) that replaces a lost instance, with no server of ours.

    The template declares no desired capacity: CloudFormation would wait for spot capacity up to an hour and then fail
    the stack. The run controller sets it when everything else exists, and suspends AZRebalance. Spot is asked for in
    the instances distribution only, because a mixed-instances policy refuses market options in the launch template.

    Args:
        run_prefix: what every run id of this stack starts with; the role may write nothing else.
        secret_arns: the tokens that the trainer reads; no other secret.
        acceptable_types: spot: a set, the cheapest and safest pool wins; on-demand: an order.
        volume_size: GB of the encrypted gp3 root volume.
        volume_throughput: MiB/s of it.
        max_spot_price: USD an hour; None: up to on-demand.
        ami_id: None: AWS's newest deep learning base image, resolved at each launch. Another one must be an Ubuntu,
            whose root device is /dev/sda1: with Amazon Linux's /dev/xvda the volume would be a second one.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        lab: str,
        network: Network,
        stack_suffix: str,
        run_prefix: str,
        training_bucket: str,
        outputs_bucket: str,
        repository: ecr.IRepository,
        secret_arns: Sequence[str],
        acceptable_types: Sequence[str],
        use_spot: bool,
        max_spot_price: float | None,
        volume_size: int,
        volume_throughput: int,
        ami_id: str | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._suffix = stack_suffix
        # Not in the image: an image of last year must still start on a host of today.
        host_files = s3_assets.Asset(
            self, "HostFiles", path=str(DOWNLOADED), exclude=["__pycache__"], ignore_mode=cdk.IgnoreMode.GLOB
        )
        self.role = instance_role(
            self,
            stack_suffix=stack_suffix,
            run_prefix=run_prefix,
            training_bucket=training_bucket,
            outputs_bucket=outputs_bucket,
            repository=repository,
            secret_arns=secret_arns,
            host_files=host_files,
        )
        tags = {"Name": scope.node.path, contract.LAB_TAG: lab, contract.STACK_TAG: stack_suffix}
        template = self._launch_template(
            network.security_group, outputs_bucket, host_files, volume_size, volume_throughput, ami_id, tags
        )
        cdk.Tags.of(self).add(contract.STACK_TAG, stack_suffix)
        group = self._group(network, template, acceptable_types, use_spot, max_spot_price)
        self.group = autoscaling.AutoScalingGroup.from_auto_scaling_group_name(self, "GroupByName", group.ref)
        autoscaling.CfnLifecycleHook(
            self,
            "Drain",
            auto_scaling_group_name=group.ref,
            lifecycle_hook_name=contract.DRAIN_HOOK_NAME,
            lifecycle_transition="autoscaling:EC2_INSTANCE_TERMINATING",
            default_result="CONTINUE",
            heartbeat_timeout=180,
        )

    def _group(
        self,
        network: Network,
        template: ec2.LaunchTemplate,
        acceptable_types: Sequence[str],
        use_spot: bool,
        max_spot_price: float | None,
    ) -> autoscaling.CfnAutoScalingGroup:
        """L1, because the L2 wants a VPC, and the default one is not to be looked up."""
        cfn = autoscaling.CfnAutoScalingGroup
        group = cfn(
            self,
            "Group",
            availability_zones=None if network.subnet_ids else list(network.zones or ()),
            vpc_zone_identifier=list(network.subnet_ids) or None,
            min_size="0",
            max_size="1",
            capacity_rebalance=False,  # it launches before it ends: two instances at work on one run
            # One-minute counts, free; AWS takes them only where asked to. Detailed monitoring costs, and tells nothing
            # of the GPU: what that does, the trainer reports.
            metrics_collection=[
                cfn.MetricsCollectionProperty(
                    granularity="1Minute", metrics=["GroupDesiredCapacity", "GroupInServiceInstances"]
                )
            ],
            mixed_instances_policy=cfn.MixedInstancesPolicyProperty(
                launch_template=cfn.LaunchTemplateProperty(
                    launch_template_specification=cfn.LaunchTemplateSpecificationProperty(
                        launch_template_id=template.launch_template_id, version=template.latest_version_number
                    ),
                    overrides=[cfn.LaunchTemplateOverridesProperty(instance_type=name) for name in acceptable_types],
                ),
                instances_distribution=cfn.InstancesDistributionProperty(
                    on_demand_base_capacity=0,
                    on_demand_percentage_above_base_capacity=0 if use_spot else 100,
                    on_demand_allocation_strategy="prioritized",
                    spot_allocation_strategy="price-capacity-optimized",
                    spot_max_price=None if max_spot_price is None else str(max_spot_price),
                ),
            ),
        )
        # A change of the group must not put its sizes back to 0 and 1 while the run controller's hold.
        group.cfn_options.update_policy = cdk.CfnUpdatePolicy(
            auto_scaling_scheduled_action=cdk.CfnAutoScalingScheduledAction(
                ignore_unmodified_group_size_properties=True
            )
        )
        acknowledge(group, PINNED, "W3010")
        # An instance without a way out can neither pull its image nor report that it could not.
        for needed in network.way_out:
            group.node.add_dependency(needed)
        acknowledge(
            group,
            "The auto-terminator and the run's own events tell what happens to the instance.",
            "AwsSolutions-AS3",
        )
        acknowledge(
            group,
            "The rule cannot read a launch template by reference; its one volume is encrypted, which a test asserts.",
            "AwsSolutions-EC26",
        )
        return group

    def _launch_template(
        self,
        security_group: ec2.ISecurityGroup,
        outputs_bucket: str,
        host_files: s3_assets.Asset,
        volume_size: int,
        volume_throughput: int,
        ami_id: str | None,
        tags: dict[str, str],
    ) -> ec2.LaunchTemplate:
        stack = cdk.Stack.of(self)
        script = render_user_data(
            outputs_bucket=outputs_bucket,
            stack_suffix=self._suffix,
            region=stack.region,
            host_bucket=host_files.s3_bucket_name,
            host_key=host_files.s3_object_key,
        )
        template = ec2.LaunchTemplate(
            self,
            "Template",
            role=self.role,
            security_group=security_group,
            user_data=ec2.UserData.custom(script),
            machine_image=_machine_image(ami_id),
            require_imdsv2=True,
            http_put_response_hop_limit=2,  # the container asks for the role's credentials too
            instance_initiated_shutdown_behavior=ec2.InstanceInitiatedShutdownBehavior.TERMINATE,
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/sda1",
                    volume=ec2.BlockDeviceVolume.ebs(
                        volume_size,
                        encrypted=True,
                        volume_type=ec2.EbsDeviceVolumeType.GP3,
                        throughput=volume_throughput,
                        delete_on_termination=True,
                    ),
                )
            ],
        )
        # CDK would tag the instance and its volumes only; the network interface wants the same tags.
        resource = template.node.default_child
        assert isinstance(resource, ec2.CfnLaunchTemplate)  # noqa: S101 an L2's own child
        resource.add_property_override(
            "LaunchTemplateData.TagSpecifications",
            [
                {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
                for kind in ("instance", "volume", "network-interface")
            ],
        )
        return template


@jsii.implements(ec2.IMachineImage)
class _PinnedImage:
    """One AMI by id, whatever the region (generic_linux wants a map by region)."""

    def __init__(self, ami_id: str) -> None:
        self._ami_id = ami_id

    def get_image(self, scope: Construct) -> ec2.MachineImageConfig:
        return ec2.MachineImageConfig(
            image_id=self._ami_id, os_type=ec2.OperatingSystemType.LINUX, user_data=ec2.UserData.for_linux()
        )


def _machine_image(ami_id: str | None) -> ec2.IMachineImage:
    return _PinnedImage(ami_id) if ami_id else ec2.MachineImage.resolve_ssm_parameter_at_launch(GPU_IMAGE_PARAMETER)


def render_user_data(*, outputs_bucket: str, stack_suffix: str, region: str, host_bucket: str, host_key: str) -> str:
    """The boot script with the files it carries and its few facts filled in (CDK tokens are fine).

    Lines that are comments stay here, beside the code: every byte counts against EC2's limit.

    Args:
        host_bucket, host_key: where the archive of the downloaded files lies.

    Raises:
        ValueError: larger than EC2 accepts.
    """
    script = USER_DATA.read_text().replace("@IN_USER_DATA@\n", "".join(map(_carry, IN_USER_DATA)))
    script = re.sub(r"^\s*#(?!!).*\n", "", script, flags=re.MULTILINE)
    if len(script.encode()) > USER_DATA_LIMIT_BYTES - 512:  # room for the values
        raise ValueError(f"{USER_DATA.name} is {len(script.encode())} bytes; EC2 accepts {USER_DATA_LIMIT_BYTES}.")
    values = {
        "OUTPUTS_BUCKET": outputs_bucket,
        "STACK_SUFFIX": stack_suffix,
        "REGION": region,
        "HOST_BUCKET": host_bucket,
        "HOST_KEY": host_key,
    }
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script


def _carry(path: Path) -> str:
    """The command of the boot script that writes this file into the host's library, as it lies here."""
    return f"cat >\"$LIB/{path.name}\" <<'END_OF_FILE'\n{path.read_text()}END_OF_FILE\n"
