"""Trust nothing the run said of itself: load the adapter from S3 afresh and ask the held-out questions once more.

Runs in a process of its own (``python -m lab.demo.recheck``), so that nothing of the demo's own process is in play and
its memory is given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.operator import record
from training_image.config.run_settings import RunSettings
from training_image.core.contract import RunKeys
from training_image.core.records import Run
from training_image.core.store import Store
from training_image.data.split import load
from training_image.storage.checkpoints import file_sha256

ADAPTER_FILE = "adapter_model.safetensors"
_RESULT = "recheck.json"


class RecheckError(RuntimeError):
    """The adapter in S3 is not what the run says it is."""


@dataclass(frozen=True)
class Recheck:
    train_examples: int
    eval_examples: int
    loss: float
    exact_match: float
    samples: list[dict[str, str]]
    adapter_sha256: str


def recheck(store: Store, run: Run, folder: Path, environ: dict[str, str]) -> Recheck:
    """Download adapter, base model and data to ``folder``, and evaluate there.

    Raises:
        RecheckError: nothing to evaluate, or the evaluation failed; with its last words.
    """
    if not any(
        path.name == ADAPTER_FILE for path in record.download(store, RunKeys(run.run_id).adapter, folder / "adapter")
    ):
        raise RecheckError(f"There is no {ADAPTER_FILE} in the run's adapter folder in S3.")
    _fetch(store, run.data_uri, folder / "data")
    if run.base_model.startswith("s3://"):
        _fetch(store, run.base_model, folder / "model")
    (folder / "run.json").write_text(json.dumps(run.to_json()))
    shell = {name: value for name, value in environ.items() if not name.startswith("LLM_")}
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        env={**shell, "PYTHONPATH": str(Path(__file__).parents[2]), "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RecheckError(f"The adapter could not be evaluated again:\n{done.stderr[-2000:]}")
    return Recheck(**json.loads((folder / _RESULT).read_text()))


def _fetch(store: Store, uri: str, folder: Path) -> None:
    bucket, prefix = record.split_uri(uri)
    record.download(store.elsewhere(bucket), prefix, folder)


def _main(folder: Path) -> None:
    from training_image.train.evaluation import evaluate
    from training_image.train.model import load_for_evaluation, source

    settings = RunSettings.load(json.loads((folder / "run.json").read_text())["settings"])
    split = load(folder / "data", settings.data)
    base = source(settings.model, folder / "model")
    model, tokenizer = load_for_evaluation(base, folder / "adapter", settings)
    result = evaluate(model, tokenizer, split.held_out, settings)
    found = {
        "train_examples": len(split.train),
        "eval_examples": result.examples,
        "loss": result.loss,
        "exact_match": result.exact_match,
        "samples": result.as_json()["samples"],
        "adapter_sha256": file_sha256(folder / "adapter" / ADAPTER_FILE),
    }
    (folder / _RESULT).write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    _main(Path(sys.argv[1]))
