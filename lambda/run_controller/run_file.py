"""What a run is made of, frozen as its ``run.json`` when it starts; from another run's, if it continues one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from image_digest import is_there, pinned

from training_image.core import contract, lineage
from training_image.core.codec import UnreadableError
from training_image.core.errors import UserError
from training_image.core.records import Run, read_outcome, read_run
from training_image.core.store import Store

_COPIED = (
    "run_name",
    "lab",
    "stack_name",
    "stack_suffix",
    "group",
    "region",
    "max_attempts",
    "auto_shutdown",
    "instance_types",
    "gpus",
    "training_bucket",
    "outputs_bucket",
    "secrets",
    "log_group",
    "data_uri",
    "settings",
    "training_command",
)


class Refused(UserError):
    """The request was refused; the message is CloudFormation's reason."""


def inherited(store: Store, spec: dict[str, Any]) -> dict[str, Any]:
    """What the run takes over from the one that it continues; nothing if it continues none.

    Raises:
        Refused: that run cannot be continued, or not so.
    """
    wanted = spec.get("resume")
    if wanted is None:
        return {}
    run_id, keys = wanted["run_id"], contract.RunKeys(wanted["run_id"])
    try:
        run = read_run(store, keys)
    except UnreadableError as error:
        raise Refused(f"Run {run_id} cannot be continued: {error}.") from None
    problem = lineage.cannot_continue(run_id, run, read_outcome(store, keys), lineage.run_ids(store))
    if problem or run is None:
        raise Refused(problem)
    if other := lineage.differing(wanted["said"], run.settings):
        raise Refused(lineage.keeps_its_settings(run_id, other))
    if not is_there(run.image):
        raise Refused(
            f"The image that run {run_id} began with, {run.image}, is no longer in the repository, and with "
            "another one it would not go on exactly: start a run of its own, without resume."
        )
    # A run that trains on the CPU needs no GPU of the instance that this deploy asks for.
    gpus = {} if run.gpus else {"gpus": 0}
    return {"resume": run_id, **{name: getattr(run, name) for name in lineage.FROZEN}, **gpus}


def check_adapter(store: Store, settings: dict[str, Any]) -> None:
    """Before anything costs money; an adapter at an address of its own is the instance's to read.

    Raises:
        Refused: there is none, or it does not fit the settings.
    """
    adapter = settings.get("model", {}).get("adapter")
    if adapter is None or adapter.startswith("s3://"):
        return
    config = store.read_json(contract.RunKeys(adapter).adapter + "adapter_config.json")
    if config is None:
        raise Refused(
            f"LLM_MODEL__ADAPTER={adapter}: there is no such run, or it has left no adapter. See what there is: "
            f"aws s3 ls s3://{store.bucket}/runs/"
        )
    if problem := lineage.cannot_train_on(adapter, config, settings):
        raise Refused(problem)


def mint(
    spec: dict[str, Any], taken_over: dict[str, Any], request_id: str, number: int, now: datetime, deadline: datetime
) -> Run:
    """The stack's run with this number; ``taken_over`` as ``inherited`` returns it."""
    own = {
        **{name: spec[name] for name in _COPIED},
        "settings_sha256": contract.settings_digest(spec["settings"]),
        "image": taken_over.get("image") or pinned(spec["image"]),
        "spec": spec,
    }
    return Run(
        run_id=contract.run_id(spec["run_name"], spec["stack_suffix"], number),
        request_id=request_id,
        created_at=now,
        deadline=deadline,
        **{**own, **taken_over},
    )
