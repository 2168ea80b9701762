"""The network of a training box: a way out, and no way in."""

from aws_cdk import aws_ec2 as ec2
from constructs import Construct


class Network(Construct):
    """Dedicated VPC with public subnets, no NAT gateway (it would cost more than a small spot GPU), and an S3 gateway
    endpoint so that data and checkpoints never leave AWS's network. Session Manager needs only the way out.

    Args:
        availability_zone: pins the box to one zone; None: every zone CDK knows of for the stack's environment.
    """

    def __init__(self, scope: Construct, construct_id: str, *, availability_zone: str | None = None) -> None:
        super().__init__(scope, construct_id)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            nat_gateways=0,
            restrict_default_security_group=False,  # would bring a Lambda; nothing uses that group
            subnet_configuration=[ec2.SubnetConfiguration(name="Public", subnet_type=ec2.SubnetType.PUBLIC)],
            gateway_endpoints={"S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)},
            availability_zones=[availability_zone] if availability_zone else None,
            max_azs=None if availability_zone else 6,
        )
        self.security_group = ec2.SecurityGroup(
            self,
            "Box",
            vpc=self.vpc,
            description="Training box: outbound only; people come in through Session Manager",
            allow_all_outbound=True,
        )
