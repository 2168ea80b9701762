"""What a box fetches before it trains: data, base model, the figures of an earlier attempt, and a checkpoint."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from pydantic import AwareDatetime, BaseModel, ConfigDict

from training_image import checkpoints
from training_image.contract import RunKeys, WorkDir
from training_image.store import Store, error_code

log = logging.getLogger(__name__)
_NOT_READABLE = {"NoSuchBucket", "AccessDenied", "403"}


class BadInput(Exception):
    """What the operator gave cannot be trained on; the message is a sentence that says what to do."""


class RunFile(BaseModel):
    """The part of ``run.json`` that the supervisor acts on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    deadline: AwareDatetime
    max_attempts: int
    gpus: int
    data_uri: str
    settings: dict[str, Any]
    settings_sha256: str
    training_command: list[str] | None = None
    stack_name: str | None = None
    log_group: str | None = None
    """For CloudWatch; absent from a run whose stack has none."""

    @property
    def base_model(self) -> str:
        return str(self.settings["model"]["base_model"])


def clear(work: WorkDir) -> None:
    """Leave nothing of an earlier attempt on this box (it may have been rebooted)."""
    work.root.mkdir(parents=True, exist_ok=True)
    for directory in (work.data, work.model, work.checkpoints, work.resume, work.adapter, work.metrics):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (work.status, work.stop, work.save, work.final, work.error):
        file.unlink(missing_ok=True)


def prepare(store: Store, keys: RunKeys, run: RunFile, work: WorkDir) -> checkpoints.Resume:
    """Fill the work directory; returns what was found to resume from.

    Raises:
        BadInput: too few GPUs, no data, or no base model where ``run.json`` says.
    """
    check_gpus(run.gpus, count_gpus())
    download_data(store, run.data_uri, work.data)
    if run.base_model.startswith("s3://"):
        download_model(store, run.base_model, work.model)
    resume = checkpoints.fetch_newest(store, keys, run.settings_sha256, work.resume)
    restore_evaluation(store, keys, work)
    return resume


def count_gpus() -> int:
    """GPUs that the driver lists; where its tool is absent, those that have a device file."""
    if shutil.which("nvidia-smi") is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def check_gpus(expected: int, found: int) -> None:
    """Never train at GPU price on a box that lost its GPU."""
    if found < expected:
        raise BadInput(
            f"The box has {found} GPU(s) where its instance type has {expected}: check the machine image's driver and "
            "the container's --gpus option, or set LLM_TRAINING__USE_CPU=true to train without a GPU on purpose."
        )


def download_data(store: Store, uri: str, destination: Path) -> None:
    """All ``*.jsonl`` under ``uri``, with their relative paths."""
    if _download(store, uri, destination, ".jsonl", "data") == 0:
        raise BadInput(f"There is no training data (*.jsonl) at {uri}. Put it there: aws s3 sync ./data {uri}")


def download_model(store: Store, uri: str, destination: Path) -> None:
    """The base model's files under ``uri``."""
    if _download(store, uri, destination, "", "base model") == 0:
        raise BadInput(
            f"There is no base model at {uri}. Put its config, tokenizer and safetensors there: "
            f"aws s3 sync ./model {uri}"
        )


def _download(store: Store, uri: str, destination: Path, suffix: str, what: str) -> int:
    """Download what lies under ``uri`` and ends in ``suffix``; the number of files."""
    address = urlsplit(uri)
    if address.scheme != "s3":
        raise BadInput(f"The {what} is at {uri}, which is no S3 address: it must read s3://bucket/prefix/.")
    prefix = address.path.strip("/") + "/" if address.path.strip("/") else ""
    source = store.elsewhere(address.netloc)
    try:
        found = [item for item in source.list(prefix) if item.key.endswith(suffix) and not item.key.endswith("/")]
    except ClientError as error:
        if error_code(error) not in _NOT_READABLE:
            raise
        raise BadInput(
            f"The box cannot list {uri} ({error_code(error)}): check that the bucket exists and the run may read it."
        ) from error
    files = {item.key: destination / item.key.removeprefix(prefix) for item in found}
    if any(".." in path.parts for path in files.values()):
        raise BadInput(f"A key under {uri} contains '..': rename it.")
    source.download(files)
    log.info("%s: %d file(s), %.1f MB from %s", what, len(found), sum(item.size for item in found) / 1e6, uri)
    return len(found)


def restore_evaluation(store: Store, keys: RunKeys, work: WorkDir) -> None:
    """Bring back an earlier attempt's evaluation before training, which would only come out the same again."""
    work.metrics.mkdir(parents=True, exist_ok=True)
    if before := store.read(keys.metrics + "eval_before.json"):
        (work.metrics / "eval_before.json").write_bytes(before)
