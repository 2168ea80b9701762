"""What an instance fetches before it trains: data, base model, the figures of an earlier attempt, and a checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from training_image.core import lineage
from training_image.core.contract import RunKeys, WorkDir
from training_image.core.errors import UserError
from training_image.core.records import Run
from training_image.core.store import Store, error_code, remove_others
from training_image.storage import checkpoints
from training_image.storage.hub import UnusableModelError
from training_image.storage.hub_cache import HubModel

log = logging.getLogger(__name__)
_NOT_READABLE = {"NoSuchBucket", "AccessDenied", "403"}


class BadInput(UserError):
    """What the operator gave cannot be trained on; the message is a sentence that says what to do."""


def clear(work: WorkDir) -> None:
    """Leave nothing of an earlier attempt on this instance (it may have been rebooted).

    Data and base model stay: user data may have fetched them already, and ``prepare`` makes them what S3 has now.
    """
    work.root.mkdir(parents=True, exist_ok=True)
    for directory in (work.initial_adapter, work.checkpoints, work.resume, work.adapter, work.metrics):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (work.status, work.stop, work.save, work.final, work.error, work.base_model):
        file.unlink(missing_ok=True)


def prepare(store: Store, keys: RunKeys, run: Run, work: WorkDir) -> checkpoints.Resume:
    """Fill the work directory; returns what was found to resume from.

    Raises:
        UserError: too few GPUs, no data or no base model where ``run.json`` says, an unreadable run to continue.
    """
    check_gpus(run.gpus, count_gpus())
    older = list(lineage.ancestors(store, run.resume))
    lineage.inherit(store, keys, older)
    if adapter := run.adapter:
        download_adapter(store, adapter, run.settings, work.initial_adapter)
    download_data(store, run.data_uri, work.data)
    if run.base_model.startswith("s3://"):
        download_model(store, run.base_model, work.model)
    else:
        download_hub_model(store, keys, run, work)
    restore_evaluation(store, keys, work)
    return find_checkpoint(store, [keys, *older], run.settings_sha256, work.resume)


def find_checkpoint(
    store: Store, family: Sequence[RunKeys], settings_sha256: str, destination: Path
) -> checkpoints.Resume:
    """The newest checkpoint that verifies: the run's own, or else that of the nearest run which it continues."""
    found = checkpoints.fetch_newest(store, family[0], settings_sha256, destination)
    for older in family[1:]:
        if found.manifest is None:
            inherited = checkpoints.fetch_newest(store, older, settings_sha256, destination)
            found = checkpoints.Resume(inherited.manifest, found.refused)
    return found


def count_gpus() -> int:
    """GPUs that the driver lists; where its tool is absent, those that have a device file."""
    if shutil.which("nvidia-smi") is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def check_gpus(expected: int, found: int) -> None:
    """Never train at GPU price on an instance that lost its GPU."""
    if found < expected:
        raise BadInput(
            f"The instance has {found} GPU(s) where its type has {expected}: check the machine image's driver and the "
            "container's --gpus option, or set LLM_TRAINING__USE_CPU=true to train without a GPU on purpose."
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


def download_adapter(store: Store, adapter: str, settings: dict[str, Any], destination: Path) -> None:
    """The adapter to train on from, once its own words say that it fits."""
    uri = lineage.adapter_uri(adapter, store.bucket)
    _download(store, uri, destination, "", "adapter")
    config = destination / "adapter_config.json"
    if not (config.is_file() and (destination / "adapter_model.safetensors").is_file()):
        raise BadInput(f"LLM_MODEL__ADAPTER={adapter}: no adapter_config.json and adapter_model.safetensors at {uri}.")
    if problem := lineage.cannot_train_on(adapter, json.loads(config.read_text()), settings):
        raise BadInput(problem)


def download_hub_model(store: Store, keys: RunKeys, run: Run, work: WorkDir) -> None:
    """The base model from the Hub, or the lab's mirror of it, into Hugging Face's cache; then, beside the training,
    from there into the mirror. The first attempt's commit is that of all later ones, wherever a branch has moved."""
    from huggingface_hub.constants import HF_HUB_CACHE

    mirror = store.elsewhere(run.training_bucket) if run.training_bucket else None
    try:
        model = HubModel(run.base_model, mirror, Path(HF_HUB_CACHE), run.secrets.get("hugging_face"))
        recorded = store.read_json(keys.base_model)
        listing = model.find(recorded["sha"] if recorded else run.revision)
        record = {"base_model": run.base_model, "revision": run.revision, "sha": listing.sha}
        if not recorded and not store.create_json(keys.base_model, record):
            recorded = record = store.read_json(keys.base_model)  # another instance came first
            listing = model.find(record["sha"])
        model.fetch(listing, run.revision)
    except UnusableModelError as error:
        raise BadInput(str(error)) from error
    work.base_model.write_text(json.dumps(record))
    named = None if recorded else run.revision
    threading.Thread(target=model.mirror, args=(listing, named, work.stop.exists), name="mirror", daemon=True).start()


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
            f"The instance cannot list {uri} ({error_code(error)}): see that the bucket exists and the run may read it."
        ) from error
    files = {item.key: destination / item.key.removeprefix(prefix) for item in found}
    if any(".." in path.parts for path in files.values()):
        raise BadInput(f"A key under {uri} contains '..': rename it.")
    remove_others(destination, set(files.values()))
    source.sync({item: files[item.key] for item in found})
    log.info("%s: %d file(s), %.1f MB from %s", what, len(found), sum(item.size for item in found) / 1e6, uri)
    return len(found)


def restore_evaluation(store: Store, keys: RunKeys, work: WorkDir) -> None:
    """Bring back an earlier attempt's evaluation before training, which would only come out the same again."""
    work.metrics.mkdir(parents=True, exist_ok=True)
    if before := store.read(keys.metrics + "eval_before.json"):
        (work.metrics / "eval_before.json").write_bytes(before)
