"""One started service of an instance: its processes, its stop, and what ExecStopPost is told, as systemd does it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time

import psutil

from local_cloud import processes
from local_cloud.units import Service, UnitError

MARKER = "INVOCATION_ID"  # systemd's own variable; here it also stands in for the control group


class Running:
    """A service from start to the end of its ExecStopPost.

    Raises:
        UnitError: its program does not exist.
    """

    def __init__(self, unit: Service) -> None:
        self.unit = unit
        self.state = "activating" if unit.type == "oneshot" else "active"
        self.result = "success"
        self.finished = threading.Event()
        self._id = secrets.token_hex(16)
        self._stopping = threading.Event()
        self._main = self._spawn(unit.start)
        threading.Thread(target=self._watch, name=unit.name).start()

    @property
    def active(self) -> bool:
        return not self.finished.is_set()

    def _spawn(self, words: list[str], extra: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        if shutil.which(words[0]) is None:
            raise UnitError(
                f"{self.unit.name}: command {words[0]} is not executable: No such file or directory (203/EXEC)"
            )
        environment = {**os.environ, MARKER: self._id, **(extra or {})}
        return subprocess.Popen(words, cwd="/", env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def _watch(self) -> None:
        status = self._main.wait()
        self.state = "deactivating"
        asked_to_end = self._stopping.is_set() and status == -signal.SIGTERM
        if self.result == "success" and status and not asked_to_end:
            self.result = "exit-code" if status > 0 else "signal"
        self._end_group(signal.SIGTERM)
        if self.unit.stop_post:
            self._run_bounded(self.unit.stop_post, self._exit_variables(status))
        processes.kill_marked(MARKER, self._id)
        self.state = "inactive" if self.result == "success" else "failed"
        self.finished.set()

    def _exit_variables(self, status: int) -> dict[str, str]:
        name = signal.Signals(-status).name.removeprefix("SIG") if status < 0 else str(status)
        code = "killed" if status < 0 else "exited"
        return {"SERVICE_RESULT": self.result, "EXIT_CODE": code, "EXIT_STATUS": name}

    def _run_bounded(self, words: list[str], extra: dict[str, str] | None = None) -> None:
        try:
            process = self._spawn(words, extra)
            process.wait(self.unit.stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            self.result = "timeout"
        except UnitError as error:
            print(f"init: {error}", flush=True)

    def _end_group(self, number: signal.Signals) -> None:
        for process in processes.marked(MARKER, self._id):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        """ExecStop, SIGTERM to the whole group, SIGKILL when TimeoutStopSec is over; returns after ExecStopPost."""
        if self.state == "deactivating" or self._stopping.is_set():
            self.finished.wait()
        if not self.active:
            return
        self._stopping.set()
        if self.unit.stop and self._main.poll() is None:
            self._run_bounded(self.unit.stop)
        if self._main.poll() is None and self.result != "timeout":
            self._end_group(signal.SIGTERM)
            deadline = time.monotonic() + self.unit.stop_seconds
            while self._main.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        if self._main.poll() is None:
            self.result = "timeout"
            self._main.kill()
        self.finished.wait()
