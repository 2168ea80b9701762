"""Publishes checkpoints in the background, so that uploads never hold up a training step."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

from training_image.core.contract import COMPLETE_MARKER, RunKeys
from training_image.core.store import Store
from training_image.storage import checkpoints

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_MAX_BACKOFF_SECONDS = 10.0


class Publisher:
    """Uploads each checkpoint once the trainer has marked it complete. Failures are logged and tried again.

    If several are waiting only the newest is uploaded: the others would be deleted by retention right away. Those
    that are uploaded or superseded are deleted here. So one on the disk still waits, and the trainer then saves less
    often.
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
        self._refused = resumed.refused
        self._previous = resumed.manifest
        self._verified = [item.id for item in [resumed.manifest] if item is not None and item.run_id == keys.run_id]
        self.durable_step: int | None = resumed.manifest.step if resumed.manifest else None
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
            waiting = checkpoints.complete_checkpoints(self._directory)
            if waiting and self._publish(waiting):
                backoff = _POLL_SECONDS
            elif waiting:
                self._abandoned.wait(backoff)
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            elif finishing:
                return
            else:
                self._finishing.wait(_POLL_SECONDS)

    def _publish(self, waiting: dict[int, Path]) -> bool:
        """Make the newest durable; whether that was done."""
        step = max(waiting)
        try:
            for path in (path for older, path in waiting.items() if older < step):
                _remove(path)
            self._previous = checkpoints.publish(
                self._store,
                self._keys,
                waiting[step],
                step=step,
                attempt=self._attempt,
                settings_sha256=self._settings_sha256,
                previous=self._previous,
            )
            self.durable_step = step
            _remove(waiting[step])
        except Exception as error:  # whatever it is, training goes on
            log.warning("Checkpoint of step %d could not be published, trying again: %s", step, error)
            return False
        log.info("Checkpoint of step %d is durable", step)
        self._verified.append(self._previous.id)
        self._prune()
        return True

    def _prune(self) -> None:
        try:
            if not self._abandoned.is_set():
                checkpoints.prune(self._store, self._keys, self._verified, self._refused)
        except Exception as error:  # old checkpoints cost cents; training goes on
            log.warning("Old checkpoints were not deleted: %s", error)


def _remove(checkpoint: Path) -> None:
    """Delete it from the disk, the marker first: half of it must not look complete."""
    (checkpoint / COMPLETE_MARKER).unlink()
    shutil.rmtree(checkpoint, ignore_errors=True)
