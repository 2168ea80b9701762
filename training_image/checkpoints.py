"""Checkpoints in S3: a checkpoint is a prefix with a ``MANIFEST.json``, written last, that the files agree with.

Without a manifest that verifies a checkpoint does not exist, whatever else lies under its prefix.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from training_image.contract import COMPLETE_MARKER, MANIFEST_NAME, RunKeys
from training_image.store import MissingObject, Store

KEEP = 2
"""Published checkpoints of a run that retention never touches: the newest, and the one to fall back to."""

log = logging.getLogger(__name__)
_LOCAL_NAME = re.compile(r"checkpoint-(\d+)")
_KEY_TAIL = re.compile(rf"step-(\d+)-a(\d+)/{MANIFEST_NAME}")


@dataclass(frozen=True, order=True)
class CheckpointId:
    """Which checkpoint of a run; the order is that of progress, a later attempt first among equal steps."""

    step: int
    attempt: int


class FileEntry(BaseModel):
    """One file of a checkpoint; ``name`` is relative to it, ``size`` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int = Field(ge=0)
    sha256: str

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError("leaves the checkpoint")
        return name


class Manifest(BaseModel):
    """What a published checkpoint consists of, and whose it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    run_id: str
    step: int = Field(ge=0)
    attempt: int = Field(ge=1)
    settings_sha256: str
    files: tuple[FileEntry, ...] = Field(min_length=1)

    @property
    def id(self) -> CheckpointId:
        return CheckpointId(self.step, self.attempt)


@dataclass(frozen=True)
class Resume:
    """What to resume from (None: start afresh), and the published checkpoints that turned out to be unusable."""

    manifest: Manifest | None
    refused: frozenset[CheckpointId]


# --- decisions ----------------------------------------------------------------------------------------------------
def foreign(manifest: Manifest, found_as: CheckpointId, run_id: str, settings_sha256: str) -> str | None:
    """Why this manifest is none of this run's, or None."""
    if manifest.run_id != run_id:
        return f"it belongs to run {manifest.run_id}"
    if manifest.settings_sha256 != settings_sha256:
        return "it was trained with other settings"
    if manifest.id != found_as:
        return f"it says step {manifest.step} of attempt {manifest.attempt}"
    return None


def resume_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Checkpoints in the order in which resuming is tried: most progress first."""
    return sorted(manifests, key=lambda manifest: manifest.id, reverse=True)


def expendable(published: Collection[CheckpointId], refused: Collection[CheckpointId]) -> list[CheckpointId]:
    """What retention deletes, oldest first. Unusable ones neither count as kept nor are deleted: they are evidence."""
    usable = sorted(set(published) - set(refused))
    return usable[:-KEEP]


# --- local directories --------------------------------------------------------------------------------------------
def complete_checkpoints(directory: Path) -> dict[int, Path]:
    """``{step: path}`` of the trainer's finished ``checkpoint-<step>`` directories."""
    found = {}
    for marker in directory.glob(f"checkpoint-*/{COMPLETE_MARKER}"):
        if match := _LOCAL_NAME.fullmatch(marker.parent.name):
            found[int(match[1])] = marker.parent
    return found


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(directory: Path) -> tuple[FileEntry, ...]:
    """All files below ``directory`` with sizes and checksums, in name order."""
    return tuple(
        FileEntry(name=path.relative_to(directory).as_posix(), size=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    )


def mismatch(directory: Path, manifest: Manifest) -> str | None:
    """The first way in which files on disk differ from ``manifest``, or None."""
    for entry in manifest.files:
        path = directory / entry.name
        if not path.is_file():
            return f"{entry.name} is missing"
        if path.stat().st_size != entry.size:
            return f"{entry.name} has {path.stat().st_size} bytes instead of {entry.size}"
        if file_sha256(path) != entry.sha256:
            return f"{entry.name} has another checksum"
    return None


# --- S3 -----------------------------------------------------------------------------------------------------------
def publish(store: Store, keys: RunKeys, directory: Path, *, step: int, attempt: int, settings_sha256: str) -> Manifest:
    """Upload a complete checkpoint, its manifest last; returns the manifest."""
    manifest = Manifest(
        run_id=keys.run_id, step=step, attempt=attempt, settings_sha256=settings_sha256, files=describe(directory)
    )
    prefix = keys.checkpoint(step, attempt)
    store.upload({prefix + entry.name: directory / entry.name for entry in manifest.files})
    store.put(prefix + MANIFEST_NAME, manifest.model_dump_json(by_alias=True, indent=1).encode())
    return manifest


def published(store: Store, keys: RunKeys) -> list[CheckpointId]:
    """All checkpoints of the run that have a manifest."""
    tails = (item.key.removeprefix(keys.checkpoints) for item in store.list(keys.checkpoints))
    return [CheckpointId(int(match[1]), int(match[2])) for tail in tails if (match := _KEY_TAIL.fullmatch(tail))]


def prune(store: Store, keys: RunKeys, refused: Collection[CheckpointId]) -> None:
    """Delete what retention no longer keeps, manifests first: a half-deleted checkpoint must not look like one."""
    for old in expendable(published(store, keys), refused):
        prefix = keys.checkpoint(old.step, old.attempt)
        store.delete([prefix + MANIFEST_NAME])
        store.delete([item.key for item in store.list(prefix)])


def fetch_newest(store: Store, keys: RunKeys, settings_sha256: str, destination: Path) -> Resume:
    """Put the newest published checkpoint that verifies into ``destination``, which must not exist yet.

    Unusable ones are logged with the reason and the next older is tried. An outage raises: it says nothing about a
    checkpoint, and starting afresh because of it would throw work away.
    """
    refused: set[CheckpointId] = set()
    candidates: list[Manifest] = []
    for found in published(store, keys):
        body = store.read(keys.checkpoint(found.step, found.attempt) + MANIFEST_NAME)
        try:
            manifest = Manifest.model_validate_json(body or b"")
            reason = foreign(manifest, found, keys.run_id, settings_sha256)
        except ValidationError as error:
            reason = f"its manifest is unreadable ({error.error_count()} errors)"
        if reason is None:
            candidates.append(manifest)
        else:
            _refuse(found, reason, refused)
    for manifest in resume_order(candidates):
        reason = _fetch(store, keys, manifest, destination)
        if reason is None:
            return Resume(manifest, frozenset(refused))
        _refuse(manifest.id, reason, refused)
    return Resume(None, frozenset(refused))


def _refuse(checkpoint: CheckpointId, reason: str, refused: set[CheckpointId]) -> None:
    log.warning("Checkpoint of step %d, attempt %d is refused: %s", checkpoint.step, checkpoint.attempt, reason)
    refused.add(checkpoint)


def _fetch(store: Store, keys: RunKeys, manifest: Manifest, destination: Path) -> str | None:
    """Download one checkpoint to ``destination``; why it is unusable, or None."""
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    prefix = keys.checkpoint(manifest.step, manifest.attempt)
    try:
        store.download({prefix + entry.name: partial / entry.name for entry in manifest.files})
    except MissingObject as error:
        return str(error)
    if reason := mismatch(partial, manifest):
        shutil.rmtree(partial)
        return reason
    partial.rename(destination)
    return None
