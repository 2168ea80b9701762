"""The process engine in Docker's place: what it builds, runs and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest

from local_cloud import images
from local_cloud.cloud import SHIMS
from local_cloud.docker import STATE_VARIABLE
from local_cloud.images import EngineError

TRAINING_IMAGE = Path(__file__).parents[2] / "training_image"

RUN = ["run", "--rm", "--name", "x"]


@pytest.mark.parametrize(
    ("path", "lines", "expected"),
    [
        ("a/b.pyc", ["**/*.pyc"], False),
        ("b.pyc", ["**/*.pyc"], False),
        ("a/b.pyc", ["*.pyc"], True),  # anchored at the root, other than in Git
        ("x/__pycache__/m", ["**/__pycache__"], False),
        ("keep.md", ["*", "!keep.md"], True),
        ("room/keep.py", ["*", "!*/*.py"], True),  # below a folder that is left out, other than in Git
        ("other.md", ["*", "!keep.md"], False),
        ("keep.md", ["!keep.md", "*"], False),  # the last one that matches decides
        ("a.b", ["a?b", "# comment", ""], False),
        ("axb", ["a.b"], True),
        ("dir/deep/file", ["dir/"], False),
    ],
)
def test_dockerignore(tmp_path: Path, path: str, lines: list[str], expected: bool) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    (tmp_path / ".dockerignore").write_text("\n".join(lines))
    assert (path in images.context_files(tmp_path)) is expected


def context(directory: Path, dockerfile: str, **files: str) -> Path:
    (directory / "Dockerfile").write_text(dockerfile)
    (directory / ".dockerignore").write_text("*\n!*.py\n!*/*.py\n")
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def names(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=BytesIO(layer)) as archive:
        return sorted(info.name for info in archive.getmembers() if info.isfile())


def test_the_final_stage_is_applied_and_identical_input_gives_identical_bytes(tmp_path: Path) -> None:
    text = """ARG BASE=python
FROM ${BASE} AS builder
COPY absent /nowhere
FROM ${BASE}
ARG V=1
# A comment, and
RUN pip install \\
# another one in the middle
    everything$V
COPY --from=builder /venv /
ENV PATHS="x y" OTHER=1
LABEL who=me \\
    what="a test"
WORKDIR /app
COPY . training/
USER 1000
ENTRYPOINT ["python", "-m", "a"]
"""
    directory = context(tmp_path, text, a_py="1", sub__c_py="3", sub__notes="4")
    config, layer = images.build(directory)
    assert names(layer) == ["app/training/a.py", "app/training/sub/c.py"]
    assert json.loads(config)["config"] == {
        "Env": ["PATHS=x y", "OTHER=1"],
        "WorkingDir": "/app",
        "Entrypoint": ["python", "-m", "a"],
        "User": "1000",
        "Labels": {"who": "me", "what": "a test"},
    }
    assert images.build(directory) == (config, layer)
    (directory / "a.py").write_text("2")
    assert images.build(directory) != (config, layer)


def test_the_training_images_own_dockerfile_is_understood() -> None:
    config, layer = images.build(TRAINING_IMAGE)
    assert json.loads(config)["config"]["Entrypoint"] == ["python", "-m", "training_image.supervisor"]
    assert "app/training_image/supervisor/__main__.py" in names(layer)
    assert not [name for name in names(layer) if "Dockerfile" in name or "__pycache__" in name]


@pytest.mark.parametrize(
    "line",
    [
        "HEALTHCHECK NONE",
        "COPY missing .",
        "COPY --unknown=1 a .",
        "ADD http://x y",
        'CMD ["x"]',
        "ENTRYPOINT python",
        "ENV A=$B",
        "ENV A B",
        "COPY . .",
    ],
)
def test_what_is_not_modelled_is_refused(tmp_path: Path, line: str) -> None:
    directory = context(tmp_path, f"FROM scratch\n{line}\n")
    with pytest.raises(EngineError, match=line.split()[0]):
        images.build(directory)


def docker(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", STATE_VARIABLE: str(state)}
    return subprocess.run([str(SHIMS / "docker"), *arguments], env=environment, capture_output=True, text=True)


def built(tmp_path: Path, program: str) -> Path:
    text = 'FROM scratch\nWORKDIR /app\nCOPY . training_image/\nENTRYPOINT ["python", "-m", "training_image.it"]\n'
    (tmp_path / "context").mkdir()
    directory = context(tmp_path / "context", text, it_py=program, **{"__init___py": ""})
    (directory / "__init__.py").write_text("")
    state = tmp_path / "state"
    result = docker(state, "build", "--tag", "it", str(directory))
    assert result.returncode == 0, result.stderr
    return state


def test_the_copy_runs_not_the_checkout(tmp_path: Path) -> None:
    """The checkout has a training_image too, and the virtual environment points to it."""
    program = "import sys, training_image, os; print(training_image.__file__, os.getcwd()); sys.exit(7)"
    state = built(tmp_path, program)
    result = docker(state, "run", "--rm", "--name", "one", "it")
    assert result.returncode == 7
    where, directory = result.stdout.split()
    assert where == f"{state}/docker/containers/one/rootfs/app/training_image/__init__.py"
    assert directory == f"{state}/docker/containers/one/rootfs/app"
    assert not (state / "docker/containers/one").exists()


def test_an_image_without_an_entry_point_needs_a_command_that_exists(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nENV X=1\n")
    state = tmp_path / "state"
    assert docker(state, "build", "--tag", "it", str(tmp_path)).returncode == 0
    nothing = docker(state, *RUN, "it")
    assert (nothing.returncode, "no command specified" in nothing.stderr) == (125, True)
    assert docker(state, *RUN, "it", "no-such-program").returncode == 127
    assert docker(state, *RUN, "it", "sh", "-c", "exit $((X + 1))").returncode == 2


def test_a_name_in_use_is_refused_and_its_container_unharmed(tmp_path: Path) -> None:
    state = built(tmp_path, "")
    taken = state / "docker/containers/x/rootfs"
    taken.mkdir(parents=True)
    result = docker(state, *RUN, "it")
    assert (result.returncode, "already in use" in result.stderr) == (125, True)
    assert taken.exists()


def test_stop_gives_the_time_it_was_told_and_then_kills(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(15, lambda *_: print('ignored', flush=True)); print('up', flush=True)\n"
    )
    state = built(tmp_path, program + "while True: time.sleep(0.1)")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", STATE_VARIABLE: str(state)}
    running = subprocess.Popen(
        [str(SHIMS / "docker"), "run", "--rm", "--name", "x", "it"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    with running, running.stdout as out:
        assert out.readline() == "up\n"
        started = time.monotonic()
        with ThreadPoolExecutor() as other:
            stopping = other.submit(docker, state, "stop", "-t", "1", "x")
            assert out.readline() == "ignored\n"
            asked = time.monotonic()  # how long the client takes to begin is the machine's business
            assert out.readline() == "", "the end"
            ended = time.monotonic()
            assert stopping.result().returncode == 0
        assert ended - started >= 1
        assert ended - asked < 10, "Docker's own patience"
        assert running.wait(60) == 137


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            [*RUN, "--gpus", "all", "it"],
            125,
            'could not select device driver "" with capabilities: [[gpu]]',
        ),
        ([*RUN, "--privileged", "it"], 125, "--privileged"),
        ([*RUN, "-v", "/a:/b", "it"], 125, "onto itself"),
        (["stop", "absent"], 1, "No such container: absent"),
        (["push", "000000000000.dkr.ecr.us-east-1.amazonaws.com/x:1"], 1, "No such image"),
        (["pull", "000000000000.dkr.ecr.us-east-1.amazonaws.com/x:1"], 1, "no basic auth credentials"),
        (["inspect", "absent"], 1, "No such object: absent"),
        (["volume", "ls"], 125, "invalid choice"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    result = docker(tmp_path, *arguments)
    assert result.returncode == code
    assert re.search(message.replace("[[gpu]]", r"\[\[gpu\]\]"), result.stderr)


def test_a_sigterm_to_the_client_reaches_the_container(tmp_path: Path) -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(20)); print('up', flush=True)\n"
    state = built(tmp_path, program + "while True: time.sleep(0.1)")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", STATE_VARIABLE: str(state)}
    running = subprocess.Popen(
        [str(SHIMS / "docker"), "run", "--rm", "--name", "x", "it"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    with running, running.stdout as out:
        try:
            assert out.readline() == "up\n"
            running.terminate()
            assert running.wait(60) == 20
        finally:
            docker(state, "stop", "-t", "0", "x")
