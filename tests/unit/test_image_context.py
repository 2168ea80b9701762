"""The image holds the package and its requirements, and starts the supervisor."""

import json
import re
import shutil
from pathlib import Path

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ecr_assets as ecr_assets

IMAGE = Path(__file__).parents[2] / "training_image"


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


def test_files_that_do_not_belong_neither_travel_nor_change_the_hash(context, tmp_path):
    folder, before = staged(context, tmp_path, "clean")
    assert {path.name for path in folder.rglob("*") if path.suffix == ".py"} == {
        path.name for path in IMAGE.glob("*.py")
    }
    (context / "__pycache__").mkdir()
    for name in ("__pycache__/train.cpython-311.pyc", "notes.md", "checkpoint.safetensors", ".env"):
        (context / name).write_text("x")
    folder, after = staged(context, tmp_path, "littered")
    assert after == before
    assert {path.suffix or path.name for path in folder.rglob("*") if path.is_file()} <= {
        ".py",
        ".txt",
        "Dockerfile",
        ".dockerignore",
    }


def test_the_dockerfile_uses_plain_instructions_and_starts_the_supervisor():
    text = re.sub(r"\\\n", " ", (IMAGE / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    names = {name for name, _ in lines}
    assert names <= {"FROM", "ARG", "LABEL", "ENV", "WORKDIR", "RUN", "COPY", "ENTRYPOINT", "USER"}
    assert json.loads(lines[-1][1]) == ["python", "-m", "training_image.supervisor"]
