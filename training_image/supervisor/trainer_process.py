"""The trainer as a child process in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

WORK_DIR = "WORK_DIR"
_CHUNK = 65536
_LAST_OUTPUT_SECONDS = 5.0


class Tee:
    """Writes the same bytes to this process's stdout and to a file, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._lock = threading.Lock()

    def write_bytes(self, data: bytes) -> None:
        with self._lock:
            self._file.write(data)
            self._file.flush()
            with contextlib.suppress(OSError):  # a closed stdout must not end the run
                os.write(1, data)

    def write(self, text: str) -> None:
        """As ``logging.StreamHandler`` wants it."""
        self.write_bytes(text.encode())

    def tail(self, lines: int) -> list[str]:
        """The last lines that are not empty; a progress bar's carriage returns count as line ends."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _CHUNK))
            text = file.read().decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-lines:]


class TrainerProcess:
    """Starts ``command`` and calls ``on_exit`` with its exit code (negative: a signal's number), from a thread.

    ``work_dir`` is in its environment as ``WORK_DIR``: a command in the trainer's place has no other way to know it.
    """

    def __init__(self, command: Sequence[str], work_dir: Path, tee: Tee, on_exit: Callable[[int], None]) -> None:
        self._tee = tee
        self._on_exit = on_exit
        self._process = subprocess.Popen(
            command,
            env={**os.environ, WORK_DIR: str(work_dir)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, name="trainer-output", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name="trainer-exit", daemon=True).start()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101
        while data := os.read(self._process.stdout.fileno(), _CHUNK):
            self._tee.write_bytes(data)

    def _wait(self) -> None:
        code = self._process.wait()
        self.kill()  # workers it left behind would keep its output open
        self._reader.join(_LAST_OUTPUT_SECONDS)
        self._on_exit(code)
