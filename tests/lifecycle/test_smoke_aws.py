"""`make smoke-aws` against the emulator, by a person at a (pseudo) terminal who types yes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.stage import LONG, ROOT, SHORT, Stage

pytestmark = pytest.mark.lifecycle
RESULT = ROOT / ".lab" / "smoke-aws.json"
SECONDS = 700


class Terminal:
    """`lab smoke-aws` on a pseudo-terminal, and what it has printed so far."""

    def __init__(self, stage: Stage, *arguments: str, **variables: str) -> None:
        self._master, slave = pty.openpty()
        shell = {name: value for name, value in stage.cloud.environ().items() if not name.startswith("LLM_")}
        self.process = subprocess.Popen(
            [str(ROOT / ".venv/bin/lab"), "smoke-aws", *arguments],
            cwd=ROOT,
            env={**shell, **variables, "COLUMNS": "200"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Tests that run in the background have Ctrl-C switched off, and would hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.text = ""

    def type(self, line: str) -> None:
        os.write(self._master, f"{line}\n".encode())

    def until(self, what: str, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            self._read(0.2)
            if value := condition():
                return value
            if self.process.poll() is not None:
                self._read(0.2)
                assert condition(), f"it ended before {what}:\n{self.text}"
        raise AssertionError(f"not within {seconds} s: {what}\n{self.text}")

    def ended(self) -> int:
        self.until("its end", lambda: self.process.poll() is not None)
        os.close(self._master)
        return self.process.wait()

    def _read(self, seconds: float) -> None:
        while select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                time.sleep(seconds)
                return
            self.text += data.decode(errors="replace")
            seconds = 0


def data_file(folder: Path) -> Path:
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(of: dict[str, str]) -> dict[str, str]:
    """Without the model: that is what --model is for."""
    return {name: value for name, value in of.items() if name != "LLM_MODEL__BASE_MODEL"}


@pytest.fixture
def words(tmp_path_factory: pytest.TempPathFactory, stage: Stage, tmp_path: Path) -> list[str]:
    from tests.support.tiny_model import save_model

    save_model(tmp_path / "tiny")
    return ["--model", str(tmp_path / "tiny"), "--data", str(data_file(tmp_path))]


def test_nothing_is_started_without_somebody_who_agrees(stage: Stage):
    before = stage.stacks()
    shell = {name: value for name, value in stage.cloud.environ().items() if not name.startswith("LLM_")}
    piped = subprocess.run(
        [str(ROOT / ".venv/bin/lab"), "smoke-aws"], env=shell, input="yes\n", capture_output=True, text=True, cwd=ROOT
    )
    assert piped.returncode == 2
    assert "somebody at a terminal has to agree" in piped.stdout
    assert "account 000000000000, region us-east-1" in " ".join(piped.stdout.split())
    assert "Bound: 0." in piped.stdout, "under a dollar"

    terminal = Terminal(stage)
    terminal.until("the question", lambda: "Type yes to spend it" in terminal.text)
    terminal.type("y")
    assert terminal.ended() == 2
    assert "Nothing was started." in terminal.text
    assert stage.stacks() == before


def test_the_acceptance_run_passes_and_leaves_only_its_data_stack(stage: Stage, words: list[str]):
    before = stage.stacks()
    terminal = Terminal(stage, *words, **settings(SHORT))
    terminal.until("the question", lambda: "Type yes to spend it" in terminal.text)
    terminal.type("yes")
    code = terminal.ended()
    result = json.loads(RESULT.read_text())
    assert code == 0, terminal.text
    assert result["passed"], result
    assert [check["passed"] for check in result["checks"]] == [True] * 11
    assert result["not_reached"] == []
    assert result["cost_usd"]["most"] < 1
    assert stage.stacks() == before | {"smoke-DataStack"}
    assert not stage.instances()


def test_a_run_that_is_stopped_with_ctrl_c_destroys_what_costs_money(stage: Stage, words: list[str]):
    terminal = Terminal(stage, *words, **settings(LONG))
    terminal.until("the question", lambda: "Type yes to spend it" in terminal.text)
    terminal.type("yes")
    terminal.until("training", lambda: "tokens/s" in terminal.text)
    assert "smoke-TrainingStack" in stage.stacks()
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.ended() == 130
    assert "Destroying smoke-TrainingStack" in terminal.text
    assert "smoke-TrainingStack" not in stage.stacks()
    assert not stage.instances()
    result = json.loads(RESULT.read_text())
    assert not result["passed"]
    passed = [check["name"] for check in result["checks"] if check["passed"]]
    assert passed[-2:] == ["cdk destroy TrainingStack", "nothing is left that TrainingStack made"], result
    assert "the run succeeded" in result["not_reached"]
