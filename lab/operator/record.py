"""What a run has left in S3, read through the product's own store, as any user may."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_image.core.contract import RunKeys
from training_image.core.records import Outcome, Run, read_outcome, read_run
from training_image.core.store import Store


@dataclass(frozen=True)
class RunRecord:
    """A run's objects; those that do not exist are None or empty."""

    run: Run | None = None
    outcome: Outcome | None = None
    eval_before: dict[str, Any] | None = None
    eval_after: dict[str, Any] | None = None
    timelines: tuple[dict[str, Any], ...] = ()
    """One for each attempt that left one."""

    @property
    def succeeded(self) -> bool:
        return self.outcome is not None and self.outcome.succeeded


def record(store: Store, keys: RunKeys) -> RunRecord:
    """Raises: UnreadableError: ``run.json`` is none that this version understands."""
    found = (_json(store, f"{keys.attempt(number)}timeline.json") for number in range(1, 1 + attempts(store, keys)))
    return RunRecord(
        run=read_run(store, keys),
        outcome=read_outcome(store, keys),
        eval_before=_json(store, f"{keys.metrics}eval_before.json"),
        eval_after=_json(store, f"{keys.metrics}eval_after.json"),
        timelines=tuple(timeline for timeline in found if timeline),
    )


def attempts(store: Store, keys: RunKeys) -> int:
    """How many instances have claimed an attempt of this run."""
    return sum(item.key.endswith("claim.json") for item in store.list(f"{keys.prefix}attempts/"))


def download(store: Store, prefix: str, folder: Path) -> list[Path]:
    """Every object below ``prefix``, as files below ``folder``."""
    files = {item.key: folder / item.key.removeprefix(prefix) for item in store.list(prefix)}
    store.download(files)
    return list(files.values())


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/prefix/`` as (bucket, prefix with a slash at its end, unless empty)."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _json(store: Store, key: str) -> dict[str, Any] | None:
    """A report of the container's; one that is no object counts as none."""
    body = store.read(key)
    try:
        found = None if body is None else json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
