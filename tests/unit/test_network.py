"""The networks an instance may live in: the dedicated one, given subnets, the default VPC."""

import json

import pytest
from aws_cdk.assertions import Match, Template

from tests.support.stacks import only, training_template
from training_image.config.lab_settings import LabConfig
from training_image.config.zones import ZONES, zone_count

GROUP = "AWS::AutoScaling::AutoScalingGroup"
OWN = {"create_vpc": False, "vpc_id": "vpc-0123456789abcdef0", "subnet_ids": ("subnet-0123456789abcdef0",)}


@pytest.fixture(scope="module")
def six_zones() -> Template:
    return training_template(LabConfig(region="us-east-1"))


def test_the_dedicated_network_has_a_public_subnet_in_every_zone(six_zones):
    subnets = [item["Properties"] for item in six_zones.find_resources("AWS::EC2::Subnet").values()]
    assert [item["AvailabilityZone"]["Fn::Select"][0] for item in subnets] == [0, 1, 2, 3, 4, 5]
    assert len({item["CidrBlock"] for item in subnets}) == 6
    assert all(item["MapPublicIpOnLaunch"] for item in subnets)
    assert len(only(six_zones, GROUP)["Properties"]["VPCZoneIdentifier"]) == 6
    six_zones.resource_count_is("AWS::EC2::SubnetRouteTableAssociation", 6)


def test_it_costs_nothing_and_stays_small(six_zones):
    six_zones.resource_count_is("AWS::EC2::NatGateway", 0)
    six_zones.resource_count_is("AWS::EC2::EIP", 0)
    six_zones.has_resource_properties("AWS::EC2::VPCEndpoint", {"VpcEndpointType": "Gateway"})
    resources = six_zones.to_json()["Resources"]
    assert sum(name.startswith("Network") for name in resources) <= 20
    assert len(resources) < 60


def test_data_stays_in_awss_network(six_zones):
    endpoint = only(six_zones, "AWS::EC2::VPCEndpoint")["Properties"]
    assert json.dumps(endpoint["ServiceName"]).endswith('".s3"]]}')
    (table,) = six_zones.find_resources("AWS::EC2::RouteTable")
    assert endpoint["RouteTableIds"] == [{"Ref": table}]


def test_a_region_without_a_known_number_of_zones_gets_two():
    assert zone_count(None) == zone_count("mx-central-1") == 2
    assert set(ZONES.values()) <= {2, 3, 4, 5, 6}


def test_the_group_waits_for_its_routes_and_goes_before_them(six_zones):
    depends = set(only(six_zones, GROUP)["DependsOn"])
    routes = set(six_zones.find_resources("AWS::EC2::Route"))
    assert routes
    assert routes | set(six_zones.find_resources("AWS::EC2::SubnetRouteTableAssociation")) <= depends


@pytest.mark.parametrize("config", [{}, {"create_vpc": False}, OWN])
def test_nothing_comes_in(config):
    template = training_template(LabConfig(**config))
    template.resource_count_is("AWS::EC2::SecurityGroupIngress", 0)
    template.all_resources_properties("AWS::EC2::SecurityGroup", {"SecurityGroupIngress": Match.absent()})
    launch = only(template, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    (group,) = template.find_resources("AWS::EC2::SecurityGroup")
    assert launch["SecurityGroupIds"] == [{"Fn::GetAtt": [group, "GroupId"]}]


def test_a_pinned_zone_is_the_only_one():
    template = training_template(LabConfig(region="us-west-2", availability_zone="us-west-2b"))
    assert only(template, "AWS::EC2::Subnet")["Properties"]["AvailabilityZone"] == "us-west-2b"


def test_the_default_vpc_is_used_without_a_lookup():
    template = training_template(LabConfig(create_vpc=False))
    group = only(template, GROUP)["Properties"]
    assert group["AvailabilityZones"] == {"Fn::GetAZs": ""}
    assert "VPCZoneIdentifier" not in group
    assert "VpcId" not in only(template, "AWS::EC2::SecurityGroup")["Properties"]
    for kind in ("VPC", "Subnet", "Route", "VPCEndpoint"):
        template.resource_count_is(f"AWS::EC2::{kind}", 0)


def test_a_zone_can_be_pinned_in_the_default_vpc():
    template = training_template(LabConfig(create_vpc=False, availability_zone="us-west-2b"))
    assert only(template, GROUP)["Properties"]["AvailabilityZones"] == ["us-west-2b"]


def test_given_subnets_are_used_as_they_are():
    template = training_template(LabConfig(**OWN))
    group = only(template, GROUP)["Properties"]
    assert group["VPCZoneIdentifier"] == list(OWN["subnet_ids"])
    assert "AvailabilityZones" not in group
    assert only(template, "AWS::EC2::SecurityGroup")["Properties"]["VpcId"] == OWN["vpc_id"]
    template.resource_count_is("AWS::EC2::VPC", 0)
    launch = only(template, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    assert "NetworkInterfaces" not in launch, "whether a public address is given stays the subnet's own setting"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({**OWN, "availability_zone": "us-west-2b"}, "does not go with subnet_ids"),
        ({"region": "us-east-1", "availability_zone": "us-west-2b"}, "is not in region 'us-east-1'"),
    ],
)
def test_a_zone_that_cannot_be_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        LabConfig(**wrong)
