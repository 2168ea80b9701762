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
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from training_image.config.catalog import INSTANCES, instance_problem
from training_image.config.run_settings import PREFIX, RunSettings, SettingsError, unknown_setting
from training_image.core import contract

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
    new_run: str | None = Field(None, min_length=1, max_length=64)
    """Another word than last time starts another run with the same settings: ``-c new_run=again``."""
    resume: str | None = Field(None, pattern=f"^{contract.RUN_ID}$")
    """Id of a run that ended without success: the next run continues it from its newest checkpoint, with its settings,
    data and image, and with this deploy's limits and instance types."""
    instance_type: str = "g5.xlarge"
    instance_types: tuple[str, ...] = ()
    """More acceptable types, with at least as many GPUs; spot takes whichever is cheapest and least likely to go."""
    use_spot: bool = True
    max_spot_price: float | None = Field(None, ge=0.001)
    """USD an hour; None: up to the on-demand price."""
    availability_zone: str | None = None
    """Pins one zone; None: all zones. It does not go with ``subnet_ids``, which are in a zone each."""
    volume_size: int = Field(200, ge=100, le=16384)
    """GB of the encrypted gp3 root volume; the machine image alone takes most of 100."""
    volume_throughput: int = Field(250, ge=125, le=1000)
    """MiB/s of the root volume: snapshots load lazily, so this is boot speed."""
    ami_id: str | None = Field(None, pattern=r"^ami-[0-9a-f]{8,17}$")
    """None: AWS's newest deep learning base image, resolved at each launch."""
    image_tag: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}$")
    """Tag or ``sha256:...`` digest in DataStack's repository, or ``latest``: the newest pushed from main. None:
    build the image from ``training_image/``."""
    training_command: tuple[str, ...] = ()
    """Runs instead of the trainer, in the same image; the work directory is in its environment as ``WORK_DIR``."""
    max_runtime_hours: float = Field(12, ge=0.1, le=336)
    """One absolute deadline per run, counted from its start, relaunches and waiting included."""
    max_attempts: int = Field(5, ge=1, le=50)
    """Instances that one run may use up."""
    auto_shutdown: bool = True
    """False: the instance stays for review after the run, at most until the deadline."""
    create_vpc: bool = True
    """False: ``vpc_id`` and ``subnet_ids``, or the default VPC if neither is given."""
    vpc_id: str | None = Field(None, pattern=r"^vpc-[0-9a-f]{8,17}$")
    subnet_ids: tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...] = ()
    """Of ``vpc_id``, private ones included: they need a way out to S3, ECR, SSM and the model hub."""
    alert_email: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")
    """Gets every alert, once it has confirmed AWS's question. None: subscribe to the topic yourself."""
    cost_alert_threshold: float = Field(50, gt=0)
    """USD a month: AWS Budgets writes at 50, 80 and 100 % of it, and when the forecast exceeds it."""
    cost_tag_active: bool = False
    """The lab's tag is active for cost allocation in this account: the budget counts this lab only, else all of EC2.
    (An inactive tag would count zero for ever.)"""
    github_repository: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$")
    """``owner/name``: the one repository whose workflows may push images and deploy. None: no GitHub roles."""
    github_owner_id: int | None = Field(None, gt=0)
    """With ``github_repository_id``: the immutable form that repositories made or renamed after 2026-07-15 emit."""
    github_repository_id: int | None = Field(None, gt=0)
    github_branch: str = Field("main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """The branch whose pushes may push images."""
    github_environment: str = Field("training", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The environment (with reviewers) whose jobs may deploy and destroy."""
    create_oidc_provider: bool = True
    """GitHub's OIDC provider is global to an account. False: it exists already (another lab, another region)."""

    @field_validator("instance_type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if problem := instance_problem(value):
            raise ValueError(problem)
        return value

    @field_validator("instance_types", "subnet_ids", "training_command", mode="before")
    @classmethod
    def _split_text(cls, value: Any, info: Any) -> Any:
        """``-c`` can only pass text."""
        if not isinstance(value, str):
            return value
        return [part for part in (value.split() if info.field_name == "training_command" else value.split(",")) if part]

    @field_validator("instance_types")
    @classmethod
    def _known_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if problem := instance_problem(name):
                raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _whole(self) -> LabConfig:
        if self.create_vpc and (self.vpc_id or self.subnet_ids):
            raise ValueError("vpc_id and subnet_ids need create_vpc: false")
        if self.availability_zone and self.subnet_ids:
            raise ValueError("availability_zone does not go with subnet_ids: name the subnets of that zone only")
        if self.availability_zone and self.region and not self.availability_zone.startswith(self.region):
            raise ValueError(f"availability_zone is {self.availability_zone!r}, which is not in region {self.region!r}")
        if bool(self.vpc_id) != bool(self.subnet_ids):
            raise ValueError("vpc_id and subnet_ids belong together: set both, or neither for the default VPC")
        if (self.github_owner_id is None) != (self.github_repository_id is None):
            raise ValueError("github_owner_id and github_repository_id belong together: set both, or neither")
        return self

    @property
    def acceptable_types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.instance_type, *self.instance_types)))

    @property
    def gpus(self) -> int:
        """GPUs that every acceptable type has at least."""
        return min(INSTANCES[name].gpus for name in self.acceptable_types)

    @property
    def github_ids(self) -> tuple[int, int] | None:
        """(owner, repository): both or none."""
        if self.github_owner_id is None or self.github_repository_id is None:
            return None
        return self.github_owner_id, self.github_repository_id

    @property
    def usd_per_hour(self) -> float:
        """What an hour of an instance costs at most: on-demand, of the dearest acceptable type."""
        return max(INSTANCES[name].on_demand_usd_per_hour for name in self.acceptable_types)

    @property
    def data_stack_name(self) -> str:
        return contract.DATA_STACK if self.lab == "default" else f"{self.lab}-{contract.DATA_STACK}"

    @property
    def training_stack_name(self) -> str:
        name = contract.TRAINING_STACK if self.lab == "default" else f"{self.lab}-{contract.TRAINING_STACK}"
        return name if self.run == "run" else f"{name}-{self.run}"

    def command(self, words: str) -> str:
        """``cdk ...`` as the operator types it for this lab and run."""
        names = {"lab": (self.lab, "default"), "run": (self.run, "run")}
        return words + "".join(f" -c {key}={value}" for key, (value, usual) in names.items() if value != usual)


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
    run_problems += _unsafe_on_spot(config, settings)
    return Loaded(config, settings, (*file_problem, *problems), run_problems)


def _unsafe_on_spot(config: LabConfig, settings: RunSettings) -> tuple[str, ...]:
    """A spot instance may go at any moment: a run there must save before it ends."""
    every, steps = settings.training.save_steps, settings.training.max_steps
    if not config.use_spot or every is None or not 0 < steps < every:
        return ()
    return (
        f"LLM_TRAINING__SAVE_STEPS is {every} and LLM_TRAINING__MAX_STEPS {steps}: no checkpoint would be saved before "
        "the end, and a spot instance may be taken away at any moment. Lower it, unset it, or set use_spot: false.",
    )


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
            message = item["msg"].removeprefix("Value error, ")
            if not item["loc"]:  # keys that do not go together: the sentence names them
                wrong |= {key for key in LabConfig.model_fields if re.search(rf"\b{key}\b", message)}
                problems.append(f"{message}.")
                continue
            key = str(item["loc"][0])
            wrong.add(key)
            problems.append(
                unknown_setting(key, list(LabConfig.model_fields))
                if item["type"] == "extra_forbidden"
                else f"{key} is {item['input']!r}: {message.rstrip('.')}."
            )
        config, _ = _validate({key: value for key, value in values.items() if key not in wrong})
        return config, tuple(problems)
