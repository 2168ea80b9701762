"""The objects that a run's programs tell each other through S3, as frozen records: one type and one reader for each.

``Run`` is an order and read strictly: a bound that was misread would cost money. Of ``Control`` a limit that makes no
sense changes nothing, so that the run's own holds. ``Outcome``, ``Heartbeat`` and ``Status`` are reports from a
container that is not trusted: a field that makes no sense counts as not said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from training_image.core.codec import Record, UnreadableError
from training_image.core.contract import SCHEMA_VERSION, Actor, Phase, Reason, RunKeys, State
from training_image.core.schema import NewerSchemaError, Versioned


def now() -> datetime:
    """The time as records carry it: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Run(Versioned):
    """``run.json``: what a run is made of, as the controller froze it. See ``RunKeys.run``."""

    NAME: ClassVar[str] = "run.json"

    run_id: str
    created_at: datetime
    deadline: datetime
    """As it began; ``in_force`` has the one that holds."""
    max_attempts: int
    image: str
    data_uri: str
    settings: dict[str, Any]
    settings_sha256: str
    gpus: int = 0
    auto_shutdown: bool = True
    resume: str | None = None
    """The run that this one continues."""
    training_command: tuple[str, ...] | None = None
    request_id: str = ""
    """CloudFormation's, of the request that began it."""
    run_name: str = ""
    lab: str = ""
    stack_name: str = ""
    stack_suffix: str = ""
    group: str = ""
    region: str = ""
    instance_types: tuple[str, ...] = ()
    training_bucket: str | None = None
    """Where base models from the Hub are mirrored."""
    outputs_bucket: str = ""
    log_group: str | None = None
    """In CloudWatch."""
    secrets: dict[str, str] = field(default_factory=dict)
    """ARNs, as ``{"hugging_face": ...}``."""
    spec: dict[str, Any] = field(default_factory=dict)
    """What was deployed (stacks/training_stack.py), to compare the next deploy with."""
    schema: int = SCHEMA_VERSION

    @property
    def base_model(self) -> str:
        """Raises: UnreadableError: the settings name none."""
        found = self._model().get("base_model")
        if not isinstance(found, str):
            raise UnreadableError("run.json is unreadable: settings.model.base_model is no text")
        return found

    @property
    def revision(self) -> str:
        """Of the base model on the Hub."""
        return str(self._model().get("revision") or "main")

    @property
    def adapter(self) -> str | None:
        """The adapter that it is trained on from, as ``model.adapter`` names it."""
        return self._model().get("adapter")

    def _model(self) -> Mapping[str, Any]:
        found = self.settings.get("model")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class StopRequest(Record):
    """The run is to save a checkpoint and end."""

    LENIENT: ClassVar[bool] = True

    at: datetime | None = None
    """None, where that cannot be read: long ago."""
    reason: Reason = Reason.STOPPED
    detail: str = "a stop was asked for"


@dataclass(frozen=True)
class LimitChange(Record):
    """Limits that a deploy has changed under the run; None: as it began."""

    LENIENT: ClassVar[bool] = True
    SPARSE: ClassVar[bool] = True

    deadline: datetime | None = None
    max_runtime_hours: float | None = None
    auto_shutdown: bool | None = None


@dataclass(frozen=True)
class Control(Versioned):
    """``control.json``: what was asked of the run since it began. See ``RunKeys.control``."""

    NAME: ClassVar[str] = "control.json"
    LENIENT: ClassVar[bool] = True
    SPARSE: ClassVar[bool] = True

    stop: StopRequest | None = None
    limits: LimitChange | None = None
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Limits:
    """What holds for a run now."""

    deadline: datetime
    auto_shutdown: bool
    """Whether the instance ends with the run, or stays for review until the deadline."""


def in_force(run: Run, control: Control | None) -> Limits:
    """Limits of control.json win over run.json's. A stop request also ends an instance that was to be kept for review,
    because a person has looked already. The host has no packages, so ``fields.py`` repeats this rule; a test compares
    the two."""
    changed = (control and control.limits) or LimitChange()
    kept = run.auto_shutdown if changed.auto_shutdown is None else changed.auto_shutdown
    return Limits(
        deadline=changed.deadline or run.deadline,
        auto_shutdown=kept or (control is not None and control.stop is not None),
    )


@dataclass(frozen=True)
class Outcome(Versioned):
    """``outcome.json``: how the run ended. Created once, by whoever ends it. See ``RunKeys.outcome``."""

    NAME: ClassVar[str] = "outcome.json"
    LENIENT: ClassVar[bool] = True

    reason: Reason
    detail: str | None = None
    """One sentence for the operator."""
    by: Actor | None = None
    at: datetime | None = None
    attempts: int | None = None
    """Number of the last attempt; None: whoever ended it does not know."""
    resumed_from_step: int | None = None
    """Where the last attempt began; None: at the beginning."""
    step: int | None = None
    """Last optimizer step whose result is kept."""
    train_examples: int | None = None
    eval_examples: int | None = None
    adapter_sha256: str | None = None
    schema: int = SCHEMA_VERSION

    @property
    def sentence(self) -> str:
        return (self.detail or "no detail").rstrip(".")

    @property
    def succeeded(self) -> bool:
        return self.reason is Reason.SUCCEEDED


def outcome_now(reason: Reason, detail: str, by: Actor, **known: Any) -> Outcome:
    """An outcome as of now: the one way in which supervisor, controller and auto-terminator make one.

    The host, which has no packages, writes the same fields in ``outcome.py``; a test holds it to this.
    """
    return Outcome(reason=reason, detail=detail, by=by, at=now(), **known)


@dataclass(frozen=True)
class Progress(Record):
    """How far a training has come."""

    LENIENT: ClassVar[bool] = True

    phase: Phase | None = None
    step: int | None = None
    """Optimizer steps done."""
    total_steps: int | None = None
    loss: float | None = None
    """Of the latest step, in nats per token."""
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Status(Progress):
    """``status.json``: the trainer's own word to the supervisor. See ``WorkDir.status``."""

    NAME: ClassVar[str] = "status.json"


@dataclass(frozen=True)
class Heartbeat(Progress):
    """``heartbeat.json``: an attempt's word to everybody, every few seconds.

    It has no schema of its own: an instance whose heartbeat an older function does not understand in full is alive all
    the same, and must not be ended for it.
    """

    NAME: ClassVar[str] = "heartbeat.json"

    state: State | None = None
    attempt: int | None = None
    durable_step: int | None = None
    """Of the newest checkpoint that is in S3."""
    resumed_from_step: int | None = None
    instance_id: str | None = None


@dataclass(frozen=True)
class Claim(Record):
    """``attempts/<n>/claim.json``: an instance has taken the attempt. Created once."""

    NAME: ClassVar[str] = "claim.json"
    LENIENT: ClassVar[bool] = True

    instance_id: str | None = None
    at: datetime | None = None
    token: str | None = None
    """Tells it from another instance's claim in the same second."""


class Bucket(Protocol):
    """What is needed of ``store.Store`` here."""

    def read(self, key: str) -> bytes | None: ...

    def update(self, key: str, change: Callable[[bytes | None], Any]) -> None: ...


def read_outcome(store: Bucket, keys: RunKeys) -> Outcome | None:
    """How the run ended; None: it has not. An outcome that is unreadable has ended the run all the same."""
    body = store.read(keys.outcome)
    if body is None:
        return None
    try:
        return Outcome.parse(body)
    except UnreadableError as error:
        return Outcome(reason=Reason.FAILED, detail=f"{error}. What the run was able to save is there")


def read_heartbeat(store: Bucket, keys: RunKeys) -> Heartbeat:
    """The latest heartbeat; empty if there is none, or none that can be read."""
    body = store.read(keys.heartbeat)
    try:
        return Heartbeat() if body is None else Heartbeat.parse(body)
    except UnreadableError:
        return Heartbeat()


def read_run(store: Bucket, keys: RunKeys) -> Run | None:
    """Raises: UnreadableError: ``run.json`` is there, and no run that this version understands."""
    body = store.read(keys.run)
    return None if body is None else Run.parse(body)


def read_control(store: Bucket, keys: RunKeys) -> Control:
    """Raises: UnreadableError: ``control.json`` is there, and nothing that this version understands."""
    body = store.read(keys.control)
    return Control() if body is None else Control.parse(body)


def readable_control(store: Bucket, keys: RunKeys, say: Callable[[str], object]) -> Control:
    """What was asked of the run. If it is unreadable, that is said, and the limits of run.json apply."""
    try:
        return read_control(store, keys)
    except UnreadableError as error:
        say(str(error))
        return Control()


def update_control(store: Bucket, keys: RunKeys, change: Callable[[Control], Control]) -> None:
    """Change what is asked of the run. An unreadable ``control.json`` held for nobody, and is replaced.

    Raises:
        NewerSchemaError: a newer version has written it.
    """

    def changed(body: bytes | None) -> dict[str, Any]:
        try:
            found = Control() if body is None else Control.parse(body)
        except NewerSchemaError:
            raise
        except UnreadableError:
            found = Control()
        return change(found).to_json()

    store.update(keys.control, changed)
