"""What one lab may be told: infrastructure keys, and the ``LLM_*`` settings of its run.

Sources, later ones win: ``lab.yaml``, the shell's ``LLM_*`` variables, ``-c key=value``. The file and ``-c`` spell a
run's settings exactly as the shell does (``LLM_TRAINING__LEARNING_RATE: 1e-4``). Infrastructure keys keep the names of
the original lab's tfvars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from training_image.catalog import INSTANCES, instance_problem
from training_image.settings import PREFIX, RunSettings, SettingsError, unknown_setting

_NAME = r"^[a-z][a-z0-9-]{0,19}$"


class LabConfig(BaseModel):
    """Infrastructure of one lab and one stack of runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lab: str = Field("default", pattern=_NAME)
    """Name of the lab; several live side by side in one account."""
    run: str = Field("run", pattern=_NAME)
    """Name of the runs; another name gives a second TrainingStack beside the first."""
    region: str | None = None
    """None: the region of the CLI's credentials."""
    create_instance: bool = True
    """False: everything but a run. Set while a run is active, it stops that run with a checkpoint."""
    instance_type: str = "g5.xlarge"
    instance_types: tuple[str, ...] = ()
    """More acceptable types, with at least as many GPUs; spot takes whichever is cheapest and least likely to go."""
    use_spot: bool = True
    max_spot_price: float | None = Field(None, gt=0)
    """USD an hour; None: up to the on-demand price."""
    availability_zone: str | None = None
    """Pins one zone; None: all zones of the dedicated VPC."""
    volume_size: int = Field(200, ge=100, le=16384)
    """GB of the encrypted gp3 root volume; the machine image alone takes most of 100."""
    volume_throughput: int = Field(250, ge=125, le=1000)
    """MiB/s of the root volume: snapshots load lazily, so this is boot speed."""
    ami_id: str | None = Field(None, pattern=r"^ami-[0-9a-f]{8,17}$")
    """None: AWS's newest deep learning base image, resolved at each launch."""
    image_tag: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}$")
    """Tag or ``sha256:...`` digest in DataStack's repository; None: build the image from ``training_image/``."""
    training_command: tuple[str, ...] = ()
    """Runs instead of the trainer, in the same image and with the same work directory."""
    max_runtime_hours: float = Field(12, ge=0.1, le=336)
    """One absolute deadline per run, counted from its start, relaunches and waiting included."""
    max_attempts: int = Field(5, ge=1, le=50)
    """Boxes that one run may use up."""
    auto_shutdown: bool = True
    """False: the box stays for review after the run, at most until the deadline."""

    @field_validator("instance_type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if problem := instance_problem(value):
            raise ValueError(problem)
        return value

    @field_validator("instance_types", "training_command", mode="before")
    @classmethod
    def _split_text(cls, value: Any, info: Any) -> Any:
        """``-c`` can only pass text."""
        if not isinstance(value, str):
            return value
        return [part for part in (value.split(",") if info.field_name == "instance_types" else value.split()) if part]

    @field_validator("instance_types")
    @classmethod
    def _known_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if problem := instance_problem(name):
                raise ValueError(problem)
        return value

    @property
    def acceptable_types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.instance_type, *self.instance_types)))

    @property
    def gpus(self) -> int:
        """GPUs that every acceptable type has at least."""
        return min(INSTANCES[name].gpus for name in self.acceptable_types)

    @property
    def training_stack_name(self) -> str:
        return "TrainingStack" if self.run == "run" else f"TrainingStack-{self.run}"


@dataclass(frozen=True)
class Loaded:
    """What the operator said, with everything wrong left out and named: a wrong setting must not block a destroy."""

    config: LabConfig
    settings: RunSettings
    lab_problems: tuple[str, ...]
    """Wrong infrastructure keys: no stack may be deployed."""
    run_problems: tuple[str, ...]
    """Wrong ``LLM_*`` settings: no run may be started."""


def load(file: Path, context: Mapping[str, Any], environ: MutableMapping[str, str]) -> Loaded:
    """Merge and validate the three sources. ``environ`` must be ``os.environ``: the schema reads it, and the file's and
    ``-c``'s ``LLM_*`` values are put there."""
    from_file, file_problem = _read(file)
    from_context = {key: value for key, value in context.items() if not re.search("[:/]", key)}
    for source, wins in ((from_file, False), (from_context, True)):
        for name in [key for key in source if key.startswith(PREFIX)]:
            value = source.pop(name)
            if wins or name not in environ:
                environ[name] = value if isinstance(value, str) else json.dumps(value)
    config, problems = _validate({**from_file, **from_context})
    no_problems: tuple[str, ...] = ()
    try:
        settings, run_problems = RunSettings.load(), no_problems
    except SettingsError as error:
        settings, run_problems = RunSettings.model_construct(), tuple(str(error).splitlines())
    return Loaded(config, settings, (*file_problem, *problems), run_problems)


def _read(file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not file.exists():
        return {}, ()
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        return {}, (f"{file.name} is not valid YAML: {' '.join(str(error).split())}.",)
    if not isinstance(content, dict):
        return {}, (f"{file.name} must hold 'key: value' lines; see lab.example.yaml.",)
    return {str(key): value for key, value in content.items()}, ()


def _validate(values: dict[str, Any]) -> tuple[LabConfig, tuple[str, ...]]:
    try:
        return LabConfig(**values), ()
    except ValidationError as error:
        problems, wrong = [], set()
        for item in error.errors():
            key = str(item["loc"][0])
            wrong.add(key)
            message = item["msg"].removeprefix("Value error, ")
            problems.append(
                unknown_setting(key, list(LabConfig.model_fields))
                if item["type"] == "extra_forbidden"
                else f"{key} is {item['input']!r}: {message.rstrip('.')}."
            )
        config, _ = _validate({key: value for key, value in values.items() if key not in wrong})
        return config, tuple(problems)
