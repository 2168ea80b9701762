"""The acceptance run's plan, its checklist, and how it finds what is left: without a cloud."""

import json

import pytest
from rich.console import Console

from lab.smoke import account, checklist, plan
from lab.smoke.checklist import EXPECTED, Checklist
from training_image.config import lab_settings
from training_image.config.run_settings import known_variables
from training_image.core import contract

MODEL = "LLM_MODEL__BASE_MODEL"


# --- plan -------------------------------------------------------------------------------------------------------------
def test_it_stays_under_a_dollar_even_if_every_killer_is_late():
    cost = plan.cost()
    assert 0 < cost.expected < cost.most < 1
    assert f"{plan.MAX_SPOT_USD:.2f} USD an hour" in cost.explained


def test_its_settings_are_valid_whatever_lab_yaml_says(tmp_path, monkeypatch):
    for name in [name for name in known_variables() if name.startswith("LLM_")]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lab.yaml").write_text(
        "instance_type: p5.48xlarge\nmax_runtime_hours: 300\nuse_spot: false\nlab: mine\n"
    )
    loaded = lab_settings.load(tmp_path / "lab.yaml", plan.CONTEXT, dict(plan.SETTINGS))
    assert loaded.lab_problems == ()
    config = loaded.config
    assert (config.lab, config.training_stack_name) == ("smoke", "smoke-TrainingStack"), "collides with no other lab"
    assert config.acceptable_types == plan.TYPES
    assert (config.use_spot, config.max_spot_price) == (True, plan.MAX_SPOT_USD)
    assert config.max_runtime_hours == plan.MAX_HOURS
    assert config.volume_size == plan.VOLUME_GB
    assert set(plan.SETTINGS) <= set(known_variables())


def test_the_shells_own_variables_win_and_model_wins_over_all():
    assert plan.variables({}, None) == plan.SETTINGS
    assert MODEL not in plan.variables({MODEL: "mine"}, None)
    assert plan.variables({MODEL: "mine"}, "s3://b/m/")[MODEL] == "s3://b/m/"


# --- checklist --------------------------------------------------------------------------------------------------------
def test_it_passes_only_if_every_check_was_made_and_passed(tmp_path):
    list_ = Checklist({"region": "r"})
    for name in EXPECTED[:-1]:
        assert list_.add(name, True)
    assert not list_.passed
    assert list_.missing == [EXPECTED[-1]]
    assert not list_.add(EXPECTED[-1], False, "why")
    assert not list_.passed
    list_.write(tmp_path / "new" / "result.json")
    result = json.loads((tmp_path / "new" / "result.json").read_text())
    assert (result["passed"], result["region"], result["not_reached"]) == (False, "r", [])
    assert result["checks"][-1] == {"name": EXPECTED[-1], "passed": False, "detail": "why"}


def test_a_check_that_is_not_on_the_list_is_a_mistake():
    with pytest.raises(ValueError, match="not on the list"):
        Checklist().add("the moon is up", True)


def test_it_shows_what_passed_what_failed_and_what_was_never_reached():
    list_, console = Checklist(), Console(record=True, width=120)
    list_.add(checklist.BOOTSTRAP, True)
    list_.add(checklist.DATA_STACK, False, "no [bold] reason")
    list_.show(console)
    text = console.export_text()
    assert f"✓ {checklist.BOOTSTRAP}" in text
    assert f"✗ {checklist.DATA_STACK}  no [bold] reason" in text
    assert f"- {checklist.UNTOUCHED}  not reached" in text


# --- what is left -----------------------------------------------------------------------------------------------------
class Account:
    """Stands for EC2 and the tagging API."""

    def __init__(self, **found: list) -> None:
        self._found = found
        self.filters: dict[str, list] = {}

    def __call__(self, service: str) -> "Account":
        return self

    def get_paginator(self, operation: str) -> "Pages":
        return Pages(self, operation)

    def page(self, operation: str, **arguments: list) -> dict:
        self.filters[operation] = arguments.get("Filters") or arguments.get("TagFilters") or []
        if operation == "describe_instances":
            return {"Reservations": [{"Instances": [{"InstanceId": name} for name in self._found.get(operation, [])]}]}
        return {
            "Tags": [{"ResourceId": name, "ResourceType": kind} for name, kind in self._found.get("describe_tags", [])],
            "ResourceTagMappingList": [{"ResourceARN": arn} for arn in self._found.get("get_resources", [])],
        }

    def describe_volumes(self, *, Filters: list) -> dict:
        self.filters["describe_volumes"] = Filters
        return {"Volumes": [{"VolumeId": name} for name in self._found.get("volumes", [])]}

    def describe_network_interfaces(self, *, Filters: list) -> dict:
        return {"NetworkInterfaces": [{"NetworkInterfaceId": name} for name in self._found.get("interfaces", [])]}


class Pages:
    def __init__(self, of: Account, operation: str) -> None:
        self._of, self._operation = of, operation

    def paginate(self, **arguments: list) -> list[dict]:
        return [self._of.page(self._operation, **arguments)]


def test_everything_with_the_labs_tag_counts_but_what_is_only_remembered():
    found = Account(
        describe_tags=[("vol-1", "volume"), ("i-old", "instance"), ("vpc-1", "vpc")],
        describe_instances=["i-live"],
        get_resources=["arn:aws:ec2:r:1:instance/i-old", "arn:aws:lambda:r:1:function:f", "arn:aws:s3:::bucket"],
    )
    assert account.tagged(found, "smoke") == {
        "vol-1", "vpc-1", "i-live", "arn:aws:lambda:r:1:function:f", "arn:aws:s3:::bucket"
    }  # fmt: skip
    assert {"Name": f"tag:{contract.LAB_TAG}", "Values": ["smoke"]} in found.filters["describe_instances"]
    assert found.filters["get_resources"] == [{"Key": contract.LAB_TAG, "Values": ["smoke"]}]


def test_what_an_instance_leaves_is_found_by_its_stacks_tag():
    found = Account(volumes=["vol-1"], interfaces=["eni-1"])
    assert account.of_instance(found, "12345678") == {"vol-1", "eni-1"}
    assert found.filters["describe_volumes"] == [{"Name": f"tag:{contract.STACK_TAG}", "Values": ["12345678"]}]


def test_what_goes_slowly_is_waited_for_and_what_stays_is_named():
    looks = iter([{"vol-1"}, {"vol-1"}, set()])
    waited: list[float] = []
    assert account.until_none(lambda: next(looks), waited.append) == set()
    assert len(waited) == 2
    assert account.until_none(lambda: {"vol-1"}, lambda _: None) == {"vol-1"}
