"""Where the local cloud starts a group's instance."""

import pytest

from local_cloud.scaling_rules import subnet_of

SUBNETS = {
    "subnet-own": {"AvailabilityZone": "us-east-1a", "DefaultForAz": False},
    "subnet-a": {"AvailabilityZone": "us-east-1a", "DefaultForAz": True},
    "subnet-b": {"AvailabilityZone": "us-east-1b", "DefaultForAz": True},
}


@pytest.mark.parametrize(
    ("subnets", "zones", "expected"),
    [
        ("subnet-own,subnet-b", ["us-east-1a"], "subnet-own"),
        ("", ["us-east-1b"], "subnet-b"),
        ("", ["us-east-1f", "us-east-1a"], "subnet-a"),
        ("", ["us-east-1f"], None),
    ],
)
def test_a_groups_subnets_decide_else_the_default_subnet_of_its_zones(subnets, zones, expected):
    assert subnet_of({"VPCZoneIdentifier": subnets, "AvailabilityZones": zones}, SUBNETS) == expected
