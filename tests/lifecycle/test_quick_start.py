"""README's quick start, typed literally: its bash blocks in one shell of a fresh clone, against the local cloud.

What the test changes is only what it must:
- the editor of step 2 writes what a user would, and nobody is there to answer the CDK CLI's questions;
- `make setup` finds its work done, because the clone shares this one's packages (`.ci/run` sets up for real);
- `LLM_*` variables exported before step 6 ask for a tiny model and four steps on CPU.
Blocks of the language `console` need GitHub, a person or a real instance, and are not run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from local_cloud.cloud import LocalCloud
from tests.support.fresh_clone import fresh_clone, own_code
from tests.support.stage import SHORT, Stage
from tests.support.tiny_model import save_model
from training_image.core import contract

pytestmark = pytest.mark.lifecycle

ROOT = Path(__file__).parents[2]
STEPS = [
    "1. Prerequisites", "2. Initial infrastructure", "3. GitHub Actions", "4. Training image", "5. Training data",
    "6. Start", "7. Monitor", "8. Clean up",
]  # fmt: skip
NOT_RUN = ("gh api ", "git push ", "aws ssm start-session ", "tmux attach ", "tail -f ")
SECONDS = 900


@dataclass(frozen=True)
class Step:
    title: str
    bash: str
    console: tuple[str, ...]
    languages: frozenset[str]


def quick_start() -> list[Step]:
    section = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith("Quick start\n")]
    steps = []
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
        console = [line for language, block in blocks if language == "console" for line in block.splitlines()]
        steps.append(
            Step(
                part.splitlines()[0],
                "".join(block for language, block in blocks if language == "bash"),
                tuple(console),
                frozenset(language for language, _ in blocks),
            )
        )
    return steps


def test_the_steps_are_the_originals_and_only_what_cannot_run_here_is_left_out():
    steps = quick_start()
    assert [step.title for step in steps] == STEPS
    for step in steps:
        assert step.languages <= {"bash", "console"}
        assert all(line.startswith(NOT_RUN) for line in step.console), step.console
        assert step.bash or step.title == "4. Training image"


def environment(cloud: LocalCloud, folder: Path, clone: Path) -> dict[str, str]:
    """The shell that a user opens: credentials and programs, and nothing of this repository."""
    editor = folder / "editor"
    editor.write_text('#!/usr/bin/env bash\necho "github_repository: octo/lab" >>"$1"\n')
    editor.chmod(0o755)
    path = [part for part in os.environ["PATH"].split(":") if not part.startswith(str(ROOT))]
    own = {name: value for name, value in cloud.environ().items() if not name.startswith("LLM_")}
    return {
        **own,
        "PATH": ":".join(path),
        **own_code(clone),
        "EDITOR": str(editor),
        "CDK_REQUIRE_APPROVAL": "never",
        "CDK_FORCE": "true",
    }


def script(model: Path) -> str:
    lines = ["set -eo pipefail"]
    for step in quick_start():
        if step.title == "6. Start":
            uri = '"s3://$(lab output training_bucket)/models/tiny/"'
            lines += [f"aws s3 sync --quiet {shlex.quote(str(model))} {uri}"]
            lines += [f"export LLM_MODEL__BASE_MODEL={uri}"]
            lines += [
                f"export {name}={shlex.quote(value)}" for name, value in SHORT.items() if "BASE_MODEL" not in name
            ]
        lines += [rf"printf '\n@@ %s\n' {shlex.quote(step.title)}", step.bash]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory):
    """What the shell printed at each step, the cloud afterwards, and the clone."""
    folder = tmp_path_factory.mktemp("quick-start")
    save_model(folder / "model")
    clone = fresh_clone(folder)
    with LocalCloud(folder) as cloud, (folder / "shell.log").open("w+") as log:
        code = subprocess.run(
            ["bash", "-c", script(folder / "model")],
            cwd=clone,
            env=environment(cloud, folder, clone),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
        ).returncode
        log.seek(0)
        text = log.read()
        assert code == 0, text
        printed = dict(part.split("\n", 1) for part in re.split(r"^@@ ", text, flags=re.MULTILINE)[1:])
        yield printed, Stage(cloud, folder), clone


def test_the_roles_for_github_are_printed(followed):
    printed, _, _ = followed
    arns = [line for line in printed["3. GitHub Actions"].splitlines() if line.startswith("arn:aws:iam::")]
    assert len(set(arns)) == 2


def test_the_run_succeeds_and_its_adapter_arrives(followed):
    printed, _, clone = followed
    assert '"succeeded"' in printed["7. Monitor"], printed["7. Monitor"]
    assert re.search(r"^i-[0-9a-f]+$", printed["7. Monitor"], re.MULTILINE)
    assert {"adapter_model.safetensors", "README.md"} <= {path.name for path in (clone / "adapter").iterdir()}


def test_cleaning_up_leaves_what_stays_and_nothing_else(followed):
    _, stage, _ = followed
    assert stage.stacks() == {"CDKToolkit", contract.DATA_STACK}
    assert not stage.instances()
