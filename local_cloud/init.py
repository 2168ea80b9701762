"""An instance's first process: runs the user data, is its systemd, and shuts the instance down.

``python -m local_cloud.init BOX_DIRECTORY`` with the instance's environment. SIGTERM is the hypervisor's power button:
an orderly shutdown. When the process ends, the instance is terminated. It also ends when the server that started it
is gone, so that a killed local cloud leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from local_cloud import docker_engine, processes
from local_cloud.service import Running
from local_cloud.units import UnitError, parse_service, parse_timer

USER_DATA = "var/lib/cloud/instance/user-data"
FINAL_SECONDS = 5.0


class Init:
    """Units, timers and the shutdown of one instance."""

    def __init__(self, box: Path) -> None:
        self.box = box
        self.units = box / "etc/systemd/system"
        self.services: dict[str, Running] = {}
        self.timers: dict[str, threading.Timer] = {}
        self.lock = threading.RLock()
        self.shutting_down = threading.Event()
        self.user_data: subprocess.Popen[bytes] | None = None

    # --- units ----------------------------------------------------------------------------------------------------
    def _read(self, name: str) -> str:
        try:
            return (self.units / name).read_text()
        except FileNotFoundError:
            raise UnitError(f"Unit {name} not found.") from None

    def start(self, name: str) -> None:
        """Start a service or arm a timer; an active one is left alone. Blocks for a oneshot.

        Raises:
            UnitError: unknown or refused unit, or its start failed.
        """
        if self.shutting_down.is_set():
            raise UnitError(f"Failed to start {name}: Transaction is destructive (shutdown is in progress).")
        if name.endswith(".timer"):
            self._arm(name)
            return
        with self.lock:
            running = self.services.get(name)
            if running is None or not running.active:
                running = self.services[name] = Running(parse_service(name, self._read(name)))
        if running.unit.type == "oneshot":
            running.finished.wait()
            if running.result != "success":
                raise UnitError(f"Job for {name} failed.")

    def _arm(self, name: str) -> None:
        unit = name.removesuffix(".timer") + ".service"
        at = parse_timer(name, self._read(name))
        parse_service(unit, self._read(unit))
        with self.lock:
            self._disarm(name)
            left = (at - datetime.now(UTC)).total_seconds()
            timer = self.timers[name] = threading.Timer(max(0.0, left), self._fire, [unit])
            timer.daemon = True
            timer.start()

    def _disarm(self, name: str) -> None:
        with self.lock:
            if timer := self.timers.pop(name, None):
                timer.cancel()

    def _fire(self, unit: str) -> None:
        try:
            self.start(unit)
        except UnitError as error:
            print(f"init: {error}", flush=True)

    def stop(self, name: str) -> None:
        if name.endswith(".timer"):
            self._disarm(name)
            return
        if (running := self.services.get(name)) is not None:
            running.stop()
        elif not (self.units / name).exists():
            raise UnitError(f"Failed to stop {name}: Unit {name} not loaded.")

    def state(self, name: str) -> str:
        if name.endswith(".timer"):
            return "active" if name in self.timers and self.timers[name].is_alive() else "inactive"
        running = self.services.get(name)
        return running.state if running else "inactive"

    # --- requests -------------------------------------------------------------------------------------------------
    def handle(self, verb: str, flags: set[str], names: list[str]) -> tuple[int, str]:
        try:
            if verb == "poweroff":
                threading.Thread(target=self.shut_down, name="shutdown").start()
                return 0, ""
            if verb == "is-active":
                states = [self.state(name) for name in names]
                return (0 if "active" in states else 3), "\n".join(states)
            for name in names:
                if verb == "enable":
                    self._read(name)
                if verb == "stop":
                    self.stop(name)
                elif verb == "start" or "--now" in flags:
                    self.start(name)
        except UnitError as error:
            return (5 if "not found" in str(error) or "not loaded" in str(error) else 1), str(error)
        return 0, ""

    def serve(self) -> None:
        key = secrets.token_bytes(16)
        listener = Listener(("127.0.0.1", 0), authkey=key)
        address = self.box / "run" / "init.address"
        address.touch(mode=0o600)
        address.write_text(f"{listener.address[1]} {key.hex()}")
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: Listener) -> None:
        while True:
            with contextlib.suppress(Exception):  # a caller that was killed half way
                threading.Thread(target=self._answer, args=(listener.accept(),), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError), connection:
            verb, flags, names = connection.recv()
            connection.send(self.handle(verb, flags, names))

    # --- boot and shutdown ----------------------------------------------------------------------------------------
    def boot(self) -> None:
        """Run the user data, as cloud-init does: once, by its own interpreter line."""
        with (self.box / "var/log/cloud-init-output.log").open("ab") as log:
            self.user_data = subprocess.Popen(
                [str(self.box / USER_DATA)], cwd=self.box, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self.user_data.wait, daemon=True).start()

    def shut_down(self) -> None:
        """Stop all units with their timeouts, then everything else, then this process."""
        if self.shutting_down.is_set():
            return
        self.shutting_down.set()
        (self.box / "run" / "shutting-down").touch()
        for timer in list(self.timers.values()):
            timer.cancel()
        stops = [threading.Thread(target=running.stop) for running in list(self.services.values())]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        self._end_the_rest()
        os._exit(0)

    def _end_the_rest(self) -> None:
        rest = processes.marked("DESTDIR", str(self.box))
        for process in rest:
            with contextlib.suppress(Exception):
                process.terminate()
        deadline = time.monotonic() + FINAL_SECONDS
        while any(processes.alive(process) for process in rest) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes.kill_marked("DESTDIR", str(self.box))


def main() -> None:
    box, parent = Path(sys.argv[1]), os.getppid()
    init = Init(box)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=init.shut_down).start())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    init.serve()
    init.boot()
    while os.getppid() == parent:
        time.sleep(0.5)
    processes.kill_marked("DESTDIR", str(box))
    docker_engine.remove_containers(box.parents[1], box)


if __name__ == "__main__":
    main()
