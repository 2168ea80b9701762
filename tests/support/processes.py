"""Looking at other processes. Any of them may end between the look and the question: that one is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import psutil

from local_cloud import processes


def command(process: psutil.Process) -> list[str]:
    """Its words; none for a process that is gone."""
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def listening(of: Iterable[psutil.Process]) -> set[str]:
    """The addresses that they listen on."""
    found = set()
    for process in of:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip)
    return found


def supervisors(box: str) -> list[psutil.Process]:
    """Of the instance whose directory is ``instance``."""
    return [
        process
        for process in processes.marked("DESTDIR", box)
        if "training_image.supervisor" in " ".join(command(process))
    ]


def stopped(of: Iterable[psutil.Process]) -> Iterator[psutil.Process]:
    """Those that stand still."""
    for process in of:
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_STOPPED:
                yield process


def kill_with_children(pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.Error):
                process.kill()
