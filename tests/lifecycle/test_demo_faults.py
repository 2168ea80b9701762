"""`make demo` with a DEMO_FAULT, typed as a user would: what its exit code, its report and summary.json then say.

One fault, whose run fails; that runs pass or fail with the other ones is shown on the shared stage (`test_faults.py`).

In a copy of the working tree, so that neither a cloud nor a report that this clone's user has there is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.chaos import sample
from tests.support.fresh_clone import fresh_clone, own_code
from training_image.core import contract

pytestmark = pytest.mark.lifecycle

SECONDS = 600
TINY = {
    "DEMO_STEPS": "2",
    "LLM_TRAINING__MAX_LENGTH": "128",
    "LLM_EVALUATION__MAX_NEW_TOKENS": "2",
}


@dataclass(frozen=True)
class Demo:
    code: int
    printed: str
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo-faults")
    sample.save_model(folder / "model")
    sample.write_data(folder / "train.jsonl")
    return fresh_clone(folder)


def demo(clone: Path, fault: str, settings: dict[str, str]) -> Demo:
    own = ("LLM_", "DEMO_", "MAKE", "MFLAGS")  # of the shell, and of the `make test` around this
    shell = {name: value for name, value in os.environ.items() if not name.startswith(own) and name != "ENGINE"}
    written = clone / ".lab" / "demo" / "summary.json"
    written.unlink(missing_ok=True)  # the last demo's must not pass for this one's
    done = subprocess.run(
        ["make", "demo", f"MODEL={clone.parent / 'model'}", f"DATA={clone.parent / 'train.jsonl'}"],
        cwd=clone,
        env={
            **shell,
            **settings,
            "DEMO_FAULT": fault,
            **own_code(clone),
            "COLUMNS": "2000",  # a sentence stays on one line
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert written.is_file(), done.stdout
    return Demo(done.returncode, done.stdout, json.loads(written.read_text()))


def nothing_is_left(found: Demo) -> None:
    counts = [found.summary[f"instances_running_{when}"] for when in ("before_destroy", "after")]
    assert counts == [0, 0], found.printed
    assert contract.DATA_STACK in found.summary["stacks_after"]
    assert contract.TRAINING_STACK not in found.summary["stacks_after"]


def test_a_run_without_a_result_is_reported_as_failed(clone: Path):
    found = demo(clone, "silent-exit-0", TINY)
    assert found.code != 0, found.printed
    assert (found.summary["outcome"], found.summary["attempts"]) == ("failed", 2), found.printed
    assert found.summary["adapter_uri"] is None
    assert "The trainer exited with 0 and left no valid result" in found.printed
    nothing_is_left(found)
