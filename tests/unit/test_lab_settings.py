"""lab.yaml, the shell and -c: who wins, and what a typo says."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_image.config.catalog import INSTANCES, instance_problem
from training_image.config.lab_settings import LabConfig, load


@pytest.fixture
def environ(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LLM_"):
            monkeypatch.delenv(name)
    before = dict(os.environ)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


def loaded(tmp_path, environ, text="", **context):
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    return load(file, context, environ)


def test_every_source_wins_over_the_one_before(tmp_path, environ, monkeypatch):
    text = "LLM_TRAINING__SEED: 1\nLLM_TRAINING__MAX_STEPS: 1\nLLM_LORA__R: 1\nvolume_size: 300\n"
    monkeypatch.setenv("LLM_TRAINING__SEED", "2")
    monkeypatch.setenv("LLM_TRAINING__MAX_STEPS", "2")
    result = loaded(tmp_path, environ, text, **{"LLM_TRAINING__MAX_STEPS": "3", "volume_size": "400"})
    assert (result.settings.training.max_steps, result.settings.training.seed, result.settings.lora.r) == (3, 2, 1)
    assert result.config.volume_size == 400
    assert not result.lab_problems
    assert not result.run_problems


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("instnce_type: g5.xlarge", "Unknown setting instnce_type. Did you mean instance_type?"),
        ("instance_type: g5.xlrage", "Nearest: g5.xlarge"),
        ("instance_type: m5.large", "is not a GPU instance type"),
        ("instance_type: p3.2xlarge", "Use g4dn (fp16) or g5 instead"),
        ("max_runtime_hours: soon", "max_runtime_hours is 'soon'"),
        ("vpc_id: vpc-12345678\nsubnet_ids: [subnet-12345678]", "need create_vpc: false"),
        ("create_vpc: false\nvpc_id: vpc-12345678", "belong together"),
        ("subnet_ids: [subnet-x]\ncreate_vpc: false", "subnet_ids is 'subnet-x'"),
        ("github_repository: me/lab\ngithub_owner_id: 1", "github_owner_id and github_repository_id belong together"),
        ("github_repository: 'me/*'", "github_repository is 'me/*'"),
        ("github_branch: 'feature/*'", "github_branch is 'feature/*'"),
        ("just a sentence", "must hold 'key: value' lines"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_infrastructure_key_is_named_and_left_out(tmp_path, environ, text, sentence):
    result = loaded(tmp_path, environ, text)
    assert len(result.lab_problems) == 1
    assert sentence in result.lab_problems[0]
    assert result.config in (LabConfig(), LabConfig(create_vpc=False), LabConfig(github_repository="me/lab")), (
        "what is wrong must not reach the template that a destroy synthesises"
    )


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LLM_TRAINING__LEARNING_RAT", "1", "Did you mean LLM_TRAINING__LEARNING_RATE?"),
        ("LLM_TRIANING__SEED", "1", "Did you mean LLM_TRAINING__SEED?"),
        ("LLM_LORA__R", "many", "LLM_LORA__R is 'many'"),
    ],
)
def test_a_wrong_run_setting_is_named_as_typed(tmp_path, environ, monkeypatch, name, value, sentence):
    monkeypatch.setenv(name, value)
    result = loaded(tmp_path, environ)
    assert any(sentence in problem for problem in result.run_problems)
    assert not result.lab_problems
    assert result.settings.model_dump(mode="json")["lora"]["r"] == 16, "defaults stand in, so that destroy works"


def test_contexts_own_keys_are_not_settings(tmp_path, environ):
    assert not loaded(tmp_path, environ, **{"@aws-cdk/core:x": True, "aws:cdk:y": 1}).lab_problems


def test_lists_can_be_typed_with_minus_c(tmp_path, environ):
    config = loaded(tmp_path, environ, instance_types="g6.xlarge,g5.xlarge").config
    assert config.acceptable_types == ("g5.xlarge", "g6.xlarge")


@given(st.text(max_size=30))
def test_any_unknown_type_gets_a_sentence_with_a_usable_type(name):
    problem = instance_problem(name)
    if name not in INSTANCES:
        assert problem is not None
        assert any(known in problem for known in INSTANCES)


def test_the_example_file_is_valid_and_says_the_defaults(tmp_path, environ):
    from pathlib import Path

    text = (Path(__file__).parents[2] / "lab.example.yaml").read_text()
    result = loaded(tmp_path, environ, text)
    assert not result.lab_problems
    assert not result.run_problems
    assert result.config == LabConfig()


def test_stacks_of_labs_and_runs_never_share_a_name():
    names = {
        LabConfig(lab=lab, run=run).training_stack_name for lab in ("default", "x", "y") for run in ("run", "x", "y")
    }
    assert len(names) == 9
    assert (
        LabConfig(lab="x", run="y").command("cdk destroy TrainingStack")
        == "cdk destroy TrainingStack -c lab=x -c run=y"
    )


@pytest.mark.parametrize("value", ["0", "-1"])
def test_checkpoints_cannot_be_switched_off(tmp_path, environ, value):
    (problem,) = loaded(tmp_path, environ, LLM_TRAINING__SAVE_STEPS=value).run_problems
    assert problem.startswith(f"LLM_TRAINING__SAVE_STEPS is '{value}': checkpoints cannot be switched off")


@pytest.mark.parametrize(
    ("steps", "every", "spot", "unsafe"),
    [
        ("50", "51", "true", True),
        ("50", "50", "true", False),
        ("50", "51", "false", False),
        ("-1", "51", "true", False),
    ],
)
def test_a_cadence_that_saves_nothing_before_the_end_is_refused_on_spot(tmp_path, environ, steps, every, spot, unsafe):
    words = {"LLM_TRAINING__MAX_STEPS": steps, "LLM_TRAINING__SAVE_STEPS": every, "use_spot": spot}
    problems = loaded(tmp_path, environ, **words).run_problems
    assert bool(problems) == unsafe
    assert all("a spot instance may be taken away at any moment" in problem for problem in problems)
