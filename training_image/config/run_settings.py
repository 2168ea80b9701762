"""What a run may be told: one schema for ``lab.yaml``, for the shell's ``LLM_*`` variables, at synth and on the
instance.

``LLM_TRAINING__LEARNING_RATE=1e-4`` sets ``training.learning_rate``. Names are Hugging Face's argument names. Defaults
are those of a LoRA fine-tune on one 24 GB GPU, not TRL's (learning rate 2e-5 is made for full fine-tuning).
No torch is imported here: the CDK app validates with this same module at synth.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from training_image.core import contract
from training_image.core.errors import UserError

PREFIX = "LLM_"


class SettingsError(UserError, ValueError):
    """A setting the operator typed is wrong. Each line of the message names one setting and says what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    base_model: str = Field("Qwen/Qwen2.5-7B-Instruct", min_length=1)
    """Hub id, or ``s3://bucket/prefix/`` holding config, tokenizer and safetensors."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    adapter: str | None = Field(None, pattern=rf"^({contract.RUN_ID}|s3://[^/]+/.+)$")
    """Adapter to train on from, instead of a fresh one: the id of the run that made it, or ``s3://bucket/prefix/`` in
    one of the lab's buckets. The optimizer starts afresh; base model, ``lora.r``, ``lora.lora_alpha`` must be its."""
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 where the GPU has it, float16 on older GPUs, float32 on CPU."""


class DataSettings(_Section):
    uri: str | None = None
    """``s3://bucket/prefix/`` with ``*.jsonl``; default: ``data/`` of the lab's training bucket."""
    eval_fraction: float = Field(0.05, gt=0.0, le=0.5)
    """Share held out when the data has no evaluation file of its own."""
    max_eval_examples: int = Field(256, ge=1)
    """At most so many held-out examples are evaluated."""


class LoraSettings(_Section):
    r: int = Field(16, ge=1, le=1024)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    target_modules: str | list[str] = "all-linear"


class TrainingSettings(_Section):
    num_train_epochs: float = Field(2.0, gt=0)
    max_steps: int = Field(-1, ge=-1)
    """Optimizer steps; -1: as many as ``num_train_epochs`` takes."""
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    per_device_train_batch_size: int = Field(2, ge=1)
    per_device_eval_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(8, ge=1)
    max_length: int = Field(2048, ge=16)
    """Tokens per example; longer ones are cut at the right, and counted in the log."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: float = Field(0.03, ge=0)
    """Steps, or a share of all steps when below 1."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool | None = None
    """None: on for GPUs, off on CPU (memory is not what a CPU run lacks)."""
    save_steps: int | None = None
    """Steps between checkpoints; None: from the measured save time, at most five minutes apart."""
    logging_steps: int = Field(1, ge=1)
    seed: int = Field(42, ge=0)
    full_determinism: bool = False
    """Only kernels that give the same bits each time, which are slower. On a GPU a resumed run is then bit for bit the
    one that nobody interrupted; otherwise it differs from it as two uninterrupted runs differ, in the fourth digit."""
    use_cpu: bool = False
    """Train without a GPU on purpose. Otherwise a missing GPU ends the run before it starts."""

    @field_validator("save_steps")
    @classmethod
    def _checkpoints_stay_on(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(
                "checkpoints cannot be switched off, because an interruption would lose everything; leave it unset, "
                "and the cadence follows what a checkpoint is measured to cost"
            )
        return value


class EvaluationSettings(_Section):
    max_new_tokens: int = Field(32, ge=1, le=2048)
    """Generated per held-out answer for exact match and samples."""
    samples: int = Field(8, ge=0)
    """Answers kept side by side, before and after."""


class RunSettings(BaseSettings):
    """All settings of one run. The shell's ``LLM_*`` variables win over the values of the settings file."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @classmethod
    def load(cls, values: Mapping[str, Any] | None = None) -> RunSettings:
        """Validate ``values`` (nested, as in ``lab.yaml`` or ``run.json``), overridden by the ``LLM_*`` environment.

        Raises:
            SettingsError: one line per wrong setting, spelled as the operator spells it, with the nearest valid name.
        """
        problems = [
            unknown_setting(name, known_variables())
            for name in sorted(os.environ)
            if name.startswith(PREFIX) and name[len(PREFIX) :].lower().split("__")[0] not in cls.model_fields
        ]
        try:
            settings = cls(**dict(values or {}))
        except ValidationError as error:
            problems += [_sentence(item["loc"], item["type"], item["msg"], item["input"]) for item in error.errors()]
        except SourceError as error:
            problems.append(f"{error}. Lists and sections in a variable are written as JSON.")
        if problems:
            raise SettingsError("\n".join(problems))
        return settings


def variable(*path: str | int) -> str:
    """The ``LLM_`` spelling of a nested setting: ``variable("lora", "r") == "LLM_LORA__R"``."""
    return PREFIX + "__".join(str(part).upper() for part in path)


def known_variables() -> list[str]:
    """Every valid ``LLM_*`` variable."""
    return [
        variable(section, field)
        for section, info in RunSettings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
        for field in info.annotation.model_fields
    ]


def unknown_setting(name: str, known: list[str]) -> str:
    """The sentence for a name that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Unknown setting {name}." + (f" Did you mean {nearest[0]}?" if nearest else "")


def _sentence(location: tuple[str | int, ...], kind: str, message: str, value: Any) -> str:
    name, message = variable(*location[:2]), message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return unknown_setting(name, known_variables())
    return f"{name} is {value!r}: {message[0].lower()}{message[1:]}."
