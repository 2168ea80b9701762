"""The contributor's kit: make's own help, the hooks, the version, the changelog, and the words of the docs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lab import cli

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE)
CODE = (".ci", "scripts", "constructs", "lab", "lambda", "local_cloud", "training_image")
GLOSSARY = ROOT / "docs" / "glossary.md"
OTHER_WORDS = {"local-cloud.md", "testing.md"}
"""Pages about the local cloud, in which an instance is a set of processes and may be called so."""


def recipe(target: str) -> list[str]:
    """The target's commands, without comments and with make's variables filled in."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line).strip().replace("$(BIN)", ".venv/bin") for line in lines.splitlines()]


def hooks() -> dict[str, dict[str, Any]]:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local", "versions stand in requirements-dev.txt alone"
    return {hook["id"]: hook for hook in local["hooks"]}


def plain(command: str) -> str:
    """Without the shell that a hook needs for variables and patterns."""
    return re.sub(r"^bash -c '(.*)'$", r"\1", command)


# --- make ---------------------------------------------------------------------------------------------------------
def test_every_target_is_phony():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert len(TARGETS) > 10
    assert set(phony.split()) == set(TARGETS)


def test_make_help_prints_a_line_for_every_target():
    printed = subprocess.run(
        ["make", "--silent", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert list(lines) == TARGETS
    assert all(len(text) > 8 for text in lines.values())


def test_make_alone_is_make_help():
    assert TARGETS[0] == "help"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_target_that_a_page_names_exists(page):
    named = re.findall(r"(?:`|^)make ([a-z][a-z-]*)(?![a-z…-])", (ROOT / page).read_text(), re.MULTILINE)
    assert named
    assert set(named) <= set(TARGETS)


# --- hooks --------------------------------------------------------------------------------------------------------
def test_the_hooks_are_make_lint_and_shellcheck():
    entries = [plain(hook["entry"]) for hook in hooks().values() if hook["id"] != "shellcheck"]
    assert entries == recipe("lint")
    assert all(hook["language"] == "system" for hook in hooks().values()), "the tools of .venv"


def test_the_hook_of_shellcheck_is_as_strict_as_the_test():
    (severity,) = re.findall(r"--severity=\w+", (ROOT / "tests" / "unit" / "test_compute.py").read_text())
    assert hooks()["shellcheck"]["entry"] == f".venv/bin/shellcheck {severity}"


def test_shellcheck_finds_nothing_in_any_script():
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.is_file()]
    scripts = [path for path in files if is_shell(path)]
    assert {"run", "setup.sh", "user_data.sh", "tmux"} <= {path.name for path in scripts}
    command = [Path(sys.executable).with_name("shellcheck"), "--severity=warning", *scripts]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        return re.match(rb"#!.*\b(ba)?sh\b", file.readline()) is not None


# --- version ------------------------------------------------------------------------------------------------------
def test_lab_shows_the_version_of_pyproject():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"lab {PYPROJECT['project']['version']}\n"


def test_the_changelog_begins_with_what_is_not_released_and_then_this_version():
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(PYPROJECT['project']['version'])}\] - \d{{4}}-\d\d-\d\d", titles[1])


def test_dependabot_moves_every_ecosystem_as_one_group_and_waits():
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip", "npm", "docker"}
    for update in updates:
        assert update["cooldown"]["default-days"] >= 7
        assert [group["patterns"] for group in update["groups"].values()] == [["*"]]


# --- words --------------------------------------------------------------------------------------------------------
def test_the_glossary_stays_short_and_sorted():
    words = re.findall(r"^\| \*\*([a-z -]+)\*\* \| \S", GLOSSARY.read_text(), re.MULTILINE)
    assert {"run", "attempt", "instance", "stack", "lab", "checkpoint", "outcome"} <= set(words)
    assert len(words) <= 20
    assert words == sorted(words)


def test_what_aws_calls_an_instance_is_called_so():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        if page.name not in OTHER_WORDS:
            assert not re.findall(r"\bbox(?:es)?\b", page.read_text(), re.IGNORECASE), page.name
