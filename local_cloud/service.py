"""One started service of a box: its processes, its stop, and what ExecStopPost is told, as systemd does it."""

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
from local_cloud.units import Service, UnitError, command

MARKER = "INVOCATION_ID"  # systemd's own variable; here it also stands in for the control group


class Running:
    """A service from start to the end of its ExecStopPost."""

    def __init__(self, unit: Service) -> None:
        self.unit = unit
        self.state = "inactive"
        self.result = "success"
        self.finished = threading.Event()
        self._id = secrets.token_hex(16)
        self._main: subprocess.Popen[bytes] | None = None
        self._status = 0
        self._stopping = threading.Event()
        self._environment = {**os.environ, **unit.environment, MARKER: self._id}

    @property
    def active(self) -> bool:
        return self.state in {"activating", "active", "deactivating"}

    def _spawn(self, line: str, extra: dict[str, str] | None = None) -> tuple[bool, subprocess.Popen[bytes]]:
        environment = self._environment | (extra or {})
        tolerant, words = command(line, environment)
        if shutil.which(words[0], path=environment["PATH"]) is None:
            raise UnitError(
                f"{self.unit.name}: command {words[0]} is not executable: No such file or directory (203/EXEC)"
            )
        return tolerant, subprocess.Popen(
            words, cwd="/", env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def start(self) -> None:
        """Spawn the first ExecStart and watch it from a thread.

        Raises:
            UnitError: the program does not exist.
        """
        self.state = "activating" if self.unit.type == "oneshot" else "active"
        tolerant, self._main = self._spawn(self.unit.exec_start[0])
        threading.Thread(target=self._watch, args=(tolerant, self._main), name=self.unit.name).start()

    def _watch(self, tolerant: bool, main: subprocess.Popen[bytes]) -> None:
        for line in [None, *self.unit.exec_start[1:]]:
            if line is not None:
                tolerant, main = self._spawn(line)
                self._main = main
            self._status = main.wait()
            if self._status and not tolerant:
                break
        self._conclude(tolerant)

    def _conclude(self, tolerant: bool) -> None:
        self.state = "deactivating"
        stopped = self._stopping.is_set()
        if (
            self.result == "success"
            and self._status
            and not tolerant
            and not (stopped and self._status == -signal.SIGTERM)
        ):
            self.result = "exit-code" if self._status > 0 else "signal"
        self._end_group(signal.SIGTERM)
        for line in self.unit.exec_stop_post:
            self._run_bounded(line, self.exit_variables())
        processes.kill_marked(MARKER, self._id)
        self.state = "inactive" if self.result == "success" else "failed"
        self.finished.set()

    def exit_variables(self) -> dict[str, str]:
        killed = self._status < 0
        status = signal.Signals(-self._status).name.removeprefix("SIG") if killed else str(self._status)
        return {"SERVICE_RESULT": self.result, "EXIT_CODE": "killed" if killed else "exited", "EXIT_STATUS": status}

    def _run_bounded(self, line: str, extra: dict[str, str]) -> None:
        try:
            _, process = self._spawn(line, extra)
            process.wait(None if self.unit.stop_seconds == float("inf") else self.unit.stop_seconds)
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
        main = self._main
        if main is None or not self.active:
            return
        if self.state == "deactivating" or self._stopping.is_set():
            self.finished.wait()
            return
        self._stopping.set()
        for line in self.unit.exec_stop:
            if main.poll() is None:
                self._run_bounded(line, {"MAINPID": str(main.pid)})
        if main.poll() is None and self.result != "timeout":
            self._end_group(signal.SIGTERM)
            deadline = time.monotonic() + self.unit.stop_seconds
            while main.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
        if main.poll() is None:
            self.result = "timeout"
            main.kill()
        self.finished.wait()
