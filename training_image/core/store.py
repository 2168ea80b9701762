"""S3 as a run uses it: small JSON objects, create-once objects, and files in parallel."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError
from s3transfer.subscribers import BaseSubscriber

_ABSENT = {"NoSuchKey", "404"}
_REFUSED = {"AccessDenied", "403"}
_EXISTS = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "409"}
_CREATE_TRIES = 5
_CONCURRENCY = 20
"""S3 requests at a time: twice the AWS CLI's, because with small files the round trips cost most."""
_DELETE_BATCH = 1000


class MissingObject(Exception):
    """An object that was expected is not there."""


@dataclass(frozen=True)
class StoredObject:
    """One line of a listing; ``size`` in bytes."""

    key: str
    size: int
    modified: datetime
    etag: str

    def is_at(self, path: Path) -> bool:
        """Whether ``path`` looks like this object: of its size, and not older than it (S3 counts in whole seconds)."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        return found.st_size == self.size and found.st_mtime >= int(self.modified.timestamp())


def remove_others(folder: Path, kept: Collection[Path]) -> None:
    """Delete every file below ``folder`` that is not in ``kept``: what S3 no longer has must not be trained on."""
    for path in folder.rglob("*"):
        if path not in kept and not path.is_dir():
            path.unlink()


class _Known(BaseSubscriber):  # type: ignore[misc] # s3transfer is not typed
    """Tells the transfer what the listing said, which saves a request per file."""

    def __init__(self, item: StoredObject) -> None:
        self._item = item

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._item.size)
        future.meta.provide_object_etag(self._item.etag)


def s3_client() -> Any:
    """A client that gives up within about a minute: a lost S3 must not outlast an instance's two minutes' notice."""
    retries = {"mode": "standard", "total_max_attempts": 4}
    pool = 2 * _CONCURRENCY  # a transfer's, and those of all who work beside it
    config = Config(connect_timeout=5, read_timeout=20, retries=retries, max_pool_connections=pool)
    return boto3.client("s3", config=config)


def error_code(error: ClientError) -> str:
    """The service's name of the error, e.g. ``AccessDenied``."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


class Store:
    """One bucket. A refusal or an outage never reads as absent: it raises botocore's exception.

    S3 answers 403 for a key that does not exist if the caller's permission to list is limited to prefixes, so after a
    403 a listing of that very key decides.
    """

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self.bucket = bucket

    def elsewhere(self, bucket: str) -> Store:
        """Another bucket by the same client."""
        return Store(self._client, bucket)

    def read(self, key: str) -> bytes | None:
        """The object's bytes, or None if it does not exist."""
        try:
            return bytes(self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except ClientError as error:
            if self._is_absent(key, error):
                return None
            raise

    def read_json(self, key: str) -> Any:
        """The object parsed as JSON, or None if it does not exist."""
        body = self.read(key)
        return None if body is None else json.loads(body)

    def put(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, _json(value))

    def create_json(self, key: str, value: Any) -> bool:
        """Write the object unless it exists; whether it is ours.

        A request that was repeated after a lost answer meets its own object: that counts as ours.
        """
        body = _json(value)
        for _ in range(_CREATE_TRIES):
            try:
                self._client.put_object(Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*")
                return True
            except ClientError as error:
                if error_code(error) in _EXISTS:
                    return self.read(key) == body
                if error_code(error) not in _CONFLICT:
                    raise
        raise RuntimeError(f"s3://{self.bucket}/{key} is being written by others all the time.")

    def update(self, key: str, change: Callable[[bytes | None], Any]) -> None:
        """Change a JSON object that others may change at the same time. ``change`` gets its bytes, or None where there
        is none, and returns the new value; it is called again if somebody else came first or an answer was lost."""
        for _ in range(_CREATE_TRIES):
            condition = {"IfNoneMatch": "*"}
            body: bytes | None = None
            try:
                found = self._client.get_object(Bucket=self.bucket, Key=key)
                condition, body = {"IfMatch": found["ETag"]}, bytes(found["Body"].read())
            except ClientError as error:
                if not self._is_absent(key, error):
                    raise
            if self._put_if(key, _json(change(body)), condition):
                return
        raise RuntimeError(f"s3://{self.bucket}/{key} is being written by others all the time.")

    def replace_json(self, key: str, expected: bytes, value: Any) -> bool:
        """Write the object if it still is ``expected``; whether it is ours, as for ``create_json``."""
        found = self._client.get_object(Bucket=self.bucket, Key=key)
        if found["Body"].read() != expected:
            return False
        return self._put_if(key, _json(value), {"IfMatch": found["ETag"]}) or self.read(key) == _json(value)

    def _put_if(self, key: str, body: bytes, condition: dict[str, str]) -> bool:
        """Whether the object was as ``condition`` says, and has been written."""
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)
            return True
        except ClientError as error:
            if error_code(error) not in _EXISTS | _CONFLICT | _ABSENT:
                raise
            return False

    def folders(self, prefix: str) -> list[str]:
        """What lies directly under ``prefix``, each with its closing slash."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
        return [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]

    def list(self, prefix: str) -> list[StoredObject]:
        """All objects under ``prefix``, in key order."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [
            StoredObject(item["Key"], item["Size"], item["LastModified"], item["ETag"])
            for page in pages
            for item in page.get("Contents", [])
        ]

    def upload(self, files: Iterable[tuple[str, Path]]) -> None:
        """Upload each ``(key, path)`` in parallel, as the iterable yields it.

        S3 checks the SDK's CRC32 of the transfer; ``checkpoints`` adds its own SHA-256, from disk to disk.
        """
        with create_transfer_manager(self._client, TransferConfig()) as manager:
            futures = [manager.upload(str(path), self.bucket, key) for key, path in files]
            for future in futures:
                future.result()

    def download(self, files: Mapping[str, Path]) -> None:
        """Download ``{key: path}`` in parallel.

        Raises:
            MissingObject: one of them does not exist.
        """
        self._download({key: (path, ()) for key, path in files.items()})

    def _download(self, files: Mapping[str, tuple[Path, Sequence[_Known]]]) -> None:
        for folder in {path.parent for path, _ in files.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        with create_transfer_manager(self._client, TransferConfig(max_concurrency=_CONCURRENCY)) as manager:
            futures = {
                key: manager.download(self.bucket, key, str(path), subscribers=known)
                for key, (path, known) in files.items()
            }
            for key, future in futures.items():
                try:
                    future.result()
                except ClientError as error:
                    if self._is_absent(key, error):
                        raise MissingObject(f"s3://{self.bucket}/{key} does not exist") from error
                    raise

    def sync(self, files: Mapping[StoredObject, Path]) -> None:
        """Download what is not there yet, as ``aws s3 sync`` would leave it: with the object's own time.

        Raises:
            MissingObject: one of them does not exist any more.
        """
        lacking = {item: path for item, path in files.items() if not item.is_at(path)}
        self._download({item.key: (path, (_Known(item),)) for item, path in lacking.items()})
        for item, path in lacking.items():
            os.utime(path, times=(item.modified.timestamp(),) * 2)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already do not matter.

        Raises:
            PermissionError: S3 refused some of them.
        """
        todo = list(keys)
        for start in range(0, len(todo), _DELETE_BATCH):
            batch = [{"Key": key} for key in todo[start : start + _DELETE_BATCH]]
            answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
            if answer.get("Errors"):
                raise PermissionError(f"S3 did not delete {answer['Errors'][0]}")

    def _is_absent(self, key: str, error: ClientError) -> bool:
        """Whether ``error``, met when reading ``key``, means that it does not exist; raises if that cannot be known."""
        if error_code(error) in _REFUSED:
            return all(item.key != key for item in self.list(key))
        return error_code(error) in _ABSENT
