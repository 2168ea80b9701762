"""Finding and ending the processes of an instance or a container by a marker in their environment.

A marker survives what a process id does not: a killed server, a re-parented child, a new session.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import psutil


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Live processes whose environment holds ``variable=value``, this process excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable) == value and alive(process):
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def kill(processes: Iterable[psutil.Process], wait_seconds: float = 5.0) -> None:
    """SIGKILL all, and wait until they are gone (zombies count as gone: their parent reaps them)."""
    targets = list(processes)
    for process in targets:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + wait_seconds
    while any(alive(process) for process in targets) and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_marked(variable: str, value: str) -> None:
    """Kill until none is left: a process may fork between the look and the kill."""
    for _ in range(10):
        found = marked(variable, value)
        if not found:
            return
        kill(found)
