"""TrainingStack's template, one assertion for each promise of instance and run; and what holds for both templates."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aws_cdk.assertions import Template

from tests.support.stacks import FLAGS, ROOT, data_template, only, training_template
from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import RunSettings

HASH = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="session")
def data() -> Template:
    return data_template()


@pytest.fixture(scope="session")
def training() -> Template:
    return training_template()


# --- TrainingStack: roles ---------------------------------------------------------------------------------------------
def test_star_is_used_only_where_aws_knows_no_resource(training):
    allowed = {
        "ecr:GetAuthorizationToken",
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "cloudwatch:PutMetricData",  # bounded by its namespace
        "ec2:DescribeInstances",
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


def test_it_stays_small(training):
    assert len(training.to_json()["Resources"]) < 60


# --- both -------------------------------------------------------------------------------------------------------------
def masked(template: Template) -> object:
    """Asset hashes change with every line of code; masked here, in one place. Metadata (accepted findings, with their
    reasons) and user data (in `test_compute.py` and `test_boot.py`) have tests of their own."""
    found = json.loads(HASH.sub("<asset>", json.dumps(template.to_json())))
    for resource in found["Resources"].values():
        resource.pop("Metadata", None)
        if resource["Type"] == "AWS::EC2::LaunchTemplate":
            assert resource["Properties"]["LaunchTemplateData"]["UserData"]
            resource["Properties"]["LaunchTemplateData"]["UserData"] = "<user data>"
    return found


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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assembly that `app.py` makes of the defaults."""
    folder = tmp_path_factory.mktemp("plain")
    synth(folder)
    return folder


def test_templates_do_not_depend_on_where_they_are_deployed(plain, tmp_path):
    synth(
        tmp_path,
        AWS_ENDPOINT_URL="http://127.0.0.1:4566",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_REGION="us-east-1",
        CDK_DOCKER="/some/shim",
    )
    for name in ("DataStack", "TrainingStack"):
        file = f"{name}.template.json"
        assert (plain / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_wrong_setting_is_an_annotation_and_the_template_still_exists(tmp_path):
    synth(tmp_path, LLM_LORA__RR="3", CONTEXT='{"volume_siz": "1"}')
    manifest = (tmp_path / "manifest.json").read_text() + "".join(
        p.read_text() for p in tmp_path.glob("*.metadata.json")
    )
    assert "Did you mean LLM_LORA__R?" in manifest
    assert "Did you mean volume_size?" in manifest
    assert (tmp_path / "TrainingStack.template.json").exists()


def test_stacks_do_not_depend_on_each_other(plain):
    artifacts = json.loads((plain / "manifest.json").read_text())["artifacts"]
    for name, other in (("DataStack", "TrainingStack"), ("TrainingStack", "DataStack")):
        assert other not in artifacts[name].get("dependencies", [])
