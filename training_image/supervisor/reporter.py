"""What others see of an attempt while it runs: heartbeat, metrics, log and timeline, written in the background."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training_image.core.codec import UnreadableError
from training_image.core.contract import Phase, RunKeys, State, WorkDir
from training_image.core.records import Heartbeat, Status, now
from training_image.core.store import Store

log = logging.getLogger(__name__)
_TICK_SECONDS = 1.0
_HEARTBEATS_PER_UPLOAD = 6


def read_status(work: WorkDir) -> Status:
    """The trainer's latest word; empty before its first, and while it is none that can be read."""
    try:
        return Status.parse(work.status.read_bytes())
    except (OSError, UnreadableError):
        return Status()


def metric_files(work: WorkDir) -> list[Path]:
    """What of the metrics is uploaded; files that are still being written have other suffixes."""
    return [path for path in work.metrics.glob("*") if path.suffix in (".json", ".jsonl")]


def timed_phase(phase: Phase, step: int | None, resumed_from_step: int | None) -> str:
    """The first step is a phase of its own, because things are still loaded and compiled during it."""
    return "first_step" if phase is Phase.TRAINING and (step or 0) <= (resumed_from_step or 0) else phase


def host_phases(boot: Path, up_since: float) -> list[tuple[str, float, float]]:
    """What user data did before the container (``WorkDir.boot``): phase, beginning, end; in order of their ends.

    Nothing if there is no such file, or if the machine was rebooted since, i.e. runs only since ``up_since``: then it
    tells of the attempt before.
    """
    try:
        lines = [json.loads(line) for line in boot.read_text().splitlines()]
        phases = [(str(line["phase"]), float(line["from"]), float(line["to"])) for line in lines]
    except (OSError, ValueError, KeyError, TypeError):  # a timeline is not worth a training
        return []
    phases.sort(key=lambda phase: phase[2])
    return phases if phases and phases[-1][2] > up_since else []


class Timeline:
    """Which phase began when. Times are epoch seconds.

    Args:
        host: what was done before the container was started; some of it at the same time.
    """

    def __init__(self, booted_at: float, host: Sequence[tuple[str, float, float]] = ()) -> None:
        self._booted_at = booted_at
        self._host = host
        self._entered: list[tuple[str, float]] = []

    def enter(self, phase: str, at: float) -> None:
        if not self._entered or self._entered[-1][0] != phase:
            self._entered.append((phase, at))

    def as_json(self, at: float) -> dict[str, Any]:
        begun = [*self._entered]
        if self._host:
            begun.insert(0, ("container_start", self._host[-1][2]))
        ends = [start for _, start in begun[1:]] + [at]
        own = ((phase, start, end) for (phase, start), end in zip(begun, ends, strict=True))
        phases = [
            {"phase": phase, "started_at": round(start, 1), "seconds": round(end - start, 1)}
            for phase, start, end in (*self._host, *own)
        ]
        return {"booted_at": self._booted_at, "phases": phases}


class Reporter:
    """Reports one attempt until ``close`` or ``abandon``. Failures to write are logged and never end training."""

    def __init__(
        self,
        store: Store,
        keys: RunKeys,
        work: WorkDir,
        *,
        attempt: int,
        instance_id: str | None,
        booted_at: float,
        interval: float,
        log_file: Path,
        durable_step: Callable[[], int | None],
    ) -> None:
        self._store = store
        self._keys = keys
        self._work = work
        self._attempt = attempt
        self._instance_id = instance_id
        self._interval = interval
        self._log_file = log_file
        self._durable_step = durable_step
        self.resumed_from_step: int | None = None
        self._phase = Phase.DOWNLOADING
        up_since = time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        self._timeline = Timeline(booted_at, host_phases(work.boot, up_since))
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._ended = threading.Event()
        self._abandoned = False
        self._lock = threading.Lock()  # heartbeats and uploads of two threads must not overtake each other
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def enter(self, phase: Phase) -> None:
        """The supervisor enters a phase; from LOADING on the trainer says which one it is."""
        self._phase = phase
        self._timeline.enter(phase, time.time())

    def abandon(self) -> None:
        """Write nothing more: a newer attempt owns the run."""
        self._abandoned = True
        self._ended.set()

    def close(self, state: State) -> None:
        """Write everything once more, with where the run now stands."""
        self._ended.set()
        if state is State.ENDED:
            self.enter(Phase.ENDED)
        self._safely(self._upload_files)
        self._safely(lambda: self._beat(state))

    def flush(self) -> None:
        """Upload log, metrics and timeline now, before the outcome makes others read them."""
        self._safely(self._upload_files)

    def _run(self) -> None:
        beats, next_beat = 0, time.monotonic()
        while not self._ended.is_set():
            step = read_status(self._work).step
            self._timeline.enter(timed_phase(self._current_phase(), step, self.resumed_from_step), time.time())
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._interval
                self._safely(lambda: self._beat(State.RUNNING))
                if beats % _HEARTBEATS_PER_UPLOAD == 0:
                    self._safely(self._upload_files)
                beats += 1
            self._ended.wait(min(_TICK_SECONDS, self._interval))

    def _current_phase(self) -> Phase:
        if self._phase is Phase.LOADING:
            return read_status(self._work).phase or self._phase
        return self._phase

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            with self._lock:
                if not self._abandoned:
                    write()
        except Exception as error:  # a lost report must not cost a training
            log.warning("Progress could not be written: %s", error)

    def _beat(self, state: State) -> None:
        if state is State.RUNNING and self._ended.is_set():
            return  # close() has said the last word
        status = read_status(self._work)
        beat = Heartbeat(
            **{**vars(status), "phase": self._current_phase(), "at": now()},
            state=state,
            attempt=self._attempt,
            durable_step=self._durable_step(),
            resumed_from_step=self.resumed_from_step,
            instance_id=self._instance_id,
        )
        self._store.put_json(self._keys.heartbeat, beat.to_json())

    def _upload_files(self) -> None:
        """Files are read whole before they are sent: they grow while they are uploaded."""
        attempt = self._keys.attempt(self._attempt)
        files = {attempt + "training.log": self._log_file}
        files |= {self._keys.metrics + path.name: path for path in metric_files(self._work)}
        for key, path in files.items():
            stat = path.stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if self._uploaded.get(key) != version:
                self._store.put(key, path.read_bytes())
                self._uploaded[key] = version
        self._store.put_json(attempt + "timeline.json", self._timeline.as_json(time.time()))
