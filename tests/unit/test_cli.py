"""Bad input to `lab local demo`: one sentence, exit code 2, and nothing started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lab import cli
from lab.demo import demo, environment
from local_cloud import cli as local_cloud

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A clone after `make setup` with an ordinary shell, and a demo that must not start."""
    root = tmp_path / "clone"
    (root / "node_modules" / ".bin").mkdir(parents=True)
    (root / "node_modules" / ".bin" / "cdk").touch()
    node = tmp_path / "bin" / "node"
    node.parent.mkdir()
    node.write_text("#!/bin/sh\necho v20.1.0\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(node.parent), prepend=":")
    for module in (cli, local_cloud):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(demo, "run", lambda *_: pytest.fail("the demo was started"))
    return root


def refuse(*arguments: str) -> str:
    result = RUNNER.invoke(cli.app, ["local", "demo", *arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def write(folder: Path, text: str, name: str = "train.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


PAIR = json.dumps({"prompt": "a", "completion": "b"}) + "\n"


def test_missing_data(tmp_path: Path) -> None:
    assert "no such file" in refuse("--data", str(tmp_path / "absent"))


def test_data_of_another_kind(tmp_path: Path) -> None:
    assert "not a .jsonl file" in refuse("--data", str(write(tmp_path, PAIR, "train.csv")))


@pytest.mark.parametrize("text", ["", PAIR + "{broken\n", PAIR + json.dumps({"prompt": "", "completion": "b"}) + "\n"])
def test_empty_or_malformed_data_names_the_file(tmp_path: Path, text: str) -> None:
    said = refuse("--data", str(write(tmp_path / "data", text)))
    assert "train.jsonl" in said
    assert not text or "line 2" in said


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "jsonl" in refuse("--data", str(tmp_path / "data"))


def test_model_folder_without_a_model(tmp_path: Path) -> None:
    assert "config.json" in refuse("--model", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LLM_TRAINING__LEARNING_RAT", "1", "LLM_TRAINING__LEARNING_RATE"),
        ("LLM_TRAINING__LEARNING_RATE", "fast", "LLM_TRAINING__LEARNING_RATE is 'fast'"),
        ("DEMO_STEPS", "many", "DEMO_STEPS"),
        ("DEMO_STEPS", "0", "DEMO_STEPS"),
    ],
)
def test_wrong_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    assert said in refuse()


def test_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install Node 20" in refuse()


def test_old_node(tmp_path: Path) -> None:
    (tmp_path / "bin" / "node").write_text("#!/bin/sh\necho v18.0.0\n")
    assert "v18.0.0 is too old" in refuse()


def test_no_cdk(clone: Path) -> None:
    (clone / "node_modules" / ".bin" / "cdk").unlink()
    assert "make setup" in refuse()


def test_good_input_starts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[demo.Options] = []
    monkeypatch.setattr(demo, "run", lambda options, _console: seen.append(options) or 0)
    data = write(tmp_path / "data", PAIR + PAIR.replace("a", "c")).parent
    assert RUNNER.invoke(cli.app, ["local", "demo", "--data", str(data)]).exit_code == 0
    assert seen[0].data == data


def test_the_shell_wins_over_the_demo() -> None:
    shell = {"LLM_TRAINING__LEARNING_RATE": "5e-5", "LLM_MODEL__BASE_MODEL": "some/model", "DEMO_STEPS": "7"}
    added = environment.run_variables(shell, base_model="s3://b/m/", own_data=False)
    assert not set(added) & set(shell)
    assert added["LLM_TRAINING__MAX_STEPS"] == "7"
    assert added["LLM_TRAINING__USE_CPU"] == "true"
    assert "LLM_TRAINING__MAX_STEPS" not in environment.run_variables(
        shell | {"LLM_TRAINING__MAX_STEPS": "3"}, base_model="", own_data=True
    )


def test_the_demo_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.run_variables({}, base_model="s3://b/m/", own_data=False).items():
        monkeypatch.setenv(name, value)
    settings = environment.RunSettings.load()
    assert settings.model.base_model == "s3://b/m/"
    assert settings.training.use_cpu


def test_the_commands_bring_no_emulator_along() -> None:
    """It is the server's: imported here it would cost each command half a second."""
    program = "import sys, lab.cli; sys.exit('ministack' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_embedded_clouds_commands_are_all_there() -> None:
    local = typer.main.get_command(cli.app).commands["local"]
    assert set(local.commands) == {
        "up", "env", "down", "demo", "chaos", "interrupt", "kill", "outage", "no-capacity",
    }  # fmt: skip


def test_nothing_is_up() -> None:
    for command in ("env", "interrupt", "kill", "outage", "no-capacity"):
        result = RUNNER.invoke(cli.app, ["local", command])
        assert (result.exit_code, result.stderr.strip()) == (1, "No local cloud is up. Start one: lab local up")
    result = RUNNER.invoke(cli.app, ["local", "down"])
    assert (result.exit_code, result.output.strip()) == (0, "No local cloud is up.")
