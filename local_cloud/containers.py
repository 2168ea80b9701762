"""Containers of the process engine: a process in the unpacked image, with the environment a container would have."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from local_cloud import clock, processes
from local_cloud.images import EngineError, ImageConfig, inside

DEFAULT_STOP_SECONDS = 10
KILLED = 137
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "DESTDIR", *clock.VARIABLES)


@dataclass(frozen=True)
class RunOptions:
    """What ``docker run`` was told, beyond the image and its arguments."""

    name: str
    env: dict[str, str]
    remove: bool
    stop_seconds: int
    volumes: tuple[str, ...]
    entrypoint: str | None = None
    """In place of the image's, whose default arguments go with it."""


class Containers:
    """The containers of one engine, by name, kept under ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root / "containers"

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("*/container.json"))

    def meta(self, name: str) -> dict[str, object]:
        try:
            found: dict[str, object] = json.loads((self.root / name / "container.json").read_text())
        except FileNotFoundError:
            raise EngineError(f"Error response from daemon: No such container: {name}") from None
        return found

    def main_process(self, name: str) -> psutil.Process | None:
        meta = self.meta(name)
        with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError):
            process = psutil.Process(int(str(meta["pid"])))
            if processes.alive(process) and process.environ().get("HOSTNAME") == meta["id"]:
                return process
        return None

    def run(self, options: RunOptions, image: str, config: bytes, layer: bytes, arguments: list[str]) -> int:
        """Run in the foreground, passing SIGTERM and SIGINT on; the exit code, 128 + signal if one ended it."""
        directory = self.root / options.name
        if (directory / "container.json").exists():
            raise EngineError(
                f'docker: Error response from daemon: Conflict. The name "/{options.name}" is already in use.',
                125,
            )
        rootfs = directory / "rootfs"
        rootfs.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as archive:
            archive.extractall(rootfs, filter="data")
        for volume in options.volumes:
            Path(volume).mkdir(parents=True, exist_ok=True)
        try:
            return self._foreground(options, directory, image, ImageConfig.from_json(config), arguments)
        finally:
            if options.remove:
                shutil.rmtree(directory, ignore_errors=True)

    def _foreground(
        self, options: RunOptions, directory: Path, image: str, config: ImageConfig, arguments: list[str]
    ) -> int:
        container_id = secrets.token_hex(6)
        default = [*config.entrypoint, *(arguments or config.cmd)]
        command = [options.entrypoint, *arguments] if options.entrypoint else default
        rootfs = directory / "rootfs"
        workdir = inside(rootfs, config.working_dir)
        environment = container_environment(config, options.env, rootfs, container_id)
        stopped: list[int] = []
        child: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, frame: object) -> None:
            stopped.append(number)
            if child is not None and child.poll() is None:
                child.send_signal(number)

        for proxied in (signal.SIGTERM, signal.SIGINT):
            signal.signal(proxied, pass_on)
        program = shutil.which(command[0], path=environment["PATH"]) if command else None
        if program is None:
            detail = f'exec: "{command[0]}": executable file not found in $PATH' if command else "no command specified"
            raise EngineError(f"docker: Error response from daemon: {detail}", 127)
        child = subprocess.Popen(
            command, executable=program, cwd=workdir, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
        )
        meta = {"id": container_id, "pid": child.pid, "image": image, "stop_seconds": options.stop_seconds}
        (directory / "container.json").write_text(json.dumps(meta))
        for number in stopped:  # arrived before there was a process to pass it to
            child.send_signal(number)
        code = child.wait()
        processes.kill_marked("HOSTNAME", container_id)  # PID 1 is gone: the rest goes with it
        return code if code >= 0 else 128 - code

    def stop(self, name: str, seconds: int | None) -> None:
        """SIGTERM to the container's first process, SIGKILL after ``seconds``; returns when it is gone."""
        meta = self.meta(name)
        process = self.main_process(name)
        if process is None:
            return
        bound = seconds if seconds is not None else int(str(meta["stop_seconds"]))
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        deadline = time.monotonic() + bound
        while processes.alive(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        if processes.alive(process):
            processes.kill_marked("HOSTNAME", str(meta["id"]))

    def remove(self, name: str, force: bool) -> None:
        if self.main_process(name) is not None:
            if not force:
                raise EngineError(f"Error response from daemon: cannot remove container {name!r}: container is running")
            processes.kill_marked("HOSTNAME", str(self.meta(name)["id"]))
        shutil.rmtree(self.root / name)


def container_environment(
    config: ImageConfig, given: dict[str, str], rootfs: Path, container_id: str
) -> dict[str, str]:
    """The whole environment of a container's first process.

    PYTHONPATH makes the code as copied at build win over the checkout that the virtual environment points to. HOME lies
    in the container, so that no credentials file of the machine is read: credentials come from the box's IMDS alone.
    """
    home = inside(rootfs, "/root")
    home.mkdir(parents=True, exist_ok=True)
    return {
        **config.env,
        **given,
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(inside(rootfs, config.working_dir)),
        "HOME": str(home),
        "HOSTNAME": container_id,
    }
