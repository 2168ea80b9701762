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
from pathlib import Path

import psutil

from local_cloud import clock, processes
from local_cloud.images import EngineError

MARKER = "HOSTNAME"
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "DESTDIR", *clock.VARIABLES)


class Container:
    """The container ``name`` of the engine at ``root``, running or not."""

    def __init__(self, root: Path, name: str) -> None:
        self.name, self.directory = name, root / "containers" / name
        self._rootfs, self._meta = self.directory / "rootfs", self.directory / "container.json"

    def run(self, image: tuple[bytes, bytes], environment: dict[str, str], command: list[str], entrypoint: str) -> int:
        """Run in the foreground, passing SIGTERM and SIGINT on; it is removed afterwards, as with ``--rm``.

        Args:
            image: its config and layer.
            command: the arguments after the entry point.
            entrypoint: in place of the image's, unless empty.

        Returns:
            The exit code, 128 + signal if one ended it.

        Raises:
            EngineError: the name is in use, nothing is to be run, or the program does not exist.
        """
        try:
            self._rootfs.mkdir(parents=True)
        except FileExistsError:
            conflict = f'Conflict. The name "/{self.name}" is already in use.'
            raise EngineError(f"docker: Error response from daemon: {conflict}", 125) from None
        try:
            config, layer = json.loads(image[0])["config"], image[1]
            with tarfile.open(fileobj=io.BytesIO(layer), mode="r:gz") as archive:
                archive.extractall(self._rootfs, filter="data")
            words = [entrypoint, *command] if entrypoint else [*config["Entrypoint"], *command]
            if not words:
                raise EngineError("docker: Error response from daemon: no command specified.", 125)
            own = dict(item.split("=", 1) for item in config["Env"])
            return self._foreground(words, self._inside(config["WorkingDir"]), {**own, **environment})
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _foreground(self, words: list[str], workdir: Path, given: dict[str, str]) -> int:
        container_id = secrets.token_hex(6)
        environment = self._environment(given, workdir, container_id)
        program = shutil.which(words[0], path=environment["PATH"])
        if program is None:
            detail = f'exec: "{words[0]}": executable file not found in $PATH'
            raise EngineError(f"docker: Error response from daemon: {detail}", 127)
        stopped: list[int] = []
        child: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, frame: object) -> None:
            stopped.append(number)
            if child is not None and child.poll() is None:
                child.send_signal(number)

        for proxied in (signal.SIGTERM, signal.SIGINT):
            signal.signal(proxied, pass_on)
        child = subprocess.Popen(
            words, executable=program, cwd=workdir, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
        )
        self._meta.write_text(json.dumps({"id": container_id, "pid": child.pid}))
        for number in stopped:  # arrived before there was a process to pass it to
            child.send_signal(number)
        code = child.wait()
        processes.kill_marked(MARKER, container_id)  # PID 1 is gone: the rest goes with it
        return code if code >= 0 else 128 - code

    def _environment(self, given: dict[str, str], workdir: Path, container_id: str) -> dict[str, str]:
        """The whole environment of the first process.

        PYTHONPATH makes the code as copied at build win over the checkout that the virtual environment points to. HOME
        lies in the container, so that no credentials file of the machine is read: credentials come from the
        instance's IMDS.
        """
        return {
            **given,
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(workdir),
            "HOME": str(self._inside("/root")),
            MARKER: container_id,
        }

    def _inside(self, path: str) -> Path:
        """A directory of the container, made if the image has no file in it."""
        directory = self._rootfs / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def stop(self, seconds: int) -> None:
        """SIGTERM to the first process, SIGKILL to all after ``seconds``; returns when they are gone.

        Raises:
            EngineError: there is no such container.
        """
        try:
            meta = json.loads(self._meta.read_text())
        except FileNotFoundError:
            raise EngineError(f"Error response from daemon: No such container: {self.name}") from None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(meta["pid"])
            if process.environ().get(MARKER) == meta["id"]:
                process.terminate()
                deadline = time.monotonic() + seconds
                while processes.alive(process) and time.monotonic() < deadline:
                    time.sleep(0.05)
        processes.kill_marked(MARKER, meta["id"])
