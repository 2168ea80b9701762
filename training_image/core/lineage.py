"""Runs that begin with what another run has left: what may be continued, and what an adapter may be trained on from.

Standard library only: the run controller asks before anything costs money, the instance when it prepares, and the
operator's command before it deploys.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from training_image.core.contract import RunKeys
from training_image.core.records import Outcome, Run, read_run

FROZEN = ("settings", "settings_sha256", "data_uri", "image", "training_command")
"""What a run takes over from the one that it continues: with anything else its checkpoints would not go on exactly."""
_SHOWN = 5
_PLAIN_LORA = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
"""What a plain LoRA adapter's config says, which ``lora.*`` of the settings describes in full; any may be absent."""


def run_ids(store: Any) -> list[str]:
    """All runs that have left something in the outputs bucket. ``store`` is ``training_image.core.store.Store``."""
    return [prefix.split("/")[1] for prefix in store.folders("runs/")]


def cannot_continue(run_id: str, run: Run | None, outcome: Outcome | None, known: Sequence[str]) -> str | None:
    """Why the run cannot be continued, as a sentence with what to do; None: it can.

    Args:
        known: ids of the runs that there are.
    """
    if run is None:
        near = ", ".join(difflib.get_close_matches(run_id, known, n=_SHOWN, cutoff=0.0))
        return f"There is no run {run_id} in this lab. " + (f"There are: {near}." if near else "It has none yet.")
    if outcome is None:
        return f"Run {run_id} has not ended: there is nothing to continue while it is active. Stop it first: lab stop"
    if outcome.succeeded:
        return (
            f"Run {run_id} succeeded: there is nothing left to continue. To train on from its result, start a run with "
            f"LLM_MODEL__ADAPTER={run_id}."
        )
    return None


def differing(said: Mapping[str, Any], frozen: Mapping[str, Any]) -> list[str]:
    """The settings given explicitly that differ from those of the run to be continued: each as ``NAME=value (the run
    has value)``. Both are nested by section."""
    return [
        f"LLM_{section.upper()}__{name.upper()}={value} (the run has {frozen.get(section, {}).get(name)})"
        for section, values in said.items()
        for name, value in values.items()
        if frozen.get(section, {}).get(name) != value
    ]


def keeps_its_settings(run_id: str, other: Sequence[str]) -> str:
    """The sentence for what ``differing`` found: nothing that was said is silently left aside."""
    return (
        f"Run {run_id} goes on with the settings that it began with, so these would not hold: {', '.join(other)}. "
        "Unset them, or start a run of its own with them."
    )


def ancestors(store: Any, resume: str | None) -> Iterator[RunKeys]:
    """The runs that a run continues, the nearest first. A run names only older ones, so this ends.

    Raises:
        UnreadableError: one of them left a ``run.json`` that this version does not understand.
    """
    while resume:
        keys = RunKeys(resume)
        yield keys
        older = read_run(store, keys)
        resume = older.resume if older else None


def inherit(store: Any, keys: RunKeys, older: Iterable[RunKeys]) -> None:
    """Take over what the continued runs, nearest first, have settled at their beginning: the base model's commit, and
    the evaluation before training, so that before and after are those of the whole training."""
    for each in older:
        settled = {
            keys.base_model: each.base_model,
            keys.metrics + "eval_before.json": each.metrics + "eval_before.json",
        }
        for own, inherited in settled.items():
            value = store.read_json(inherited)
            if value is not None:
                store.create_json(own, value)


def adapter_uri(adapter: str, outputs_bucket: str) -> str:
    """Where the adapter of ``model.adapter`` lies: the setting is a run's id or the address itself."""
    return adapter if adapter.startswith("s3://") else f"s3://{outputs_bucket}/{RunKeys(adapter).adapter}"


def cannot_train_on(adapter: str, config: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Why a run with ``settings`` cannot start from an adapter whose ``adapter_config.json`` is ``config``, as a
    sentence with what to do; None: it can. Which modules it adapts shows only beside the model."""
    base, wanted = str(config.get("base_model_name_or_path")), str(settings["model"]["base_model"])
    if base.rstrip("/") != wanted.rstrip("/"):
        return (
            f"LLM_MODEL__ADAPTER={adapter} was trained on base model {base}, and this run has {wanted}: set "
            f"LLM_MODEL__BASE_MODEL={base}"
        )
    strange = [f"{name}={config[name]}" for name, usual in _PLAIN_LORA.items() if (config.get(name) or usual) != usual]
    if strange:
        return (
            f"LLM_MODEL__ADAPTER={adapter} is no plain LoRA adapter ({', '.join(strange)}), so this lab cannot train "
            "it on."
        )
    other = [name for name in ("r", "lora_alpha") if config.get(name) != settings["lora"][name]]
    if other:
        return f"LLM_MODEL__ADAPTER={adapter} was trained with another size than this run's: set " + " ".join(
            f"LLM_LORA__{name.upper()}={config.get(name)}" for name in other
        )
    return None
