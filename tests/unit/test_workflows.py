"""The GitHub workflows: pinned, least privileged, linted; what is typed into them never becomes part of a script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_digest import FROM_MAIN

from training_image.config import lab_settings
from training_image.config.lab_settings import LabConfig
from training_image.core import contract

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github"
FILES = {path.stem: path for path in sorted((FOLDER / "workflows").glob("*.yml"))}
BIN = Path(sys.executable).parent
BY_OIDC = {
    "build-image": "AWS_GHA_ROLE_ARN",
    "train": "AWS_GHA_DEPLOY_ROLE_ARN",
    "destroy": "AWS_GHA_DEPLOY_ROLE_ARN",
}

every_workflow = pytest.mark.parametrize("name", FILES)


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load(FILES[name].read_text())


def triggers(name: str) -> dict[str, Any]:
    return workflow(name)[True]  # YAML 1.1 reads the key `on` as a truth value


def job(name: str) -> dict[str, Any]:
    (only,) = workflow(name)["jobs"].values()
    return only


def scripts(name: str) -> list[str]:
    return [step["run"] for step in job(name)["steps"] if "run" in step]


def step(name: str, title: str) -> dict[str, Any]:
    (found,) = [step for step in job(name)["steps"] if step.get("name") == title]
    return found


def run(*words: str, cwd: Path = ROOT, script: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", **variables}
    return subprocess.run(words, cwd=cwd, env=environment, input=script, capture_output=True, text=True)


# --- linters ------------------------------------------------------------------------------------------------------
def test_there_is_a_workflow_for_each_promise():
    assert set(FILES) == {"test", "nightly", "build-image", "train", "destroy"}
    assert workflow("build-image")["name"] == "Build and Push Training Image to ECR"


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", list(FILES.values())),
        ("custom.github-workflows-require-timeout", list(FILES.values())),
        ("vendor.dependabot", [FOLDER / "dependabot.yml"]),
    ],
)
def test_files_follow_their_schema(schema, files):
    result = run(str(BIN / "check-jsonschema"), "--builtin-schema", schema, *map(str, files))
    assert result.returncode == 0, result.stdout


def test_zizmor_finds_nothing_even_when_pedantic():
    result = run(str(BIN / "zizmor"), "--offline", "--no-progress", "--pedantic", str(FOLDER))
    assert result.returncode == 0, result.stdout


@every_workflow
def test_shellcheck_finds_nothing_in_the_scripts(name):
    for script in scripts(name):
        result = run("shellcheck", "--shell=bash", "-", script=script)
        assert result.returncode == 0, result.stdout


def test_the_test_workflow_runs_what_ci_runs():
    commands = re.findall(
        r"^time .*?(make [a-z-]+(?: [A-Z_]+=\S+)*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )
    assert len(commands) >= 3
    assert scripts("test") == commands


# --- what they may do ---------------------------------------------------------------------------------------------
@every_workflow
def test_every_action_is_pinned_by_commit_with_its_version_beside_it(name):
    uses = re.findall(r"uses: *(.*)", FILES[name].read_text())
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_an_action_has_one_version_everywhere():
    text = "".join(path.read_text() for path in FILES.values())
    pins = set(re.findall(r"uses: *([\w./-]+)@([0-9a-f]{40})", text))
    assert len(pins) == len({action for action, _ in pins})


@every_workflow
def test_the_token_may_read_the_code_and_ask_for_an_identity_only_where_aws_is_used(name):
    assert workflow(name)["permissions"] == {"contents": "read"}
    wanted = {"contents": "read", "id-token": "write"} if name in BY_OIDC else None
    assert job(name).get("permissions") == wanted


@every_workflow
def test_no_static_key_and_no_secret_but_the_role_is_used(name):
    text = FILES[name].read_text()
    assert not re.search(r"aws[-_](access[-_]key|secret|session[-_]token)", text, re.IGNORECASE)
    assert set(re.findall(r"secrets\.(\w+)", text)) == ({BY_OIDC[name]} if name in BY_OIDC else set())


def test_secrets_and_variables_are_called_as_readme_calls_them():
    readme = (ROOT / "README.md").read_text()
    for path in FILES.values():
        for name in re.findall(r"(?:secrets|vars)\.(\w+)", path.read_text()):
            assert f"`{name}`" in readme, name


@every_workflow
def test_runs_of_a_workflow_do_not_pile_up_and_cannot_hang(name):
    assert workflow(name)["concurrency"]["group"].startswith(f"{name}")
    assert 0 < job(name)["timeout-minutes"] <= 90


@every_workflow
def test_the_checkout_keeps_no_credentials(name):
    (checkout,) = [step for step in job(name)["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["persist-credentials"] is False


@every_workflow
def test_no_expression_is_pasted_into_a_script(name):
    assert not [script for script in scripts(name) if "${{" in script]


@pytest.mark.parametrize("name", ["train", "destroy"])
def test_whoever_deploys_is_approved_in_the_environment_that_the_role_trusts(name):
    assert job(name)["environment"] == LabConfig().github_environment
    assert set(triggers(name)) == {"workflow_dispatch"}


def test_images_come_from_the_branch_that_the_role_trusts():
    assert set(triggers("build-image")) == {"push", "workflow_dispatch"}
    assert triggers("build-image")["push"]["branches"] == [LabConfig().github_branch]
    assert "training_image/**" in triggers("build-image")["push"]["paths"]
    assert "environment" not in job("build-image"), "an environment would change the subject of the token"


def test_images_go_to_the_labs_repository():
    assert job("build-image")["env"]["REPOSITORY"].replace("${{ vars.LAB || 'default' }}", "x") == (
        contract.repository_name("x")
    )


# --- what their scripts do ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BY_OIDC)
def test_a_missing_secret_is_named_with_the_command_that_prints_it(name):
    script = step(name, "Check the secret")["run"]
    result = run("bash", "-e", "-c", script, ROLE="")
    assert result.returncode == 1
    assert f"::error::The secret {BY_OIDC[name]} is missing" in result.stdout
    assert "lab output github_actions" in result.stdout
    assert run("bash", "-e", "-c", script, ROLE="arn:aws:iam::123456789012:role/x").returncode == 0


def recorder(folder: Path, *programs: str) -> None:
    """Programs that only write their arguments, one a line."""
    for program in programs:
        path = folder / program
        path.write_text(f'#!/usr/bin/env bash\nprintf "{program}\\n" >>calls\nprintf "%s\\n" "$@" >>calls\n')
        path.chmod(0o755)


HOSTILE = '"; touch pwned; echo $(touch pwned) `touch pwned`'


def test_train_passes_what_was_typed_as_single_arguments(tmp_path):
    recorder(tmp_path, "cdk")
    typed = {"LAB": "default", "RUN": HOSTILE, "INSTANCE_TYPE": "g5.xlarge", "USE_SPOT": "true", "IMAGE_TAG": "t",
             "MAX_RUNTIME_HOURS": "12"}  # fmt: skip
    script = step("train", "Deploy")["run"]
    result = run("bash", "-e", "-c", script, cwd=tmp_path, **{**typed, "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:3] == ["cdk", "deploy", "TrainingStack"]
    assert f"run={HOSTILE}" in calls
    assert "image_tag=t" in calls
    assert not (tmp_path / "pwned").exists()


def test_train_offers_the_settings_by_their_names_and_defaults():
    inputs = triggers("train")["workflow_dispatch"]["inputs"]
    for name in set(inputs) - {"settings"}:
        value = LabConfig.model_validate({name: inputs[name]["default"]} if "default" in inputs[name] else {})
        assert getattr(value, name) == getattr(LabConfig(), name), name


@pytest.mark.parametrize(
    ("typed", "problems"),
    [
        ("", ()),
        ("{LLM_TRAINING__NUM_TRAIN_EPOCHS: 3, volume_size: 300}", ()),
        ("LLM_LORA__R: 32\nalert_email: me@example.com", ()),
        ("{volume_sise: 300}", ("volume_sise",)),
        (HOSTILE, ("lab.yaml",)),
    ],
)
def test_train_hands_settings_to_the_same_check_as_lab_yaml(tmp_path, typed, problems):
    script = step("train", "Write lab.yaml")["run"]
    assert run("bash", "-e", "-c", script, cwd=tmp_path, SETTINGS=typed).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lab.yaml"]
    loaded = lab_settings.load(tmp_path / "lab.yaml", {}, {})
    assert len(loaded.lab_problems) == len(problems)
    for problem, word in zip(loaded.lab_problems, problems, strict=True):
        assert word in problem


def test_each_push_has_a_tag_of_its_own_and_the_newest_sorts_last(tmp_path):
    recorder(tmp_path, "aws", "docker")
    variables = {"REGISTRY": "r", "REPOSITORY": "n", "GITHUB_SHA": "0123456789abcdef" * 2 + "01234567",
                 "GITHUB_STEP_SUMMARY": "summary", "PATH": f"{tmp_path}:/usr/bin:/bin"}  # fmt: skip
    result = run("bash", "-e", "-c", step("build-image", "Build and push")["run"], cwd=tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text()
    tags = set(re.findall(r"^r/n:(.*)$", calls, re.MULTILINE))
    assert len(tags) == 1
    (tag,) = tags
    assert FROM_MAIN.fullmatch(tag), "the run controller resolves `latest` by it"
    assert tag.endswith("-0123456789ab")
    assert LabConfig(image_tag=tag).image_tag == tag
    assert tag in (tmp_path / "summary").read_text()


def test_destroy_asks_nothing_and_names_the_run(tmp_path):
    recorder(tmp_path, "cdk")
    script = step("destroy", "Destroy")["run"]
    result = run("bash", "-e", "-c", script, cwd=tmp_path, LAB="l", RUN="r", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "calls").read_text().split() == (
        ["cdk", "destroy", "TrainingStack", "--force", "-c", "lab=l", "-c", "run=r"]
    )
