"""The contract of a run: states, exit codes, and where everything lies. Standard library only.

Everything that touches a run imports this module: the CDK app at synth, the run controller (staged into its Lambda
asset), the supervisor and the trainer in the image, and the operator's CLI. It decides nothing and does no I/O.

A run moves WAITING -> RUNNING -> (WAITING -> RUNNING)* -> ENDED, and ends for exactly one reason. It is *active* from
the moment its pointer is written until its ``outcome.json`` exists; ``outcome.json`` is created once and never changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any


class State(StrEnum):
    """Where a run stands. The instance reports RUNNING; a run with a pointer and no live instance is WAITING."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Reason(StrEnum):
    """Why a run ended: the ``reason`` of ``outcome.json``."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    EXPIRED = "expired"
    OVER_BUDGET = "over_budget"
    NO_CAPACITY = "no_capacity"


class Actor(StrEnum):
    """Who may end a run: the ``by`` of ``outcome.json``. Only the controller starts one, only an instance reports
    RUNNING."""

    CONTROLLER = "controller"  # the Lambda behind Custom::TrainingRun
    INSTANCE = "instance"  # user data and supervisor
    TERMINATOR = "terminator"  # the Lambda that looks at the run from outside, on schedule and on events


class Phase(StrEnum):
    """What an attempt is doing, in this order. The first and the last two are the supervisor's, the others the
    trainer's."""

    DOWNLOADING = "downloading"
    LOADING = "loading"
    EVALUATING_BEFORE = "evaluating_before"
    TRAINING = "training"
    EVALUATING_AFTER = "evaluating_after"
    SAVING = "saving"
    UPLOADING = "uploading"
    ENDED = "ended"


class TrainerExit(IntEnum):
    """The trainer's exit codes, its contract with the supervisor. Any other code is a crash.

    DONE alone is not success: the supervisor also demands the trainer's final marker (``WorkDir.final``).
    """

    DONE = 0
    STOPPED = 10  # a checkpoint of the last finished step is on disk
    OUT_OF_MEMORY = 11
    BAD_INPUT = 12  # data or settings: the message names file, line and field


class SupervisorExit(IntEnum):
    """The container's exit codes, its contract with the host's unit. Any other code is a crash: the instance alone
    ends."""

    RUN_ENDED = 0  # outcome.json is durable: end the run, do not replace the instance
    INSTANCE_LEAVING = 20  # interrupted or scaled in with a checkpoint: let the group decide on a replacement


SCHEMA_VERSION = 2
"""Of run.json, control.json and outcome.json. ``records`` reads older ones too, and refuses newer ones."""
HEARTBEAT_SECONDS = 5.0
"""Between heartbeats. The supervisor looks for notices and stops, and sends its log, at the same pace."""
DRAIN_SECONDS = 110
"""From SIGTERM or notice to the last byte uploaded. Docker's stop timeout; AWS gives two minutes' notice."""
DEADLINE_MARGIN_SECONDS = 300
"""The instance starts stopping this long before the deadline (killer 1)."""
SCHEDULED_ACTION_MARGIN_SECONDS = 600
"""Killer 3, the Auto Scaling scheduled action, acts this long after the deadline."""
DRAIN_HOOK_NAME = "drain"
SCHEDULED_ACTION_NAME = "deadline"

DATA_STACK, TRAINING_STACK = "DataStack", "TrainingStack"
"""What the operator types after ``cdk deploy``, whatever the lab and the run are called."""
LIVE_LIMITS = ("max_runtime_hours", "auto_shutdown")
"""What a deploy may change under an active run. ``control.json`` then holds the run's new ``limits``."""
METRIC_NAMESPACE = "LLMTuningLab"

# --- tags and parameter names -------------------------------------------------------------------------------------
LAB_TAG = "llm-tuning-lab:lab"
STACK_TAG = "llm-tuning-lab:stack"
"""Value: the stack suffix. Policies name the group and its instance by this tag (a reference would be a cycle)."""


def parameter_name(lab: str, output: str) -> str:
    """SSM parameter that DataStack publishes for ``output``; the name says which stack to deploy when it is missing."""
    return f"/llm-tuning-lab/{lab}/DataStack/{output}"


def repository_name(lab: str) -> str:
    """ECR repository of DataStack. It is fixed, because the asset publisher needs it at synth."""
    return f"llm-tuning-lab/{lab}/datastack-training"


RUN_TAG_PREFIX = "run-"
"""Of an image's tag: the repository's lifecycle keeps an image as long as it has one of these."""


def image_tag(run_id: str) -> str:
    """ECR tag that the controller gives a run's image until it needs it no more."""
    return f"{RUN_TAG_PREFIX}{run_id}"


# --- objects in the training bucket -------------------------------------------------------------------------------
HUB_MIRROR = "models/hub/"
"""Base models from the Hub, laid out as in Hugging Face's cache (``hub_cache``): all that an instance writes there."""


# --- objects in the outputs bucket --------------------------------------------------------------------------------
def pointer_key(stack_suffix: str) -> str:
    """Names the stack's current run; only the controller writes it."""
    return f"stacks/{stack_suffix}/current.json"


RUN_ID = r"[a-z][a-z0-9-]{0,19}-[0-9a-f]{8}-[1-9][0-9]*"
"""Pattern of what ``run_id`` makes."""


def run_id(run_name: str, stack_suffix: str, number: int) -> str:
    return f"{run_name}-{stack_suffix}-{number}"


@dataclass(frozen=True)
class RunKeys:
    """Keys of one run in the outputs bucket. Checkpoints lie apart, because lifecycle rules select by prefix."""

    run_id: str

    @property
    def prefix(self) -> str:
        return f"runs/{self.run_id}/"

    @property
    def run(self) -> str:
        """``records.Run``: frozen settings, image, limits. Created once by the controller."""
        return f"{self.prefix}run.json"

    @property
    def control(self) -> str:
        """``records.Control``: what was asked of the run since it began. The controller and `lab stop` write it."""
        return f"{self.prefix}control.json"

    @property
    def heartbeat(self) -> str:
        """``records.Heartbeat``, overwritten every few seconds."""
        return f"{self.prefix}heartbeat.json"

    @property
    def events(self) -> str:
        return f"{self.prefix}events/"

    def event(self, name: str) -> str:
        """``mail.Event``: what the operator is told, once for each name."""
        return f"{self.events}{name}.json"

    @property
    def outcome(self) -> str:
        """``records.Outcome``, created once by whoever ends the run."""
        return f"{self.prefix}outcome.json"

    @property
    def base_model(self) -> str:
        """Created once, for a model from the Hub: ``{"base_model", "revision", "sha"}``, the commit of all attempts."""
        return f"{self.prefix}base_model.json"

    @property
    def adapter(self) -> str:
        return f"{self.prefix}adapter/"

    @property
    def metrics(self) -> str:
        return f"{self.prefix}metrics/"

    def attempt(self, number: int) -> str:
        """Prefix of one attempt: its claim, logs, ``timeline.json``."""
        return f"{self.prefix}attempts/{number}/"

    def claim(self, number: int) -> str:
        """``records.Claim``, created once."""
        return f"{self.attempt(number)}claim.json"

    @property
    def checkpoints(self) -> str:
        return f"checkpoints/{self.run_id}/"

    def checkpoint(self, step: int, attempt: int) -> str:
        """The attempt is part of the key, so two instances can never write the same one."""
        return f"{self.checkpoints}step-{step:08d}-a{attempt}/"

    def shared(self, sha256: str, name: str) -> str:
        """One file that later checkpoints share: named by its content, so whoever writes it writes the same."""
        return f"{self.checkpoints}shared/{sha256}/{name}"


MANIFEST_NAME = "MANIFEST.json"


# --- files between supervisor and trainer -------------------------------------------------------------------------
@dataclass(frozen=True)
class WorkDir:
    """The scratch directory that supervisor and trainer share on the instance. Files, not signals: a signal that
    lands in a backward pass is served after RNG was consumed, a file is looked at when a step has ended."""

    root: Path

    @property
    def run(self) -> Path:
        """``run.json`` as the controller froze it."""
        return self.root / "run.json"

    @property
    def boot(self) -> Path:
        """What the host did before the container, a JSON object a line: ``{"phase", "from", "to"}``, epoch seconds."""
        return self.root / "boot.jsonl"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def model(self) -> Path:
        """Base model downloaded from ``s3://``; unused when the model is a Hub id."""
        return self.root / "model"

    @property
    def base_model(self) -> Path:
        """As ``RunKeys.base_model``: that commit lies in Hugging Face's cache."""
        return self.root / "base_model.json"

    @property
    def initial_adapter(self) -> Path:
        """The adapter that training starts from, if the settings name one."""
        return self.root / "initial_adapter"

    @property
    def checkpoints(self) -> Path:
        """Trainer's ``output_dir``. A checkpoint is complete once ``<dir>/COMPLETE`` exists; the run's
        ``steps.jsonl`` up to its step is part of it."""
        return self.root / "checkpoints"

    @property
    def resume(self) -> Path:
        """A verified checkpoint put here by the supervisor: the trainer resumes from it if the directory exists."""
        return self.root / "resume"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def metrics(self) -> Path:
        """``steps.jsonl``, ``eval_before.json``, ``eval_after.json``: uploaded as they grow."""
        return self.root / "metrics"

    @property
    def status(self) -> Path:
        """``records.Status``, written atomically by the trainer."""
        return self.root / "status.json"

    @property
    def stop(self) -> Path:
        """Created by the supervisor: checkpoint at the end of this step and exit with ``TrainerExit.STOPPED``."""
        return self.root / "stop"

    @property
    def save(self) -> Path:
        """Created by the supervisor: checkpoint at the end of this step and go on. The trainer removes it."""
        return self.root / "save"

    @property
    def final(self) -> Path:
        """The trainer's final marker; without it no run has succeeded."""
        return self.root / "final.json"

    @property
    def error(self) -> Path:
        """One sentence for the operator, left by the trainer when it exits with BAD_INPUT or OUT_OF_MEMORY."""
        return self.root / "error.txt"


COMPLETE_MARKER = "COMPLETE"


def settings_digest(settings: dict[str, Any]) -> str:
    """sha256 over the canonical JSON of ``settings``: what a checkpoint and an update are compared by."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
