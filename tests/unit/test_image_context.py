"""What the image is built from: the package, locked packages, and nothing that would change its hash for no reason."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ecr_assets as ecr_assets

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "training_image"
BIN = Path(sys.executable).parent
VARIANTS = ("cpu", "gpu")


@pytest.fixture
def context(tmp_path):
    folder = tmp_path / "training_image"
    shutil.copytree(IMAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def staged(context, tmp_path, name):
    """The context as the CDK stages it, and its hash."""
    app = cdk.App(outdir=str(tmp_path / name))
    asset = ecr_assets.DockerImageAsset(cdk.Stack(app, "Stack"), "Image", directory=str(context))
    return Path(app.outdir, f"asset.{asset.asset_hash}"), asset.asset_hash


def test_only_the_code_its_locks_and_the_dockerfile_travel_and_count_in_the_hash(context, tmp_path):
    folder, before = staged(context, tmp_path, "clean")
    code = {path.relative_to(IMAGE).as_posix() for path in IMAGE.rglob("*.py")}
    expected = code | {f"requirements-{name}.lock" for name in VARIANTS}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {"Dockerfile", ".dockerignore"} == expected
    litter = ("__pycache__/train.cpython-311.pyc", "notes.md", "train/notes.md", "adapter.safetensors", ".env")
    for name in litter:
        (context / name).parent.mkdir(exist_ok=True)
        (context / name).write_text("x")
    (context / "requirements.txt").write_text("# what is installed on a laptop is in the lock files too\n")
    assert staged(context, tmp_path, "littered")[1] == before


@pytest.mark.parametrize("name", ["train/sft.py", "Dockerfile", "requirements-gpu.lock"])
def test_what_the_image_is_made_of_changes_the_hash(context, tmp_path, name):
    _, before = staged(context, tmp_path, "before")
    with (context / name).open("a") as file:
        file.write("# changed\n")
    assert staged(context, tmp_path, "after")[1] != before


def instructions():
    text = re.sub(r"\\\n", " ", (IMAGE / "Dockerfile").read_text())
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_supervisor_is_pid_1_and_not_root():
    words = instructions()
    assert json.loads(words[-1][1]) == ["python", "-m", "training_image.supervisor"], "exec form, so no shell between"
    assert words[-1][0] == "ENTRYPOINT"
    assert [value for name, value in words if name == "USER"] == ["1000"]


def test_the_code_comes_after_everything_that_takes_long():
    words = instructions()
    code = next(index for index, word in enumerate(words) if word == ["COPY", ". training_image/"])
    assert {name for name, _ in words[code + 1 :]} <= {"USER", "ENTRYPOINT"}
    base = [value for name, value in words if name == "FROM"]
    assert base == ["${BASE_IMAGE} AS packages", "${BASE_IMAGE}"], "slim; the CUDA libraries come with the wheels"


def test_hadolint_has_nothing_to_say():
    result = subprocess.run([str(BIN / "hadolint"), str(IMAGE / "Dockerfile")], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def locked(variant):
    """Version by package, and how many hashes each has."""
    found, hashes, name = {}, {}, ""
    for line in (IMAGE / f"requirements-{variant}.lock").read_text().splitlines():
        if match := re.match(r"([\w.-]+)==(\S+)", line):
            name = match[1].lower().replace("_", "-")
            found[name], hashes[name] = match[2], 0
        elif "--hash=sha256:" in line:
            hashes[name] += 1
    return found, hashes


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_lock_holds_every_pin_of_the_one_source_with_hashes(variant):
    """Fails after a change of requirements.txt until scripts/lock_image.sh has run."""
    found, hashes = locked(variant)
    pins = re.findall(r"^([\w.-]+)==(\S+)", (IMAGE / "requirements.txt").read_text(), re.MULTILINE)
    wanted = {name.lower().replace("_", "-"): version for name, version in pins}
    assert {name: found.get(name, "missing").removesuffix("+cpu") for name in wanted} == wanted
    assert all(hashes.values())


def test_only_the_gpu_variant_has_cuda_and_nothing_else_differs():
    gpu, cpu = locked("gpu")[0], locked("cpu")[0]
    only = {name for name in gpu if name not in cpu}
    assert {"triton", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= only
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in only)
    assert {name for name, version in cpu.items() if gpu.get(name) != version} == {"torch"}
    assert cpu["torch"] == gpu["torch"] + "+cpu"
