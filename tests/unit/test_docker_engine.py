"""What the docker engine's wrapper changes in a command line, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_cloud import docker_engine
from local_cloud.cloud import LocalCloud, LocalCloudError
from local_cloud.docker_engine import Engine, translate

ECR = "000000000000.dkr.ecr.us-east-1.amazonaws.com"
REGISTRY = "127.0.0.1:4566"
ENGINE = Engine("/usr/bin/docker", "unix:///x.sock", REGISTRY, buildkit=False, gpus=False)
BOX = Path("/state/boxes/i-1")
ADDED = (
    f"--network host --label {docker_engine.LABEL}=/state/boxes/i-1 "
    "-e AWS_ENDPOINT_URL -e AWS_EC2_METADATA_SERVICE_ENDPOINT"
)


@pytest.mark.parametrize(
    ("box", "given", "expected"),
    [
        (None, f"login --password-stdin https://{ECR}", f"login --password-stdin {REGISTRY}"),
        (None, "inspect cdkasset-1", "inspect cdkasset-1"),
        (None, "build --tag cdkasset-1 .", "build --network host --tag cdkasset-1 ."),
        (None, f"tag cdkasset-1 {ECR}/lab:1", f"tag cdkasset-1 {REGISTRY}/lab:1"),
        (BOX, f"pull {ECR}/lab@sha256:1", f"pull {REGISTRY}/lab@sha256:1"),
        (BOX, "stop -t 110 training", "stop -t 110 i-1-training"),
        (None, "stop -t 110 training", "stop -t 110 training"),
        (
            BOX,
            f"run --rm --name training --gpus all -v /w:/w {ECR}/lab@sha256:1 --name kept --gpus kept",
            f"run {ADDED} --rm --name i-1-training -v /w:/w {REGISTRY}/lab@sha256:1 --name kept --gpus kept",
        ),
        (BOX, f"run --name=training --gpus=all {ECR}/lab:1", f"run {ADDED} --name i-1-training {REGISTRY}/lab:1"),
    ],
)  # fmt: skip
def test_what_changes(box: Path | None, given: str, expected: str) -> None:
    assert translate(given.split(), ENGINE, box) == expected.split()


def test_gpus_stay_where_there_is_a_gpu_runtime() -> None:
    engine = Engine("/usr/bin/docker", "unix:///x.sock", REGISTRY, buildkit=True, gpus=True)
    assert "--gpus all" in " ".join(translate(["run", "--gpus", "all", f"{ECR}/lab:1"], engine, BOX))


def test_build_arguments_of_the_machine_are_added_and_not_part_of_the_asset() -> None:
    words = translate(["build", "--build-arg", "VARIANT=cpu", "."], ENGINE, None, "BASE_IMAGE=base PIP_NO_INDEX=1")
    expected = "--network host --build-arg BASE_IMAGE=base --build-arg PIP_NO_INDEX=1 --build-arg VARIANT=cpu"
    assert words == ["build", *expected.split(), "."]


@given(st.sampled_from(["tag", "push", "pull", "images", "ps"]), st.lists(st.text(max_size=9)))
def test_whatever_does_not_name_ecr_is_left_alone(command: str, words: list[str]) -> None:
    assert translate([command, *words], ENGINE, None) == [command, *words]


def test_an_engine_that_was_asked_for_and_does_not_answer_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(LocalCloudError, match=r"ENGINE=docker needs"):
        LocalCloud(tmp_path, "docker").start()
    assert LocalCloud.attach(tmp_path) is None


def test_a_push_needs_the_login_that_ecr_would_demand(tmp_path: Path, capsys) -> None:
    assert docker_engine.main(["push", f"{ECR}/lab:1"], ENGINE, tmp_path, None) == 1
    assert capsys.readouterr().err == "no basic auth credentials\n"


def test_the_real_docker_gets_its_own_settings_and_the_found_engine(tmp_path: Path) -> None:
    """A stand-in for docker prints what it was started with."""
    program = tmp_path / "docker"
    program.write_text('#!/bin/sh\necho "$DOCKER_HOST $DOCKER_CONFIG $DOCKER_BUILDKIT $*"\n')
    program.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    engine = Engine(str(program), "unix:///found.sock", REGISTRY, buildkit=False, gpus=False)
    (state / "docker-engine.json").write_text(json.dumps(asdict(engine)))
    shim = LocalCloud(tmp_path).environ()["CDK_DOCKER"]
    environment = {**LocalCloud(tmp_path).environ(), "LAB_LOCAL_STATE": str(state)}
    result = subprocess.run([shim, "images"], env=environment, capture_output=True, text=True)
    assert result.stdout == f"unix:///found.sock {state}/docker/client 0 images\n", result.stderr
