"""The process engine in Docker's place: what it builds, runs and refuses."""

from __future__ import annotations

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
from local_cloud.dockerignore import ignored
from local_cloud.images import EngineError, ImageConfig


@pytest.mark.parametrize(
    ("path", "lines", "expected"),
    [
        ("a/b.pyc", ["**/*.pyc"], True),
        ("b.pyc", ["**/*.pyc"], True),
        ("a/b.pyc", ["*.pyc"], False),  # anchored at the root, other than in Git
        ("x/__pycache__/m", ["**/__pycache__"], True),
        ("keep.md", ["*", "!keep.md"], False),
        ("other.md", ["*", "!keep.md"], True),
        ("a.b", ["a?b", "# comment", ""], True),
        ("axb", ["a.b"], False),
        ("dir/deep/file", ["dir/"], True),
    ],
)
def test_dockerignore(path: str, lines: list[str], expected: bool) -> None:
    assert ignored(path, lines) is expected


def context(directory: Path, dockerfile: str, **files: str) -> Path:
    (directory / "Dockerfile").write_text(dockerfile)
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
WORKDIR /app
RUN pip install \\
    everything
COPY --from=builder /venv /venv
COPY a_py b_py ./
COPY sub training/
ENV PATHS="x y" OTHER=${V}
LABEL who=me
USER root
ENTRYPOINT ["python", "-m", "a"]
CMD ["arg"]
""".replace("_py", ".py")
    directory = context(tmp_path, text, a_py="1", b_py="2", sub__c_py="3")
    config, layer = images.build(directory, directory / "Dockerfile", {"V": "2"})
    assert names(layer) == ["app/a.py", "app/b.py", "app/training/c.py"]
    assert ImageConfig.from_json(config) == ImageConfig(
        env={"PATHS": "x y", "OTHER": "2"},
        working_dir="/app",
        entrypoint=["python", "-m", "a"],
        cmd=["arg"],
        user="root",
        labels={"who": "me"},
    )
    assert images.build(directory, directory / "Dockerfile", {"V": "2"}) == (config, layer)


@pytest.mark.parametrize("line", ["HEALTHCHECK NONE", "COPY missing .", "COPY --unknown=1 a .", "ADD http://x y"])
def test_what_is_not_modelled_is_refused(tmp_path: Path, line: str) -> None:
    directory = context(tmp_path, f"FROM scratch\n{line}\n")
    with pytest.raises(EngineError):
        images.build(directory, directory / "Dockerfile", {})


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
    assert docker(state, "ps", "-q").stdout == ""
    assert not (state / "docker/containers/one").exists()


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
        (["run", "--gpus", "all", "it"], 125, 'could not select device driver "" with capabilities: [[gpu]]'),
        (["run", "--privileged", "it"], 125, "--privileged"),
        (["run", "-v", "/a:/b", "it"], 125, "onto itself"),
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
            docker(state, "rm", "-f", "x")
