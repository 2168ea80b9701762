"""The end of an attempt: is the result there, what is said about it, and what is made durable."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from training_image.core.contract import RunKeys, TrainerExit, WorkDir
from training_image.core.records import Outcome
from training_image.core.store import Store
from training_image.storage import checkpoints
from training_image.supervisor.decisions import Stop
from training_image.supervisor.reporter import metric_files

log = logging.getLogger(__name__)
_OUTCOME_TRIES = 4
_OUTCOME_PAUSE_SECONDS = 5.0
_FINAL_FACTS = ("step", "train_examples", "eval_examples", "adapter_sha256")


@dataclass(frozen=True)
class Gone:
    """No trainer runs (any more). ``exit_code`` as in ``decisions.verdict``; ``detail`` if there never was one."""

    exit_code: int | None
    detail: str = ""


def final_marker(work: WorkDir) -> dict[str, Any] | None:
    """The trainer's final marker, if the adapter beside it is the one it names."""
    try:
        final: dict[str, Any] = json.loads(work.final.read_text())
        if checkpoints.file_sha256(work.adapter / "adapter_model.safetensors") == final["adapter_sha256"]:
            return final
        log.error("The adapter on disk is not the one that the final marker names")
    except FileNotFoundError as error:
        log.info("No result: %s does not exist", error.filename)
    except (ValueError, KeyError, TypeError) as error:
        log.error("The final marker is unreadable: %r", error)
    return None


def final_facts(final: dict[str, Any]) -> dict[str, Any]:
    """What a successful outcome tells besides the common fields."""
    return {name: final.get(name) for name in _FINAL_FACTS}


def gone_sentence(gone: Gone, work: WorkDir, attempt: int, max_attempts: int, last_lines: list[str]) -> str:
    """Why the trainer ended without a result and without having been asked to stop."""
    if gone.exit_code in (TrainerExit.BAD_INPUT, TrainerExit.OUT_OF_MEMORY):
        left = work.error.read_text().strip() if work.error.is_file() else ""
        return gone.detail or left or f"The trainer ended with {TrainerExit(gone.exit_code).name}; its log says more"
    if gone.exit_code == TrainerExit.DONE:
        what = gone.detail or "The trainer exited with 0 and left no valid result"
    else:
        what = gone.detail or f"The trainer crashed (exit code {gone.exit_code})"
    return f"{what} in attempt {attempt} of {max_attempts}. Last lines: {' | '.join(last_lines)}"


def stop_sentence(stop: Stop, durable_step: int | None) -> str:
    """Why a stopped attempt ended, and what is left of it."""
    kept = "no checkpoint was finished" if durable_step is None else f"the checkpoint of step {durable_step} is durable"
    return f"{stop.detail}; {kept}"


def upload_results(store: Store, keys: RunKeys, work: WorkDir) -> None:
    """Upload adapter and metrics, and see that they lie there.

    Raises:
        OSError: a file is absent from the listing or has another size.
    """
    paths = [path for path in work.adapter.rglob("*") if path.is_file()]
    files = {keys.adapter + path.relative_to(work.adapter).as_posix(): path for path in paths}
    files |= {keys.metrics + path.name: path for path in metric_files(work)}
    store.upload(files.items())
    stored = {item.key: item.size for prefix in (keys.adapter, keys.metrics) for item in store.list(prefix)}
    for key, path in files.items():
        if stored.get(key) != path.stat().st_size:
            raise OSError(f"s3://{store.bucket}/{key} was uploaded but is not there in full")


def write_outcome(store: Store, keys: RunKeys, outcome: Outcome) -> None:
    """Make the end of the run durable, once: who comes second changes nothing.

    Raises:
        Exception: S3 did not take it, after several tries.
    """
    for left in reversed(range(_OUTCOME_TRIES)):
        try:
            if not store.create_json(keys.outcome, outcome.to_json()):
                log.warning("The run was ended by somebody else before")
            return
        except Exception as error:
            log.warning("The outcome could not be written: %s", error)
            if not left:
                raise
            time.sleep(_OUTCOME_PAUSE_SECONDS)
