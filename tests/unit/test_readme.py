"""README and the pages beside it say what the code does: every setting, price, failure and name; no dead link."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import PREFIX, RunSettings, known_variables

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
MOVING, CONFIGURATION, TROUBLESHOOTING = (
    DOCS / f"{name}.md" for name in ("moving-from-terraform", "configuration", "troubleshooting")
)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]

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
    "CUDA out of memory", "training results are not in S3",
]  # fmt: skip
OF_SPOT = ["MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "UnfulfillableCapacity", "no capacity"]


def rows(page: Path, marker: str) -> dict[str, list[str]]:
    """Cells of the table between the markers, by the key in their first cell."""
    text = page.read_text().split(f"<!-- {marker}:begin -->")[1].split(f"<!-- {marker}:end -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in cells}


def test_readme_keeps_to_one_purpose():
    assert len(README.read_text().splitlines()) <= 220


def test_the_first_screen_is_a_sentence_a_picture_and_two_commands():
    title, sentence, picture, commands, _ = re.split(r"\n\n(?=\S)", README.read_text(), maxsplit=4)
    assert title.startswith("# ")
    assert sentence.count(".") == 1
    assert sentence.endswith(".")
    assert picture.startswith("```mermaid\n")
    assert len(picture.splitlines()) <= 16
    assert [line.split("  ")[0] for line in commands.splitlines()[1:-1]] == ["make demo", "cdk deploy TrainingStack"]


def test_readme_leads_to_every_page():
    reached, waiting = set(), {README}
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\(([\w./-]+\.md)[#)]", page.read_text())
        waiting |= {(page.parent / link).resolve() for link in links} & set(PAGES) - reached
    assert reached == set(PAGES)


def test_the_configuration_table_lists_every_key_and_no_other():
    assert set(rows(CONFIGURATION, "configuration")) == set(LabConfig.model_fields)


def says(cell: str, default: object) -> bool:
    """A default that is a value stands in backticks, as it is typed; one that is found out stands in words."""
    if default is None or default == ():
        return bool(cell)
    return cell == f"`{default if isinstance(default, str) else json.dumps(default)}`"


@pytest.mark.parametrize("key", LabConfig.model_fields)
def test_the_configuration_table_says_the_default(key):
    default = LabConfig.model_fields[key].default
    cell = rows(CONFIGURATION, "configuration")[key][0]
    assert says(cell, default)
    assert default not in (None, ()) or "`" not in cell, "no value is the default"


def test_the_table_of_a_run_lists_every_variable_and_no_other():
    assert list(rows(CONFIGURATION, "run")) == known_variables()


@pytest.mark.parametrize("variable", known_variables())
def test_the_table_of_a_run_says_the_default(variable):
    section, field = variable.removeprefix(PREFIX).lower().split("__")
    default = getattr(RunSettings.model_fields[section].default, field)
    cell, meaning = rows(CONFIGURATION, "run")[variable]
    assert says(cell, default)
    assert meaning


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_run_setting_that_a_page_names_exists(page):
    named = set(re.findall(r"LLM_[A-Z_]*[A-Z]", page.read_text()))
    assert named <= set(known_variables())


def test_the_original_run_settings_are_named():
    for name in ("MODEL__BASE_MODEL", "TRAINING__NUM_TRAIN_EPOCHS", "TRAINING__LEARNING_RATE", "LORA__R"):
        assert f"`{PREFIX}{name}`" in CONFIGURATION.read_text()


def test_every_key_of_the_original_is_accepted_by_its_name_and_its_value():
    assert LabConfig.model_validate(TFVARS).model_dump(include=set(TFVARS)) == TFVARS


def test_every_name_of_the_original_has_its_place_on_the_page_for_movers():
    assert set(rows(MOVING, "variables")) == set(TFVARS)
    text = MOVING.read_text()
    for name in (*COMMANDS, *MODULES, *OUTPUTS):
        assert f"`{name}" in text, name


def failures(page: Path) -> list[str]:
    """Rows of the page's tables of failures, whole."""
    text = page.read_text().split("# Troubleshooting\n")[1].split("\n## Deleting")[0]
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what you see")]


def test_readme_has_the_failures_of_the_original_and_only_these():
    assert len(failures(README)) == len(FAILURES)
    for failure, row in zip(FAILURES, failures(README), strict=True):
        assert failure in row.split("|")[1]


def test_the_page_of_failures_has_them_word_for_word_and_those_of_spot():
    assert set(failures(README)) <= set(failures(TROUBLESHOOTING))
    for name in OF_SPOT:
        assert name in TROUBLESHOOTING.read_text()


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
