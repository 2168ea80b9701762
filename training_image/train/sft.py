"""Supervised fine-tuning of a LoRA adapter, from data to adapter, in one place.

It reads and writes only files below a ``contract.WorkDir``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import enable_full_determinism
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from training_image.config.run_settings import RunSettings
from training_image.core.contract import Phase, WorkDir
from training_image.core.records import Run
from training_image.data.conversation import Conversation
from training_image.data.split import load
from training_image.storage.checkpoints import file_sha256
from training_image.train.callbacks import AlreadyTrainedError, Progress, RunCallback, write_json
from training_image.train.evaluation import StopRequested, evaluate
from training_image.train.masking import IGNORED, to_dataset
from training_image.train.model import add_lora, commit, load_base, save_adapter, source, supervised_nll
from training_image.train.model_card import model_card

_log = logging.getLogger(__name__)


class LoraTrainer(SFTTrainer):
    """TRL's trainer, with a loss that is fast on CPU, and without a card in each checkpoint."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Off the GPU, TRL projects every position onto the vocabulary, with entropy and accuracy at each step."""
        if self.args.device.type == "cuda" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tokens = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return supervised_nll(model, inputs["input_ids"], inputs["labels"]) / tokens

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run's own card is written once, with the adapter."""


def train(work: WorkDir) -> None:
    """The run. The final marker is the last thing written.

    Raises:
        StopRequested: the supervisor asked for it; if a step was trained, its checkpoint is on disk.
        DataError, ModelError, SettingsError: what was given cannot be trained.
    """
    run = Run.parse(work.run.read_bytes())
    settings = RunSettings.load(run.settings)
    if settings.training.full_determinism:
        enable_full_determinism(settings.training.seed)  # before the GPU is first used: cuBLAS looks only once
    progress = Progress(work.status)
    progress.update(phase=Phase.LOADING)
    data = load(work.data, settings.data)
    _log.info("Data: %d training and %d held-out examples.", len(data.train), len(data.held_out))
    base = source(settings.model, work.model)
    sha = commit(settings.model, work.base_model)
    model, tokenizer = load_base(base, settings, sha=sha, token_secret=run.secrets.get("hugging_face"))
    dataset = to_dataset(tokenizer, data.train, settings.training.max_length)
    model = add_lora(model, settings, work.initial_adapter if settings.model.adapter else None)
    before = _evaluate("before", work, progress, model, tokenizer, data.held_out, settings)

    _stop_if_asked(work)
    trainer = LoraTrainer(
        model=model,
        args=sft_config(settings, work.checkpoints, model.dtype),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[RunCallback(work, progress, settings.training.save_steps)],
    )
    trainer.remove_callback(PrinterCallback)
    began = time.monotonic()
    with contextlib.suppress(AlreadyTrainedError):
        trainer.train(resume_from_checkpoint=str(work.resume) if work.resume.is_dir() else None)
    train_seconds = time.monotonic() - began
    _stop_if_asked(work)

    after = _evaluate("after", work, progress, model, tokenizer, data.held_out, settings)
    progress.update(phase=Phase.SAVING)
    save_adapter(model, tokenizer, work.adapter, settings.model.base_model)
    state = trainer.state
    card = model_card(
        run,
        settings.model_dump(mode="json"),
        sha=sha,
        train_examples=len(data.train),
        steps=state.global_step,
        before=before,
        after=after,
    )
    (work.adapter / "README.md").write_text(card)
    write_json(
        work.final,
        {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "train_examples": len(data.train),
            "eval_examples": len(data.held_out),
            "train_seconds": round(train_seconds, 1),
            "adapter_sha256": file_sha256(work.adapter / "adapter_model.safetensors"),
            "eval_before": before,
            "eval_after": after,
        },
    )


def sft_config(settings: RunSettings, output_dir: Path, dtype: torch.dtype) -> SFTConfig:
    """TRL's arguments for ``settings``. Checkpoints, logs and evaluation are ours, so TRL's own are off."""
    training = settings.training
    checkpointing = training.gradient_checkpointing
    same_name = (
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "logging_steps",
        "seed",
        "full_determinism",
        "use_cpu",
    )
    return SFTConfig(
        output_dir=str(output_dir),
        **{name: getattr(training, name) for name in same_name},
        gradient_checkpointing=not training.use_cpu if checkpointing is None else checkpointing,
        bf16=dtype == torch.bfloat16 and not training.use_cpu,
        fp16=dtype == torch.float16 and not training.use_cpu,
        dataset_kwargs={"skip_prepare_dataset": True},
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=not training.use_cpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _evaluate(
    when: Literal["before", "after"],
    work: WorkDir,
    progress: Progress,
    model: Any,
    tokenizer: Any,
    held_out: list[Conversation],
    settings: RunSettings,
) -> dict[str, Any]:
    """Evaluate into ``metrics/eval_<when>.json``; a result that is there already, from an earlier attempt, stands."""
    path = work.metrics / f"eval_{when}.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    progress.update(phase=Phase.EVALUATING_BEFORE if when == "before" else Phase.EVALUATING_AFTER)
    result = evaluate(model, tokenizer, held_out, settings, work.stop.exists).as_json()
    write_json(path, result)
    _log.info("Held-out %s: loss %.4f, exact match %.1f %%", when, result["loss"], 100 * result["exact_match"])
    return result


def _stop_if_asked(work: WorkDir) -> None:
    if work.stop.exists():
        raise StopRequested
