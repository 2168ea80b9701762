"""TrainingStack's template, one assertion for each promise of box and run; and what holds for both templates."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aws_cdk.assertions import Match, Template
from stack_support import FLAGS, ROOT, data_template, only, training_template

from lab_constructs import compute
from training_image.lab_config import LabConfig
from training_image.settings import RunSettings

HASH = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="session")
def data() -> Template:
    return data_template()


@pytest.fixture(scope="session")
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


# --- TrainingStack: the box -------------------------------------------------------------------------------------------
def test_the_group_declares_no_desired_capacity(training):
    training.has_resource_properties(
        "AWS::AutoScaling::AutoScalingGroup", {"MinSize": "0", "MaxSize": "1", "DesiredCapacity": Match.absent()}
    )


def test_spot_is_asked_for_in_the_distribution_only(training):
    training.has_resource_properties(
        "AWS::AutoScaling::AutoScalingGroup",
        {
            "MixedInstancesPolicy": {
                "InstancesDistribution": {
                    "OnDemandBaseCapacity": 0,
                    "OnDemandPercentageAboveBaseCapacity": 0,
                    "SpotAllocationStrategy": "price-capacity-optimized",
                },
                "LaunchTemplate": {"Overrides": [{"InstanceType": "g5.xlarge"}]},
            }
        },
    )
    assert "InstanceMarketOptions" not in json.dumps(training.to_json())


def test_on_demand_types_price_zone_and_image_are_settings():
    config = LabConfig(
        use_spot=False,
        instance_types=("g6.xlarge",),
        max_spot_price=0.5,
        availability_zone="us-west-2b",
        ami_id="ami-0123456789abcdef0",
        volume_size=333,
        volume_throughput=500,
    )
    template = training_template(config)
    group = only(template, "AWS::AutoScaling::AutoScalingGroup")["Properties"]["MixedInstancesPolicy"]
    assert group["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 100
    assert group["InstancesDistribution"]["SpotMaxPrice"] == "0.5"
    assert [o["InstanceType"] for o in group["LaunchTemplate"]["Overrides"]] == ["g5.xlarge", "g6.xlarge"]
    template.all_resources_properties("AWS::EC2::Subnet", {"AvailabilityZone": "us-west-2b"})
    launch = only(template, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    assert launch["ImageId"] == "ami-0123456789abcdef0"
    assert launch["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 333
    assert launch["BlockDeviceMappings"][0]["Ebs"]["Throughput"] == 500


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


def test_nothing_comes_in(training):
    training.resource_count_is("AWS::EC2::SecurityGroupIngress", 0)
    training.all_resources_properties("AWS::EC2::SecurityGroup", {"SecurityGroupIngress": Match.absent()})
    training.resource_count_is("AWS::EC2::NatGateway", 0)
    training.has_resource_properties("AWS::EC2::VPCEndpoint", {"VpcEndpointType": "Gateway"})


def test_a_terminating_box_gets_time_to_drain(training):
    training.has_resource_properties(
        "AWS::AutoScaling::LifecycleHook",
        {
            "LifecycleHookName": "drain",
            "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            "HeartbeatTimeout": 180,
            "DefaultResult": "CONTINUE",
        },
    )


def test_the_group_waits_for_its_routes(training):
    group = only(training, "AWS::AutoScaling::AutoScalingGroup")
    routes = set(training.find_resources("AWS::EC2::Route"))
    assert routes
    assert routes <= set(group["DependsOn"])


def test_the_box_may_write_only_its_own_stacks_runs(training):
    writes = [s for s in statements(training, "ComputeRole").values() if "s3:PutObject" in s["Action"]]
    assert len(writes) == 1
    for resource in writes[0]["Resource"]:
        text = json.dumps(resource)
        assert "/runs/run-" in text or "/checkpoints/run-" in text
        assert "AWS::StackId" in text


def test_the_box_may_end_only_its_own_group(training):
    statement = statements(training, "ComputeRole")["EndsItself"]
    (key,) = statement["Condition"]["StringEquals"]
    assert key == "aws:ResourceTag/llm-tuning-lab:stack"
    assert "AWS::StackId" in json.dumps(statement["Condition"])


def test_star_is_used_only_where_aws_knows_no_resource(training):
    allowed = {
        "ecr:GetAuthorizationToken",
        "autoscaling:DescribeAutoScalingGroups",
        "ssm:UpdateInstanceInformation",
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
    }
    for policy in training.find_resources("AWS::IAM::Policy").values():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not any("*" in action for action in actions)
            if statement["Resource"] == "*":
                assert set(actions) <= allowed


# --- TrainingStack: the run -------------------------------------------------------------------------------------------
def test_the_run_is_created_last_and_deleted_first(training):
    """Every other resource is reachable from the run by dependency, so no deletion runs beside its drain."""
    resources = training.to_json()["Resources"]

    def needs(name: str) -> set[str]:
        text = json.dumps(resources[name])
        referred = set(re.findall(r'"(?:Ref|Fn::GetAtt)": (?:\[)?"([A-Za-z0-9]+)"', text))
        depends = resources[name].get("DependsOn", [])
        return (referred | set([depends] if isinstance(depends, str) else depends)) & set(resources)

    (run,) = training.find_resources("Custom::TrainingRun")
    reached, frontier = {run}, [run]
    while frontier:
        new = needs(frontier.pop()) - reached
        reached |= new
        frontier += new
    assert set(resources) - reached == set()


def test_the_run_answers_within_fifteen_minutes(training):
    training.has_resource_properties("Custom::TrainingRun", {"ServiceTimeout": "900"})
    training.has_resource_properties("AWS::Lambda::Function", {"Timeout": 900})


def spec(template: Template) -> dict:
    """The run's one JSON property, with tokens replaced by their JSON."""
    parts = only(template, "Custom::TrainingRun")["Properties"]["Spec"]["Fn::Join"][1]
    return json.loads("".join(part if isinstance(part, str) else "<token>" for part in parts))


def test_settings_reach_the_run_unchanged():
    settings = RunSettings.load({"training": {"learning_rate": 1e-3, "use_cpu": True}, "lora": {"r": 3}})
    found = spec(training_template(settings=settings))
    assert RunSettings.load(found["settings"]) == settings
    assert found["gpus"] == 0, "a run that asks for the CPU needs no GPU"
    assert spec(training_template())["gpus"] == 1


def test_an_image_tag_or_digest_replaces_the_build():
    by_tag = training_template(LabConfig(image_tag="v1"))
    assert spec(by_tag)["image"].endswith("/llm-tuning-lab/default/datastack-training:v1")
    by_digest = training_template(LabConfig(image_tag="sha256:" + "0" * 64))
    assert "@sha256:" in spec(by_digest)["image"]


def test_the_controller_cannot_bring_back_its_log_group(training):
    assert "logs:CreateLogGroup" not in json.dumps(training.to_json())
    training.has_resource("AWS::Logs::LogGroup", {"DeletionPolicy": "Delete"})
    training.has_resource_properties("AWS::Logs::LogGroup", {"RetentionInDays": 30})


def test_user_data_holds_no_settings_and_fits(training):
    launch = only(training, "AWS::EC2::LaunchTemplate")["Properties"]["LaunchTemplateData"]
    text = json.dumps(launch["UserData"])
    assert "LLM_" not in text
    assert "learning_rate" not in text
    assert re.search("@[A-Z_]{3,}@", text) is None, "an unreplaced placeholder"
    rendered = compute.render_user_data(outputs_bucket="b" * 63, stack_suffix="12345678", region="ap-southeast-2")
    assert len(rendered.encode()) < compute.USER_DATA_LIMIT_BYTES


def test_user_data_passes_shellcheck():
    result = subprocess.run(
        [
            Path(sys.executable).with_name("shellcheck"),
            "--severity=warning",
            compute.USER_DATA,
            *ROOT.glob("scripts/*.sh"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_it_stays_small(training):
    assert len(training.to_json()["Resources"]) < 60


# --- both -------------------------------------------------------------------------------------------------------------
def masked(template: Template) -> object:
    """Asset hashes change with every line of code; masked here, in one place."""
    return json.loads(HASH.sub("<asset>", json.dumps(template.to_json())))


@pytest.mark.parametrize("name", ["data", "training"])
def test_snapshot(name, request, snapshot):
    assert masked(request.getfixturevalue(name)) == snapshot


def synth(folder: Path, **environ: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_", "AWS_", "CDK_"))}
    context = json.dumps({**FLAGS, **json.loads(environ.pop("CONTEXT", "{}"))})
    return subprocess.run(
        [sys.executable, ROOT / "app.py"],
        env={**clean, "CDK_OUTDIR": str(folder), "CDK_CONTEXT_JSON": context, **environ},
        capture_output=True,
        text=True,
        check=True,
    )


def test_templates_do_not_depend_on_where_they_are_deployed(tmp_path):
    synth(tmp_path / "plain")
    synth(
        tmp_path / "local",
        AWS_ENDPOINT_URL="http://127.0.0.1:4566",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_REGION="us-east-1",
        CDK_DOCKER="/some/shim",
    )
    for name in ("DataStack", "TrainingStack"):
        file = f"{name}.template.json"
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "local" / file).read_bytes()


def test_a_wrong_setting_is_an_annotation_and_the_template_still_exists(tmp_path):
    synth(tmp_path, LLM_LORA__RR="3", CONTEXT='{"volume_siz": "1"}')
    manifest = (tmp_path / "manifest.json").read_text() + "".join(
        p.read_text() for p in tmp_path.glob("*.metadata.json")
    )
    assert "Did you mean LLM_LORA__R?" in manifest
    assert "Did you mean volume_size?" in manifest
    assert (tmp_path / "TrainingStack.template.json").exists()


def test_stacks_do_not_depend_on_each_other(tmp_path):
    synth(tmp_path)
    artifacts = json.loads((tmp_path / "manifest.json").read_text())["artifacts"]
    for name, other in (("DataStack", "TrainingStack"), ("TrainingStack", "DataStack")):
        assert other not in artifacts[name].get("dependencies", [])
