"""Publishes checkpoints in the background, so that uploads never hold up a training step."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Collection
from pathlib import Path

from training_image import checkpoints
from training_image.checkpoints import CheckpointId
from training_image.contract import RunKeys
from training_image.store import Store

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_MAX_BACKOFF_SECONDS = 10.0


class Publisher:
    """Uploads each checkpoint once the trainer has marked it complete. Failures are logged and tried again.

    If several are waiting only the newest is uploaded: the others would be deleted by retention right away.
    """

    def __init__(
        self,
        store: Store,
        keys: RunKeys,
        directory: Path,
        *,
        attempt: int,
        settings_sha256: str,
        resumed: checkpoints.Resume,
    ) -> None:
        self._store = store
        self._keys = keys
        self._directory = directory
        self._attempt = attempt
        self._settings_sha256 = settings_sha256
        self._refused: Collection[CheckpointId] = resumed.refused
        self.durable_step: int | None = resumed.manifest.step if resumed.manifest else None
        self._published: int | None = None
        self._finishing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, timeout: float) -> bool:
        """Publish what is complete by now and end; whether that was done within ``timeout`` seconds."""
        self._finishing.set()
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Publish nothing more: a newer attempt owns the run."""
        self._abandoned.set()
        self._finishing.set()

    def _run(self) -> None:
        backoff = _POLL_SECONDS
        while not self._abandoned.is_set():
            finishing = self._finishing.is_set()  # before looking: what was complete when finish() was called is seen
            local = checkpoints.complete_checkpoints(self._directory)
            step = max(local, default=None)
            if step is not None and (self._published is None or step > self._published):
                if self._publish(local[step], step):
                    backoff = _POLL_SECONDS
                else:
                    self._abandoned.wait(backoff)
                    backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            elif finishing:
                return
            else:
                self._finishing.wait(_POLL_SECONDS)

    def _publish(self, directory: Path, step: int) -> bool:
        try:
            checkpoints.publish(
                self._store,
                self._keys,
                directory,
                step=step,
                attempt=self._attempt,
                settings_sha256=self._settings_sha256,
            )
        except Exception as error:  # whatever it is, training goes on
            log.warning("Checkpoint of step %d could not be published, trying again: %s", step, error)
            return False
        self._published = self.durable_step = step
        log.info("Checkpoint of step %d is durable", step)
        self._clean(step)
        return True

    def _clean(self, newest: int) -> None:
        try:
            if not self._abandoned.is_set():
                checkpoints.prune(self._store, self._keys, self._refused)
        except Exception as error:  # old checkpoints cost cents; training goes on
            log.warning("Old checkpoints were not deleted: %s", error)
        for step, path in checkpoints.complete_checkpoints(self._directory).items():
            if step < newest:
                shutil.rmtree(path, ignore_errors=True)
