"""`lab resume`: shows what would be continued, and deploys it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.operator.deployed import OutputError, Outputs
from training_image.config.run_settings import RunSettings, variable
from training_image.core import lineage
from training_image.core.codec import UnreadableError
from training_image.core.contract import RunKeys
from training_image.core.records import read_outcome, read_run
from training_image.core.store import Store
from training_image.storage import checkpoints


def check(outputs: Outputs, run_id: str, said: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Say what would be continued, from where, and with what.

    Args:
        said: the settings that lab.yaml, shell and ``-c`` name, nested by section.

    Raises:
        OutputError: it cannot be continued, or not so. The deploy would be refused too, minutes later.
    """
    store, keys = outputs.results(), RunKeys(run_id)
    try:
        run, outcome = read_run(store, keys), read_outcome(store, keys)
        family = [keys, *lineage.ancestors(store, run.resume if run else None)]
    except UnreadableError as error:
        raise OutputError(f"Run {run_id} cannot be continued: {error}.") from None
    if problem := lineage.cannot_continue(run_id, run, outcome, lineage.run_ids(store)):
        raise OutputError(problem)
    assert run is not None and outcome is not None  # noqa: S101, PT018 else there is a problem
    if other := lineage.differing(said, run.settings):
        raise OutputError(lineage.keeps_its_settings(run_id, other))
    _not_beside(outputs, store, run_id)
    say(f"Run {run_id} ended as {outcome.reason}: {outcome.sentence}.")
    steps = (max(found).step for each in family if (found := checkpoints.published(store, each)))
    step = next(steps, None)
    say(
        "No checkpoint was published: it begins at the beginning."
        if step is None
        else f"It goes on from step {step}, or the newest checkpoint before that which verifies."
    )
    say(f"Data: {run.data_uri}")
    say(f"Settings, as it began: {', '.join(_unusual(run.settings)) or 'the defaults'}")


def command(root: Path, run_id: str, context: Sequence[str]) -> list[str]:
    """The ``cdk`` command of this clone; ``context`` are further words ``key=value``."""
    words = [word for each in (f"resume={run_id}", *context) for word in ("-c", each)]
    return [str(root / "node_modules" / ".bin" / "cdk"), "deploy", "TrainingStack", *words]


def deploy(root: Path, words: Sequence[str]) -> int:
    """Run it to its end, on this terminal; returns its exit code.

    Raises:
        OutputError: this clone has no ``cdk``.
    """
    try:
        return subprocess.run(words, cwd=root, check=False).returncode
    except FileNotFoundError:
        raise OutputError("This clone has no cdk yet: make setup") from None


def _not_beside(outputs: Outputs, store: Store, run_id: str) -> None:
    """The stack's own run must have ended, and must not be the continuation that is asked for."""
    current = None
    with contextlib.suppress(OutputError):  # a stack that is not deployed has none
        current = outputs.value("run_id")
    if current in (None, "none", run_id):
        return
    keys = RunKeys(current)
    outcome = read_outcome(store, keys)
    if outcome is None:
        raise OutputError(f"Run {current} of this stack is active. Stop it first: {outputs.command('lab stop')}")
    own = read_run(store, keys)
    if own is not None and own.resume == run_id:
        raise OutputError(
            f"Run {current} has continued {run_id} already, and ended as {outcome.reason}. Continue that one: "
            + outputs.command(f"lab resume {current}")
        )


def _unusual(settings: Mapping[str, Any]) -> list[str]:
    """``NAME=value`` of what is not the default."""
    usual = RunSettings.model_construct().model_dump(mode="json")
    return [
        f"{variable(section, name)}={value}"
        for section, values in settings.items()
        for name, value in values.items()
        if usual.get(section, {}).get(name) != value
    ]
