"""What happens at the end of each training step: progress is written, a checkpoint is saved when due, a stop is obeyed.

Stops are files looked at between steps, never signals: a checkpoint taken inside a step would lie after random numbers
were drawn for it, and the resumed run would differ from the uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_image.core.contract import COMPLETE_MARKER, Phase, WorkDir
from training_image.core.records import Status, now
from training_image.storage.checkpoints import complete_checkpoints

MAX_SECONDS_BETWEEN_SAVES = 300.0
MIN_SECONDS_BETWEEN_SAVES = 30.0
"""Also the time to the first checkpoint, which measures how long one takes."""
MAX_STALL = 0.02
"""Share of the training time that saving may take, as long as the maximum above allows."""
MAX_WAITING = 2
"""Checkpoints on the disk, the one being uploaded included. With so many, only a stop, a request or the last step saves
another."""
_RECENT_STEPS = 20

_log = logging.getLogger(__name__)


def save_is_due(since_save: float, step_seconds: float, save_seconds: float | None, *, uploading: bool) -> bool:
    """Whether to save at the end of this step: within the budget, or else another step would pass the maximum.

    Args:
        since_save: seconds since the last save ended, or since training began.
        step_seconds: what a step takes.
        save_seconds: how long the last save held training up; None before the first.
        uploading: the last one is not durable yet: another would stall training for little, so only the maximum counts.
    """
    within_budget = since_save >= max((save_seconds or 0.0) / MAX_STALL, MIN_SECONDS_BETWEEN_SAVES)
    return (within_budget and not uploading) or since_save + step_seconds > MAX_SECONDS_BETWEEN_SAVES


class AlreadyTrainedError(Exception):
    """The checkpoint is that of the last step: an instance was lost in the evaluation after it. Nothing is left to
    train."""


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


class Progress:
    """``status.json``, kept up to date."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._status = Status(step=0)

    def update(self, **values: Any) -> None:
        """Change the fields of ``Status`` that are given."""
        self._status = replace(self._status, **values, at=now())
        write_json(self._path, self._status.to_json())


class RunCallback(TrainerCallback):
    """Ties the trainer to the supervisor through the files of ``WorkDir``."""

    def __init__(self, work: WorkDir, progress: Progress, save_steps: int | None) -> None:
        self._work = work
        self._progress = progress
        self._save_steps = save_steps
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_STEPS)  # (seconds, tokens) of each step
        self._step_began = self._step_ended = self._saved = 0.0
        self._save_seconds: float | None = None
        self._tokens_seen = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved = time.monotonic()
        self._tokens_seen = int(state.num_input_tokens_seen)
        self._take_up_record()
        self._progress.update(phase=Phase.TRAINING, step=state.global_step, total_steps=state.max_steps)
        if state.global_step >= state.max_steps:
            raise AlreadyTrainedError  # the trainer looks at max_steps after a step only: it would take one too many

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step_ended = time.monotonic()
        step_seconds = self._step_ended - self._step_began
        self._recent.append((step_seconds, int(state.num_input_tokens_seen) - self._tokens_seen))
        self._tokens_seen = int(state.num_input_tokens_seen)
        self._report(state)
        stopping = self._work.stop.exists()
        if stopping:
            _log.info("Stop requested: saving a checkpoint of step %d.", state.global_step)
            control.should_training_stop = True
        # The last step is saved too: a stop during the evaluation that follows must not lose it.
        finished = state.global_step >= state.max_steps
        if stopping or finished or self._work.save.exists() or self._cadence_asks(state.global_step, step_seconds):
            control.should_save = True
            self._work.save.unlink(missing_ok=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end of training
        rate = self._report(state, loss=float(logs["loss"]))
        line = {
            "step": state.global_step,
            "loss": float(logs["loss"]),
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": rate,
            "at": now().isoformat(),
        }
        with self._steps_file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        _log.info("step %d of %d: loss %.4f, %.0f tokens/s", state.global_step, state.max_steps, logs["loss"], rate)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoint = self._work.checkpoints / f"checkpoint-{state.global_step}"
        # With the weights goes the record of how they came about: an instance that is lost has no other chance to
        # keep it.
        if self._steps_file.exists():
            shutil.copy(self._steps_file, checkpoint)
        self._saved = time.monotonic()
        self._save_seconds = self._saved - self._step_ended
        (checkpoint / COMPLETE_MARKER).touch()

    @property
    def _steps_file(self) -> Path:
        return self._work.metrics / "steps.jsonl"

    def _cadence_asks(self, step: int, step_seconds: float) -> bool:
        waiting = len(complete_checkpoints(self._work.checkpoints))
        if waiting >= MAX_WAITING:
            return False
        if self._save_steps is not None:
            return step % self._save_steps == 0
        return save_is_due(self._step_ended - self._saved, step_seconds, self._save_seconds, uploading=waiting > 0)

    def _report(self, state: TrainerState, **values: Any) -> float:
        """Write the status; returns tokens per second over the recent steps (real tokens, padding left out)."""
        seconds = sum(step for step, _ in self._recent)
        rate = sum(tokens for _, tokens in self._recent) / seconds if seconds else 0.0
        remaining = (state.max_steps - state.global_step) * seconds / max(len(self._recent), 1)
        self._progress.update(
            step=state.global_step, tokens_per_second=round(rate, 1), eta_seconds=round(remaining, 1), **values
        )
        return round(rate, 1)

    def _take_up_record(self) -> None:
        """Go on with the record that lies in the checkpoint; what a lost instance logged beyond it comes again."""
        self._steps_file.parent.mkdir(parents=True, exist_ok=True)
        self._steps_file.unlink(missing_ok=True)
        kept = self._work.resume / self._steps_file.name
        if kept.exists():
            shutil.copy(kept, self._steps_file)
