"""The network of a training instance: a way out, and no way in."""

from collections.abc import Sequence

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from constructs import Construct, IConstruct

from lab_constructs.acknowledge import acknowledge
from training_image.config.zones import zone_count

PINNED = "A zone is named only where the settings pin one."


class Network(Construct):
    """A dedicated VPC, subnets that exist already, or the account's default VPC; none of them is looked up.

    The dedicated one has a public subnet in every zone, no NAT gateway (it would cost more than a small spot GPU), and
    an S3 gateway endpoint, so that data and checkpoints never leave AWS's network. Its parts are L1, because the L2 Vpc
    makes a route table, a route and an association for each subnet, and knows no more than two zones of a stack that is
    not bound to an account. Session Manager needs only the way out.

    Args:
        create_vpc: the dedicated VPC.
        vpc_id, subnet_ids: else these, private ones included; None and empty: the default VPC.
        availability_zone: pins the instance to one zone; None: all.
        region: where the stack will probably be deployed, for the number of zones; None: not known.

    Attributes:
        security_group: no rule in, everything out.
        subnet_ids: where instances may start; empty in the default VPC, where ``zones`` say it.
        zones: the same as zones; None where given subnets decide.
        way_out: what an instance needs to reach anything. A group that depends on it never starts an instance too
            early, nor loses its routes while one drains.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        create_vpc: bool = True,
        vpc_id: str | None = None,
        subnet_ids: Sequence[str] = (),
        availability_zone: str | None = None,
        region: str | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        self.subnet_ids: Sequence[str] = subnet_ids
        self.zones: Sequence[str] | None = None
        self.way_out: list[IConstruct] = []
        if create_vpc:
            indices = range(zone_count(region))
            self.zones = (
                [availability_zone] if availability_zone else [cdk.Fn.select(i, cdk.Fn.get_azs()) for i in indices]
            )
            vpc_id = self._dedicated_vpc(self.zones)
        elif not subnet_ids:
            self.zones = [availability_zone] if availability_zone else cdk.Fn.get_azs()
        everything_out = ec2.CfnSecurityGroup.EgressProperty(
            ip_protocol="-1", cidr_ip="0.0.0.0/0", description="The way out"
        )
        group = ec2.CfnSecurityGroup(
            self,
            "Instance",
            group_description="Training instance: outbound only; people come in through Session Manager",
            # None: the default VPC. It has this rule anyway, and stating it would need the VPC's id.
            vpc_id=vpc_id,
            security_group_egress=[everything_out] if vpc_id else None,
        )
        cdk.Tags.of(self).add("Name", self.node.path)
        self.security_group = ec2.SecurityGroup.from_security_group_id(self, "InstanceGroup", group.attr_group_id)

    def _dedicated_vpc(self, zones: Sequence[str]) -> str:
        """19 resources with six zones; the VPC's id."""
        vpc = ec2.CfnVPC(self, "Vpc", cidr_block="10.0.0.0/16", enable_dns_hostnames=True, enable_dns_support=True)
        acknowledge(
            vpc,
            "Flow logs would show one outbound-only instance, alive for hours: they would cost more than they tell.",
            "AwsSolutions-VPC7",
            "CKV2_AWS_11",
        )
        gateway = ec2.CfnInternetGateway(self, "Gateway")
        attachment = ec2.CfnVPCGatewayAttachment(self, "Attachment", vpc_id=vpc.ref, internet_gateway_id=gateway.ref)
        table = ec2.CfnRouteTable(self, "Routes", vpc_id=vpc.ref)
        route = ec2.CfnRoute(
            self, "WayOut", route_table_id=table.ref, destination_cidr_block="0.0.0.0/0", gateway_id=gateway.ref
        )
        route.node.add_dependency(attachment)
        subnets = []
        for number, zone in enumerate(zones, 1):
            subnet = ec2.CfnSubnet(
                self,
                f"Public{number}",
                vpc_id=vpc.ref,
                availability_zone=zone,
                cidr_block=f"10.0.{16 * number}.0/20",
                map_public_ip_on_launch=True,
            )
            acknowledge(subnet, PINNED, "W3010")
            acknowledge(subnet, "The public address is the instance's way out; no rule lets anybody in.", "CKV_AWS_130")
            association = ec2.CfnSubnetRouteTableAssociation(
                self, f"Public{number}Routes", route_table_id=table.ref, subnet_id=subnet.ref
            )
            subnets.append(subnet.ref)
            self.way_out.append(association)
        ec2.CfnVPCEndpoint(
            self,
            "S3",
            vpc_id=vpc.ref,
            vpc_endpoint_type="Gateway",
            service_name=f"com.amazonaws.{cdk.Stack.of(self).region}.s3",
            route_table_ids=[table.ref],
        )
        self.way_out.append(route)
        self.subnet_ids = subnets
        return vpc.ref
