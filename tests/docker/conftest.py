"""One local cloud that uses a real Docker engine. A machine without one skips; one that has it must use it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.support.stage import Stage, opened

Docker = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def docker() -> Docker:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)

    answers = shutil.which("docker") is not None and run("version").returncode == 0
    if not answers and shutil.which("dockerd") is None:
        pytest.skip("no Docker engine is installed")
    assert answers, (
        "Docker is installed and does not answer: start it, or run scripts/private_docker.sh make test-docker"
    )
    return run


@pytest.fixture(scope="session")
def stage(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with opened(tmp_path_factory.mktemp("docker"), engine="docker") as stage:
        yield stage
    left = docker("ps", "--all", "--filter", "label=llm-tuning-lab.local", "--format", "{{.Names}}").stdout
    assert not left, "a stopped local cloud leaves containers behind"
