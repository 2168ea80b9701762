"""The client's side of the embedded cloud: start it, reach it, stop it.

State lies in ``<root>/.lab/local/``: ``server.log``, ``server.json`` (pid and port), ``boxes/``, ``docker/``.
Everything listens on 127.0.0.1, on ports chosen free, so that two clones run side by side.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import boto3
import psutil
from botocore.config import Config

from local_cloud import docker_engine, faults, processes
from local_cloud.docker import STATE_VARIABLE
from training_image.core.errors import UserError

ACCOUNT, REGION = "000000000000", "us-east-1"
SHIMS = Path(__file__).parent / "shims"
SERVER_MARKER = "LAB_LOCAL_SERVER"
EMULATOR_VERSION = "1.5.33"
"""Of ministack, whose private parts the server replaces: no other version is started."""
START_SECONDS = 60
STOP_SECONDS = 20


class LocalCloudError(UserError):
    """One sentence for the operator."""


class LocalCloud:
    """The embedded cloud of one clone. Use as a context manager, or ``start()`` and ``stop()``.

    Args:
        root: of the clone.
        engine: ``process``, or ``docker`` for the real one, which must answer.
    """

    def __init__(self, root: Path, engine: str = "process") -> None:
        self.root, self.engine = root.resolve(), engine
        self.state = self.root / ".lab" / "local"
        self._server: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._port = 0
        self._bootstrapped = False

    # --- life cycle -----------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Clean up what a killed one left, start the server, and wait until it answers.

        Raises:
            LocalCloudError: another one of this clone is alive, the emulator is not the one that is needed, or it does
                not come up.
        """
        if (found := _emulator_version()) != EMULATOR_VERSION:
            raise LocalCloudError(f"ministack {EMULATOR_VERSION} is needed, not {found}: run `make setup`.")
        self.state.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._clean_leftovers()
            for _ in range(5):  # a port found free may be taken before the server binds it
                if self._launch(_free_port()):
                    self._find_engine()
                    return
            raise LocalCloudError(f"No free port could be bound on 127.0.0.1; see {self.state / 'server.log'}.")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and every instance; returns when nothing of this clone's cloud runs. Safe to call twice."""
        if self._server is not None:
            with contextlib.suppress(psutil.Error):
                self._server.send_signal(signal.SIGTERM)
            with contextlib.suppress(psutil.Error):
                self._server.wait(STOP_SECONDS)
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(1)
        self._kill_all()
        if self._child is not None:
            self._child.wait()
        self._server = self._child = None
        docker_engine.clean(self.state)
        (self.state / "server.json").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @classmethod
    def attach(cls, root: Path) -> LocalCloud | None:
        """The running cloud of this clone, or None."""
        cloud = cls(root)
        with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
            live = json.loads((cloud.state / "server.json").read_text())
            process = psutil.Process(live["pid"])
            if process.environ().get(SERVER_MARKER) == str(cloud.state) and processes.alive(process):
                cloud._server, cloud._port = process, live["port"]
                return cloud
        return None

    def __enter__(self) -> LocalCloud:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_lock(self) -> None:
        lock = (self.state / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise LocalCloudError(
                "A local cloud of this clone is running already: wait for it, or end it with `lab local down`."
            ) from None
        self._lock = lock

    def _clean_leftovers(self) -> None:
        self._kill_all()
        docker_engine.clean(self.state)
        for name in ("boxes", "docker", "tmp"):
            shutil.rmtree(self.state / name, ignore_errors=True)

    def _find_engine(self) -> None:
        if self.engine == "docker":
            try:
                docker_engine.find(self.state, f"127.0.0.1:{self._port}")
            except docker_engine.NoEngineError as error:
                raise LocalCloudError(str(error)) from None

    def _kill_all(self) -> None:
        processes.kill_marked(SERVER_MARKER, str(self.state))
        for box in (self.state / "boxes").glob("*"):
            processes.kill_marked("DESTDIR", str(box))

    def _launch(self, port: int) -> bool:
        """Whether the server came up on ``port``; False if the port was taken meanwhile."""
        temporary = self.state / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.state),  # no configuration or credentials of the operator
            "TMPDIR": str(temporary),
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(port),
            "IOT_MTLS_ENABLED": "0",  # else it listens on 0.0.0.0:8883
            "AUTH": "true",
            "AWS_DEFAULT_REGION": REGION,
            "PYTHONUNBUFFERED": "1",
            SERVER_MARKER: str(self.state),
        }
        log_path = self.state / "server.log"
        with log_path.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "local_cloud.server", str(self.state)],
                cwd=self.state, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the operator's program, which stops this one in order
            )  # fmt: skip
        self._server, self._port = psutil.Process(self._child.pid), port
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                text = log_path.read_text(errors="replace")
                if "already in use" in text or "Errno 98" in text:
                    return False
                raise LocalCloudError(f"The emulator ended; see {log_path}.")
            if self._answers():
                live = {"pid": self._child.pid, "port": port}
                (self.state / "server.json").write_text(json.dumps(live))
                return True
            time.sleep(0.1)
        raise LocalCloudError(f"The emulator did not answer within {START_SECONDS} s; see {log_path}.")

    def _answers(self) -> bool:
        """Whether our own process, not another one on the same port, listens and answers."""
        with contextlib.suppress(OSError, psutil.Error):
            connections = self._server.net_connections("tcp") if self._server else []
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == self._port for c in connections):
                with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=5) as response:  # noqa: S310
                    return bool(response.status == 200)
        return False

    # --- use ------------------------------------------------------------------------------------------------------
    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environ(self) -> dict[str, str]:
        """The environment for the real AWS tools: this process's own, without foreign ``AWS_*`` variables."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CDK_"))}
        return {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}:{inherited.get('PATH', os.defpath)}",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "CDK_DOCKER": str(SHIMS / "docker"),
            "CDK_DEFAULT_ACCOUNT": ACCOUNT,
            "CDK_DEFAULT_REGION": REGION,
            "CDK_DISABLE_CLI_TELEMETRY": "true",
            "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
            STATE_VARIABLE: str(self.state),
        }

    def client(self, service: str, **credentials: str) -> Any:
        """A boto3 client with the administrator's credentials, or with those given."""
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"} | credentials
        config = Config(retries={"max_attempts": 2}, s3={"addressing_style": "path"})
        return boto3.session.Session().client(
            service, endpoint_url=self.endpoint, region_name=REGION, config=config, **keys
        )

    def fault(self, name: str, **details: Any) -> None:
        """Put a fault into effect, see ``local_cloud.faults``.

        Raises:
            UnknownFaultError: no such fault or instance.
        """
        faults.ask(self.endpoint, {"fault": name, **details})

    def bootstrap(self) -> None:
        """``cdk bootstrap``, once per start.

        Raises:
            LocalCloudError: the CLI is missing or failed; the sentence ends with its last words.
        """
        if self._bootstrapped:
            return
        program = Path(__file__).parents[1] / "node_modules" / ".bin" / "cdk"
        if not program.exists():
            raise LocalCloudError("The CDK CLI is not installed: run `make setup` (it needs Node 20 or newer).")
        command = [str(program), "bootstrap", f"aws://{ACCOUNT}/{REGION}", "--no-notices", "--no-version-reporting"]
        temporary = self.state / "tmp"  # without an app there: bootstrap needs none
        result = subprocess.run(command, cwd=temporary, env=self.environ(), capture_output=True, text=True)
        if result.returncode != 0:
            raise LocalCloudError(f"cdk bootstrap failed: {result.stderr.strip()[-2000:]}")
        self._bootstrapped = True

    def boxes(self) -> list[Path]:
        """The directories of all instances of this start, ended ones too; a directory's name is the instance id."""
        return sorted((self.state / "boxes").glob("i-*"))


def _emulator_version() -> str:
    try:
        return metadata.version("ministack")
    except metadata.PackageNotFoundError:
        return "none"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
