"""Any valid settings make templates that keep every guard; any invalid ones are sentences, and the templates are there.

Few examples, because each is a synthesis (about a second).
"""

import json
import os
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab_constructs import guards
from tests.support.examples import examples
from tests.support.lab_strategies import lab_configs
from tests.support.whole_app import templates, whole_app
from tests.unit.test_templates_lint import findings
from training_image.config import lab_settings
from training_image.config.lab_settings import LabConfig
from training_image.config.run_settings import PREFIX, RunSettings

SLOW = settings(
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking would take a synthesis a step
)
NOWHERE = Path("no-such-file.yaml")


def run_settings() -> st.SearchStrategy[RunSettings]:
    """Settings of a run over their whole range, text with characters that templates and shells mind included."""
    text = st.text(string.printable, min_size=1, max_size=30)
    training = st.fixed_dictionaries(
        {},
        optional={
            "num_train_epochs": st.floats(0.01, 100),
            "max_steps": st.integers(-1, 10**6),
            "learning_rate": st.floats(1e-9, 0.5),
            "gradient_checkpointing": st.none() | st.booleans(),
            "save_steps": st.none() | st.integers(1, 10**6),
            "use_cpu": st.booleans(),
            "seed": st.integers(0, 2**63),
        },
    )
    return st.builds(
        lambda **sections: RunSettings.load(sections),
        model=st.fixed_dictionaries({"base_model": text}, optional={"revision": st.none() | text}),
        data=st.fixed_dictionaries({}, optional={"uri": st.none() | text.map("s3://bucket/".__add__)}),
        lora=st.fixed_dictionaries({}, optional={"r": st.integers(1, 1024), "target_modules": st.lists(text)}),
        training=training,
    )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@given(config=lab_configs(), run=run_settings())
@settings(SLOW, max_examples=examples(12))
def test_any_valid_settings_keep_the_guards_and_stay_small(config, run):
    app, _, training = whole_app(config, run)
    guards.synth(app, training=training)
    for stack, template in templates(app).items():
        assert guards.problems(template, training=stack == "TrainingStack") == []
        assert len(template["Resources"]) < 60
    assert not errors(app.outdir)


@given(config=lab_configs(), run=run_settings())
@settings(SLOW, max_examples=examples(3))
def test_any_valid_settings_lint_clean(config, run, tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("lint"), []
    for stack, template in templates(whole_app(config, run)[0]).items():
        files.append(folder / f"{stack}.json")
        files[-1].write_text(json.dumps(template))
    assert findings(files) == []


def wrong_values() -> st.SearchStrategy[dict[str, Any]]:
    """One to three keys with values of which some are wrong, unknown keys and ``LLM_*`` settings included."""
    junk = st.text(string.printable, max_size=12) | st.integers() | st.floats() | st.booleans() | st.none()
    junk |= st.lists(st.integers(), max_size=2) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=1)
    variables = [f"{PREFIX}LORA__R", f"{PREFIX}TRAINING__LEARNING_RATE", f"{PREFIX}MODEL", f"{PREFIX}TYPO__X"]
    names = st.sampled_from([*LabConfig.model_fields, *variables]) | st.text(
        string.ascii_lowercase, min_size=1, max_size=9
    )
    return st.dictionaries(names, junk, min_size=1, max_size=3)


@given(values=wrong_values())
@settings(SLOW, max_examples=examples(300))
def test_whatever_is_typed_loads_and_each_problem_is_one_sentence(values):
    loaded = lab_settings.load(NOWHERE, values, _environment())
    for problem in (*loaded.lab_problems, *loaded.run_problems):
        assert problem.strip() == problem
        assert problem
        assert problem[-1] in ".?", problem
        assert "Traceback" not in problem


def _environment() -> Any:
    """``os.environ``, freed of what an example before has put there (the schema reads it)."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    return os.environ


@given(values=wrong_values())
@settings(SLOW, max_examples=examples(6))
def test_whatever_is_typed_still_synthesises(values):
    """So that a destroy works."""
    loaded = lab_settings.load(NOWHERE, values, _environment())
    _environment()
    app, data, training = whole_app(loaded.config, loaded.settings)
    guards.synth(app, training=training)
    assert set(templates(app)) == {data.node.id, training.node.id}
    assert not errors(app.outdir), "a wrong setting is left out, not handed on"


def errors(outdir: str) -> list[str]:
    return [
        path.name
        for path in [*Path(outdir).glob("*.metadata.json"), Path(outdir) / "manifest.json"]
        if '"aws:cdk:error"' in path.read_text()
    ]
