"""README and the page for movers say what the code does: every setting, every name of the original, no dead link."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import known_variables

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MOVING = ROOT / "docs" / "moving-from-terraform.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

# The original lab's training.tfvars, each key as its users wrote it.
TFVARS = {
    "create_instance": False,
    "instance_type": "g5.xlarge",
    "use_spot": True,
    "volume_size": 200,
    "max_runtime_hours": 12,
    "cost_alert_threshold": 50,
    "alert_email": "you@example.com",
    "auto_shutdown": True,
    "region": "us-west-2",
    "availability_zone": "us-west-2b",
    "create_vpc": True,
}
# What the original's README told to type, and the names that it printed.
COMMANDS = [
    "terraform init", "terraform apply", "terraform output", "terraform output -raw NAME", "terraform destroy",
    "terraform fmt", "-auto-approve", "cp training.tfvars.example training.tfvars", "aws ssm start-session",
    "tmux attach -t training", 'backend "s3"', "cp -r envs/training envs/training-eu",
]  # fmt: skip
MODULES = ["training-storage", "training-registry", "training-compute", "training-safety"]
OUTPUTS = ["training_bucket", "outputs_bucket", "github_actions_role_arn", "instance_id"]
FAILURES = [
    "Unable to locate credentials", "spot instance not available", "could not select device driver",
    "CUDA out of memory", "training results are not in S3", "MaxSpotInstanceCountExceeded", "no capacity",
]  # fmt: skip


def rows(page: Path, marker: str) -> dict[str, list[str]]:
    """Cells of the table between the markers, by the key in their first cell."""
    text = page.read_text().split(f"<!-- {marker}:begin -->")[1].split(f"<!-- {marker}:end -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_configuration_table_lists_every_key_and_no_other():
    assert set(rows(README, "configuration")) == set(LabConfig.model_fields)


@pytest.mark.parametrize("key", LabConfig.model_fields)
def test_the_configuration_table_says_the_default(key):
    default = LabConfig.model_fields[key].default
    cell = rows(README, "configuration")[key][0]
    if default is None or default == ():
        assert "`" not in cell, "no value is the default"
    else:
        assert cell == f"`{default if isinstance(default, str) else json.dumps(default)}`"


def test_every_run_setting_that_readme_names_exists():
    named = set(re.findall(r"LLM_[A-Z_]*[A-Z]", README.read_text()))
    assert named
    assert named <= set(known_variables())


def test_every_key_of_the_original_is_accepted_by_its_name_and_its_value():
    assert LabConfig.model_validate(TFVARS).model_dump(include=set(TFVARS)) == TFVARS


def test_every_name_of_the_original_has_its_place_on_the_page_for_movers():
    assert set(rows(MOVING, "variables")) == set(TFVARS)
    text = MOVING.read_text()
    for name in (*COMMANDS, *MODULES, *OUTPUTS):
        assert f"`{name}" in text, name


def test_every_failure_of_the_original_has_a_troubleshooting_entry():
    section = README.read_text().split("## Troubleshooting")[1].split("\n## ")[0].lower()
    for failure in FAILURES:
        assert failure.lower() in section, failure


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_to_a_file_or_a_heading_is_dead(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target
