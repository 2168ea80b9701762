"""The image as Docker builds it, and the life of a run in its containers: really built, pushed, pulled and run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.stage import LONG, SHORT, Stage
from training_image.core import contract

from .conftest import Docker

pytestmark = pytest.mark.docker
IMAGE = Path(__file__).parents[2] / "training_image"
LABEL = "label=llm-tuning-lab.local"
MEGABYTE = 1_000_000


def training(stage: Stage, run_id: str, attempt: int) -> dict:
    """Wait until the attempt trains and a checkpoint is durable."""

    def beat() -> dict | None:
        heartbeat = stage.heartbeat(run_id)
        ready = heartbeat.get("phase") == "training" and heartbeat.get("attempt") == attempt
        return heartbeat if ready and heartbeat.get("durable_step") else None

    return stage.wait(f"attempt {attempt} trains", beat, run_id, seconds=400)


def containers(docker: Docker) -> list[str]:
    return docker("ps", "--all", "--filter", LABEL, "--format", "{{.Names}}").stdout.split()


def image_id(docker: Docker, run: dict) -> str:
    """Of the image that the CLI built, by the digest that it has in the registry."""
    wanted = run["image"].split("@")[1]
    lines = docker("images", "--digests", "--no-trunc", "--format", "{{.Digest}} {{.ID}}").stdout.splitlines()
    return next(line.split()[1] for line in lines if line.startswith(wanted))


def test_a_run_is_disturbed_resumes_and_finishes_in_real_containers(stage: Stage, docker: Docker, tmp_path: Path):
    long = {**LONG, "LLM_TRAINING__SAVE_STEPS": "20"}
    outputs = stage.deploy(**long)
    run_id, group = outputs["RunId"], outputs["AutoScalingGroupName"]
    training(stage, run_id, 1)
    (box,) = stage.instances()
    assert containers(docker) == [f"{box}-training"]
    (container,) = json.loads(docker("inspect", f"{box}-training").stdout)
    assert container["HostConfig"]["ReadonlyRootfs"]
    assert container["Config"]["User"] == "1000"
    assert container["Path"] == "python", "the supervisor is PID 1 itself"

    # A scale-in reaches the container as `docker stop`: SIGTERM, a verified checkpoint, no outcome.
    stage.autoscaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=0)
    stage.wait("the box is gone", lambda: not stage.instances(), run_id)
    saved = stage.verified_step(run_id, tmp_path / "after-scale-in")
    assert saved, stage.log(run_id)
    assert stage.outcome(run_id) is None
    assert containers(docker) == []

    # The next instance goes on from there; when its plug is pulled, its container goes with it.
    stage.autoscaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=1)
    assert training(stage, run_id, 2)["resumed_from_step"] == saved
    (second,) = stage.instances()
    stage.cloud.fault("kill", instance=second)
    stage.wait("its container is gone", lambda: f"{second}-training" not in containers(docker), run_id)
    assert (training(stage, run_id, 3)["resumed_from_step"] or 0) >= saved
    assert stage.cdk("destroy", "TrainingStack", "--force", **long).returncode == 0
    outcome = stage.outcome(run_id)
    assert outcome is not None
    assert (outcome["reason"], outcome["by"]) == ("stopped", "instance"), stage.log(run_id)
    assert containers(docker) == []


def test_a_run_finishes_and_ends_its_instance(stage: Stage, docker: Docker):
    run_id = stage.deploy(**SHORT)["RunId"]
    outcome = stage.wait("an outcome", lambda: stage.outcome(run_id), run_id, seconds=400)
    stage.wait("the box is gone", lambda: not stage.instances(), run_id)
    assert (outcome["reason"], outcome["by"], outcome["attempts"]) == ("succeeded", "instance", 1), stage.log(run_id)
    keys = contract.RunKeys(run_id)
    assert keys.adapter + "adapter_model.safetensors" in stage.objects(keys.prefix)
    assert containers(docker) == []
    run = stage.read(keys.run)
    assert run is not None

    # Tags are immutable: what has been pushed under a tag stays.
    name, digest = run["image"].split("/", 1)[1].split("@")
    (image,) = stage.cloud.client("ecr").describe_images(repositoryName=name)["imageDetails"]
    assert image["imageDigest"] == digest
    (tag,) = [tag for tag in image["imageTags"] if not tag.startswith(contract.RUN_TAG_PREFIX)]
    target = f"{stage.cloud.endpoint.removeprefix('http://')}/{name}:{tag}"
    original = image_id(docker, run)
    container = docker("create", original).stdout.strip()
    other = docker("commit", "--change", "LABEL other=yes", container, target).stdout.strip()
    refused = docker("push", target)
    docker("rm", "--force", container)
    docker("tag", original, target)
    docker("rmi", other)
    assert refused.returncode != 0
    assert "immutable" in (refused.stdout + refused.stderr).lower()


def test_the_image_holds_what_a_run_needs_and_no_more(stage: Stage, docker: Docker):
    image = image_id(docker, _last_run(stage))
    (found,) = json.loads(docker("inspect", image).stdout)
    assert found["Config"]["Entrypoint"] == ["python", "-m", "training_image.supervisor"]
    assert found["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    program = (
        "import importlib.metadata as m, importlib.util as u, os, shutil, sys, torch, trl;"
        "print(os.getuid(), u.find_spec('pip'), shutil.which('gcc'), torch.__version__);"
        "print('\\n'.join(sorted(f'{d.name}=={d.version}' for d in m.distributions())))"
    )
    options = ["--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--entrypoint", "python"]  # noqa: S108
    result = docker("run", *options, image, "-c", program)
    assert result.returncode == 0, result.stderr
    first, *installed = result.stdout.splitlines()
    assert first.split()[:3] == ["1000", "None", "None"]
    lock = (IMAGE / "requirements-cpu.lock").read_text().splitlines()
    locked = {line.split()[0].lower() for line in lock if "==" in line}
    assert {name.lower().replace("_", "-") for name in installed} == {name.replace("_", "-") for name in locked}


def test_a_change_of_code_re_pulls_kilobytes(stage: Stage, docker: Docker, tmp_path: Path):
    before = image_id(docker, _last_run(stage))
    context = tmp_path / "training_image"
    shutil.copytree(IMAGE, context, ignore=shutil.ignore_patterns("__pycache__"))
    with (context / "train" / "sft.py").open("a") as file:
        file.write("# changed\n")
    try:
        built = build(stage, context, "lab-changed")
        assert built.returncode == 0, built.stderr
        known = layers(docker, before)
        changed = [layer for layer in layers(docker, "lab-changed") if layer not in known]
        assert len(changed) == 1, "only the code's layer is another one"
        history = docker(
            "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", "lab-changed"
        )
        copied = [line for line in history.stdout.splitlines() if "COPY" in line and "training_image/" in line]
        (size,) = [int(line.split()[0]) for line in copied]
        assert size < MEGABYTE
    finally:
        docker("rmi", "lab-changed")


def test_two_builds_of_one_lock_file_give_the_same_files(stage: Stage, docker: Docker):
    """The last one here: a build without the cache leaves another cache to those that follow."""
    first = image_id(docker, _last_run(stage))
    try:
        built = build(stage, IMAGE, "lab-again", "--no-cache")
        assert built.returncode == 0, built.stderr
        packages = slice(2, 5)  # CUDA, torch, the rest; before them the base and the user, after them the code
        assert layers(docker, "lab-again")[packages] == layers(docker, first)[packages]
    finally:
        docker("rmi", "lab-again")


def build(stage: Stage, context: Path, tag: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The CPU variant, as the CDK CLI has it built."""
    words = ["build", *options, "--build-arg", "VARIANT=cpu", "--tag", tag, "--platform", "linux/amd64", "."]
    environ = stage.cloud.environ()
    return subprocess.run([environ["CDK_DOCKER"], *words], cwd=context, env=environ, capture_output=True, text=True)


def layers(docker: Docker, image: str) -> list[str]:
    """Digests of what the layers hold, from the base up."""
    found: list[str] = json.loads(docker("inspect", image).stdout)[0]["RootFS"]["Layers"]
    return found


def _last_run(stage: Stage) -> dict:
    keys = sorted(key for key in stage.objects("runs/") if key.endswith("/run.json"))
    run = stage.read(keys[-1])
    assert run is not None
    return run
