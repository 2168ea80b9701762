"""The instance's promises, one assertion each: its group, its launch template, what its role may do, its boot
script."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from aws_cdk.assertions import Match, Template
from hypothesis import HealthCheck, given, settings

from lab_constructs import compute
from tests.support.examples import examples
from tests.support.lab_strategies import lab_configs
from tests.support.stacks import ROOT, only, training_template
from training_image.config.catalog import INSTANCES
from training_image.config.lab_settings import LabConfig

GROUP = "AWS::AutoScaling::AutoScalingGroup"


@pytest.fixture(scope="module")
def training() -> Template:
    return training_template()


def statements(template: Template, role: str) -> dict[str, dict]:
    """Sid -> statement of the policies attached to the role whose logical id starts with ``role``."""
    found = {}
    for policy in template.find_resources("AWS::IAM::Policy").values():
        if any(attached["Ref"].startswith(role) for attached in policy["Properties"]["Roles"]):
            for number, statement in enumerate(policy["Properties"]["PolicyDocument"]["Statement"]):
                found[statement.get("Sid", str(number))] = statement
    return found


def policy(template: Template) -> dict:
    return only(template, GROUP)["Properties"]["MixedInstancesPolicy"]


def test_spot_is_asked_for_in_the_distribution_only(training):
    found = policy(training)
    assert found["InstancesDistribution"] == {
        "OnDemandBaseCapacity": 0,
        "OnDemandPercentageAboveBaseCapacity": 0,
        "OnDemandAllocationStrategy": "prioritized",
        "SpotAllocationStrategy": "price-capacity-optimized",
    }
    assert found["LaunchTemplate"]["Overrides"] == [{"InstanceType": "g5.xlarge"}]
    assert "InstanceMarketOptions" not in json.dumps(training.to_json()), "a mixed-instances policy refuses it"


def test_on_demand_types_price_and_image_are_settings():
    config = LabConfig(
        use_spot=False,
        instance_types=("g6.xlarge", "g5.2xlarge"),
        max_spot_price=0.5,
        ami_id="ami-0123456789abcdef0",
        volume_size=333,
        volume_throughput=500,
    )
    template = training_template(config)
    distribution = policy(template)["InstancesDistribution"]
    assert distribution["OnDemandPercentageAboveBaseCapacity"] == 100
    assert distribution["OnDemandAllocationStrategy"] == "prioritized", "on-demand: the list is an order"
    assert distribution["SpotMaxPrice"] == "0.5"
    types = [item["InstanceType"] for item in policy(template)["LaunchTemplate"]["Overrides"]]
    assert types == ["g5.xlarge", "g6.xlarge", "g5.2xlarge"]
    launch = only(template, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    assert launch["ImageId"] == "ami-0123456789abcdef0"
    assert launch["BlockDeviceMappings"][0]["DeviceName"] == "/dev/sda1", "Ubuntu's root device"
    assert launch["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 333
    assert launch["BlockDeviceMappings"][0]["Ebs"]["Throughput"] == 500


@given(config=lab_configs())
@settings(max_examples=examples(5), suppress_health_check=list(HealthCheck))
def test_any_valid_settings_reach_the_group(config):
    template = training_template(config)
    types = [item["InstanceType"] for item in policy(template)["LaunchTemplate"]["Overrides"]]
    assert types == list(config.acceptable_types), "the order is kept"
    assert len(set(types)) == len(types), "AWS refuses a type named twice"
    assert all(INSTANCES[name].gpus >= config.gpus for name in types)
    distribution = policy(template)["InstancesDistribution"]
    assert distribution["OnDemandPercentageAboveBaseCapacity"] == (0 if config.use_spot else 100)
    if config.max_spot_price is not None:
        assert re.fullmatch(r"\d+\.\d+", distribution["SpotMaxPrice"]), "AWS reads no exponent"
    group = only(template, GROUP)["Properties"]
    assert ("VPCZoneIdentifier" in group) != ("AvailabilityZones" in group), "subnets or zones, never both or none"


def test_one_instance_at_a_time(training):
    """Capacity rebalancing launches before it ends: two instances would work on one run."""
    training.has_resource_properties(GROUP, {"CapacityRebalance": False, "MaxSize": "1"})


def test_a_redeploy_leaves_the_sizes_of_an_active_run_alone(training):
    update = only(training, GROUP)["UpdatePolicy"]
    assert update == {"AutoScalingScheduledAction": {"IgnoreUnmodifiedGroupSizeProperties": True}}


def test_the_alarms_have_their_metrics_and_nothing_is_paid_for_more(training):
    (metrics,) = only(training, GROUP)["Properties"]["MetricsCollection"]
    assert metrics["Granularity"] == "1Minute"
    assert {"GroupDesiredCapacity", "GroupInServiceInstances"} == set(metrics["Metrics"])
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    assert "Monitoring" not in launch, "detailed monitoring costs, and tells nothing of the GPU"


def test_the_group_is_named_by_tag_in_the_boxs_role(training):
    """By name it would be a cycle: group, launch template, role, policy, group."""
    (group,) = training.find_resources(GROUP)
    assert group not in json.dumps(statements(training, "ComputeRole"))
    tags = {tag["Key"]: tag for tag in only(training, GROUP)["Properties"]["Tags"]}
    assert tags["llm-tuning-lab:stack"]["PropagateAtLaunch"] is True


def test_every_statement_of_the_instance_has_a_name(training):
    assert all(re.fullmatch("[A-Z][A-Za-z]+", sid) for sid in statements(training, "ComputeRole"))


def test_the_group_declares_no_desired_capacity(training):
    training.has_resource_properties(
        "AWS::AutoScaling::AutoScalingGroup", {"MinSize": "0", "MaxSize": "1", "DesiredCapacity": Match.absent()}
    )


def test_launch_template_is_hardened(training):
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    assert launch["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    assert launch["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert launch["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia")
    disk = launch["BlockDeviceMappings"][0]["Ebs"]
    assert (disk["VolumeType"], disk["Encrypted"], disk["DeleteOnTermination"]) == ("gp3", True, True)
    assert "KeyName" not in launch


def test_instance_volumes_and_interface_carry_the_labs_tags(training):
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    tags = {spec["ResourceType"]: {tag["Key"] for tag in spec["Tags"]} for spec in launch["TagSpecifications"]}
    assert set(tags) == {"instance", "volume", "network-interface"}
    for keys in tags.values():
        assert {"llm-tuning-lab:lab", "llm-tuning-lab:stack"} <= keys


def test_a_terminating_instance_gets_time_to_drain(training):
    training.has_resource_properties(
        "AWS::AutoScaling::LifecycleHook",
        {
            "LifecycleHookName": "drain",
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "HeartbeatTimeout": 180,
            "DefaultResult": "CONTINUE",
        },
    )


def test_the_instance_may_write_only_its_own_stacks_runs_and_the_mirror_of_models(training):
    writes = {sid: s for sid, s in statements(training, "ComputeRole").items() if "s3:PutObject" in s["Action"]}
    assert set(writes) == {"WritesOwnRuns", "MirrorsModels"}
    mirror = writes["MirrorsModels"]["Resource"]["Fn::Join"][1]
    assert "TrainingBucket" in json.dumps(mirror)
    assert mirror[-1] == "/models/hub/*"
    for resource in writes["WritesOwnRuns"]["Resource"]:
        text = json.dumps(resource)
        assert "/runs/run-" in text or "/checkpoints/run-" in text
        assert "AWS::StackId" in text


def test_the_instance_may_end_only_its_own_group(training):
    statement = statements(training, "ComputeRole")["EndsItself"]
    (key,) = statement["Condition"]["StringEquals"]
    assert key == "aws:ResourceTag/llm-tuning-lab:stack"
    assert "AWS::StackId" in json.dumps(statement["Condition"])


def test_user_data_holds_no_settings_and_fits(training):
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    text = json.dumps(launch["UserData"])
    assert not re.search("LLM_[A-Z]", text), "no setting; the prefix alone is what a rerun takes over"
    assert "learning_rate" not in text
    assert re.search("@[A-Z_]{3,}@", text) is None, "an unreplaced placeholder"


def test_the_instance_fetches_its_host_files_and_may_read_nothing_else_of_the_bootstrap_bucket(training):
    archive = statements(training, "ComputeRole")["ReadsHostFiles"]["Resource"]["Fn::Join"][1]
    (bucket,) = [part["Fn::Sub"] for part in archive if isinstance(part, dict) and "Fn::Sub" in part]
    assert bucket == "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}"
    assert re.fullmatch(r"/[0-9a-f]{64}\.zip", archive[-1])
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    script = launch["UserData"]["Fn::Base64"]["Fn::Join"][1]
    named = script.index({"Fn::Sub": bucket})
    assert script[named - 1].endswith("HOST_BUCKET='")
    assert script[named + 1].startswith(f"'\nHOST_KEY='{archive[-1][1:]}'\n")


def test_user_data_is_told_bucket_stack_and_region_and_nothing_else(training):
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    parts = launch["UserData"]["Fn::Base64"]["Fn::Join"][1]
    told = {part.rsplit("\n", 1)[-1]: json.dumps(token) for part, token in pairwise(parts) if isinstance(token, dict)}
    assert set(told) == {"BUCKET='", "STACK='", "HOST_BUCKET='", "export AWS_DEFAULT_REGION='"}
    assert "OutputsBucket" in told["BUCKET='"]
    assert "AWS::StackId" in told["STACK='"], "another stack of this name is another one"
    assert json.loads(told["export AWS_DEFAULT_REGION='"]) == {"Ref": "AWS::Region"}
    assert parts[0].startswith("#!/bin/bash\n")


@pytest.mark.parametrize("script", [compute.USER_DATA, *ROOT.glob("scripts/*.sh")], ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    result = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--severity=warning", script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
