"""Checkpoints in S3: a checkpoint is a prefix with a ``MANIFEST.json``, written last, that the files agree with.

Without a manifest that verifies a checkpoint does not exist, whatever else lies under its prefix. A file that is as it
was in the checkpoint before (tokenizer, configuration) is stored once, apart, and outlives them all.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from training_image.core.contract import COMPLETE_MARKER, MANIFEST_NAME, RunKeys
from training_image.core.store import MissingObject, Store

KEEP = 2
"""Verified checkpoints of a run that retention never touches: the newest, and the one to fall back to."""
FORMAT: Final = 2
"""Of the manifest; 1 knew no shared files."""

log = logging.getLogger(__name__)
_HASHING = 2
"""Files at a time: a checkpoint has two large ones, adapter and optimizer."""
_LOCAL_NAME = re.compile(r"checkpoint-(\d+)")
_KEY_TAIL = re.compile(r"step-(\d+)-a(\d+)/(.+)")


@dataclass(frozen=True, order=True)
class CheckpointId:
    """Which checkpoint of a run; the order is that of progress, a later attempt first among equal steps."""

    step: int
    attempt: int


class FileEntry(BaseModel):
    """One file of a checkpoint.

    ``name`` is relative to it, ``size`` in bytes; a ``shared`` one lies at ``RunKeys.shared`` instead of below it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int = Field(ge=0)
    sha256: str
    shared: bool = False

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError("leaves the checkpoint")
        return name


class _Format(BaseModel):
    """The one thing that a manifest of any version says."""

    schema_version: int = Field(alias="schema")


class Manifest(BaseModel):
    """What a published checkpoint consists of, and whose it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal[1, 2] = Field(default=FORMAT, alias="schema")
    run_id: str
    step: int = Field(ge=0)
    attempt: int = Field(ge=1)
    settings_sha256: str
    files: tuple[FileEntry, ...] = Field(min_length=1)

    @property
    def id(self) -> CheckpointId:
        return CheckpointId(self.step, self.attempt)

    def key(self, entry: FileEntry) -> str:
        """Where one of its files lies."""
        return _key(RunKeys(self.run_id), self.id, entry)


def _key(keys: RunKeys, checkpoint: CheckpointId, entry: FileEntry) -> str:
    if entry.shared:
        return keys.shared(entry.sha256, entry.name)
    return keys.checkpoint(checkpoint.step, checkpoint.attempt) + entry.name


@dataclass(frozen=True)
class Resume:
    """What to resume from (None: start afresh), and the published checkpoints that turned out to be unusable."""

    manifest: Manifest | None
    refused: frozenset[CheckpointId]


# --- decisions ----------------------------------------------------------------------------------------------------
def parse(body: bytes | None) -> Manifest | str:
    """The manifest, or why there is none."""
    if body is None:
        return "it has no manifest: its upload was never finished"
    try:
        if (newer := _Format.model_validate_json(body).schema_version) > FORMAT:
            return f"its format {newer} is newer than this image's ({FORMAT})"
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        return f"its manifest is unreadable: {error.errors()[0]['msg']}"


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


def expendable(
    published: Collection[CheckpointId], verified: Collection[CheckpointId], refused: Collection[CheckpointId]
) -> list[CheckpointId]:
    """What retention deletes, oldest first: all older than the last two that this attempt has uploaded or resumed from.

    Those of earlier attempts that nobody has read do not count, because they may be damaged. Those that were found
    damaged stay as evidence.
    """
    kept = sorted(verified)[-KEEP:]
    return sorted(item for item in set(published) - set(refused) if len(kept) == KEEP and item < kept[0])


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


def describe(directory: Path) -> Iterator[FileEntry]:
    """All files below ``directory``, the smallest first, each as soon as its checksum is known."""
    sizes = {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}

    def entry(path: Path) -> FileEntry:
        return FileEntry(name=path.relative_to(directory).as_posix(), size=sizes[path], sha256=file_sha256(path))

    with ThreadPoolExecutor(_HASHING) as pool:
        yield from pool.map(entry, sorted(sizes, key=lambda path: (sizes[path], path)))


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
def publish(
    store: Store,
    keys: RunKeys,
    directory: Path,
    *,
    step: int,
    attempt: int,
    settings_sha256: str,
    previous: Manifest | None,
) -> Manifest:
    """Upload a complete checkpoint, its manifest last; returns the manifest.

    A file that ``previous`` had too is taken not to change any more, and is shared from now on.

    Args:
        previous: the one that was published, or resumed from, before this one.
    """
    before = {} if previous is None else {(entry.name, entry.sha256): entry.shared for entry in previous.files}
    is_there = before if previous is not None and previous.run_id == keys.run_id else {}
    files: list[FileEntry] = []

    def lacking() -> Iterator[tuple[str, Path]]:
        for found in describe(directory):  # each while those before it are on their way
            entry = found.model_copy(update={"shared": (found.name, found.sha256) in before})
            files.append(entry)
            if not is_there.get((entry.name, entry.sha256)):
                yield _key(keys, CheckpointId(step, attempt), entry), directory / entry.name

    store.upload(lacking())
    manifest = Manifest(
        run_id=keys.run_id,
        step=step,
        attempt=attempt,
        settings_sha256=settings_sha256,
        files=tuple(sorted(files, key=lambda entry: entry.name)),
    )
    store.put(
        keys.checkpoint(step, attempt) + MANIFEST_NAME, manifest.model_dump_json(by_alias=True, indent=1).encode()
    )
    return manifest


def published(store: Store, keys: RunKeys) -> list[CheckpointId]:
    """All checkpoints of the run that have a manifest."""
    return [checkpoint for checkpoint, names in _stored(store, keys).items() if MANIFEST_NAME in names]


def _stored(store: Store, keys: RunKeys) -> dict[CheckpointId, set[str]]:
    """The names of what lies under the prefix of each checkpoint, finished or not."""
    found: dict[CheckpointId, set[str]] = {}
    for item in store.list(keys.checkpoints):
        if match := _KEY_TAIL.fullmatch(item.key.removeprefix(keys.checkpoints)):
            found.setdefault(CheckpointId(int(match[1]), int(match[2])), set()).add(match[3])
    return found


def prune(store: Store, keys: RunKeys, verified: Collection[CheckpointId], refused: Collection[CheckpointId]) -> None:
    """Delete what retention no longer keeps, manifests first: a half-deleted checkpoint must not look like one.

    Shared files stay as long as the run's checkpoints do, until the bucket expires them.
    """
    stored = _stored(store, keys)
    for old in expendable([item for item, names in stored.items() if MANIFEST_NAME in names], verified, refused):
        prefix = keys.checkpoint(old.step, old.attempt)
        store.delete([prefix + MANIFEST_NAME])
        store.delete([prefix + name for name in stored[old]])


def fetch_newest(store: Store, keys: RunKeys, settings_sha256: str, destination: Path) -> Resume:
    """Put the newest published checkpoint that verifies into ``destination``, which must not exist yet.

    Unusable ones are logged with the reason and the next older is tried. An outage raises: it says nothing about a
    checkpoint, and starting afresh because of it would throw work away.
    """
    refused: set[CheckpointId] = set()
    candidates: list[Manifest] = []
    for found in _stored(store, keys):
        manifest = parse(store.read(keys.checkpoint(found.step, found.attempt) + MANIFEST_NAME))
        if isinstance(manifest, str):
            _refuse(found, manifest, refused)
        elif reason := foreign(manifest, found, keys.run_id, settings_sha256):
            _refuse(found, reason, refused)
        else:
            candidates.append(manifest)
    for manifest in resume_order(candidates):
        reason = _fetch(store, manifest, destination)
        if reason is None:
            return Resume(manifest, frozenset(refused))
        _refuse(manifest.id, reason, refused)
    return Resume(None, frozenset(refused))


def _refuse(checkpoint: CheckpointId, reason: str, refused: set[CheckpointId]) -> None:
    log.warning("Checkpoint of step %d, attempt %d is refused: %s", checkpoint.step, checkpoint.attempt, reason)
    refused.add(checkpoint)


def _fetch(store: Store, manifest: Manifest, destination: Path) -> str | None:
    """Download one checkpoint to ``destination``; why it is unusable, or None."""
    partial = destination.with_name(destination.name + ".partial")
    try:
        store.download({manifest.key(entry): partial / entry.name for entry in manifest.files})
        reason = mismatch(partial, manifest)
    except MissingObject as error:
        reason = str(error)
    if reason is None:
        partial.rename(destination)
    else:
        shutil.rmtree(partial)
    return reason
