"""An instance without EC2: the real supervisor as a process, S3 and a metadata service on loopback."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.processes import kill_with_children
from tests.support.runs import run_json
from training_image.core.contract import RunKeys, WorkDir
from training_image.core.store import Store

ROOT = Path(__file__).resolve().parents[2]
FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
WAIT_SECONDS = 180
MODELS = "box-models"
SETTINGS = {"model": {"base_model": f"s3://{MODELS}/tiny/"}, "training": {"learning_rate": 1e-4}}
REGION = "us-east-1"


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """The first true value of ``look``; fails after a bound."""
    give_up = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < give_up:
        if value := look():
            return value
        time.sleep(0.05)
    raise AssertionError(f"Waited in vain for {what}")


class FakeImds:
    """Answers what is in ``metadata`` to those who bring a token, 404 otherwise."""

    def __init__(self) -> None:
        self.metadata = {"instance-id": "i-0123", "autoscaling/target-lifecycle-state": "InService"}
        imds = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._answer(200 if self.path == "/latest/api/token" else 404, "token")

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") != "token":
                    return self._answer(401, "")
                value = imds.metadata.get(self.path.removeprefix("/latest/meta-data/"))
                return self._answer(404 if value is None else 200, value or "")

            def _answer(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def fake_imds() -> Iterator[FakeImds]:
    imds = FakeImds()
    Thread(target=imds.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield imds
    imds.server.shutdown()
    imds.server.server_close()


class Lab:
    """One run in its own pair of buckets; ``boot`` starts an instance for it."""

    def __init__(self, client: Any, endpoint: str, imds: FakeImds, folder: Path) -> None:
        self.client, self.endpoint, self.imds, self.folder = client, endpoint, imds, folder
        name = uuid.uuid4().hex[:12]
        self.keys = RunKeys(f"run-{name}")
        self.store, self.training = Store(client, f"out-{name}"), Store(client, f"train-{name}")
        self.processes: list[subprocess.Popen[bytes]] = []
        for store in (self.store, self.training):
            client.create_bucket(Bucket=store.bucket)
        self.data_uri = f"s3://{self.training.bucket}/data/"
        self.training.put("data/train.jsonl", b'{"prompt": "a", "completion": "b"}\n')
        with suppress(client.exceptions.ClientError):
            client.create_bucket(Bucket=MODELS)
        Store(client, MODELS).put("tiny/config.json", b"{}")
        self.environment: dict[str, str] = {}

    def start_run(self, *trainer: str, **changes: Any) -> None:
        """Write run.json; ``trainer`` are options of fake_trainer.py."""
        own = {
            "run_id": self.keys.run_id,
            "max_attempts": 3,
            "data_uri": self.data_uri,
            "settings": SETTINGS,
            "training_command": [sys.executable, str(FAKE_TRAINER), *trainer],
        }
        self.store.put_json(self.keys.run, run_json(**(own | changes)))

    @property
    def work(self) -> WorkDir:
        return WorkDir(self.folder / "work")

    def boot(self, patch: str | None = None) -> subprocess.Popen[bytes]:
        """Start a supervisor; ``patch`` is Python that changes the module ``attempt`` first."""
        program = ["-m", "training_image.supervisor"]
        if patch is not None:
            start = "os._exit(entry.main(sys.argv[1:]))"
            program = [
                "-c",
                f"import os, sys\nfrom training_image.supervisor import attempt, __main__ as entry\n{patch}\n{start}",
            ]
        command = [sys.executable, *program, "--bucket", self.store.bucket]
        command += ["--run-id", self.keys.run_id, "--work-dir", str(self.work.root), "--interval", "0.2"]
        environment = {
            "PATH": os.environ["PATH"],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.imds.endpoint,
            **self.environment,
        }
        with (self.folder / "console.log").open("ab") as console:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=console, stderr=console)
        self.processes.append(process)
        return process

    def run_box(self) -> int:
        """Boot an instance and wait until its supervisor has ended."""
        return self.ended(self.boot())

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        code = process.wait(WAIT_SECONDS)
        print((self.folder / "console.log").read_text())
        return code

    def holding(self, step: int, patch: str | None = None) -> subprocess.Popen[bytes]:
        """An instance whose trainer is at ``step``, as its heartbeat says."""
        process = self.boot(patch)
        wait_for(lambda: (self.heartbeat() or {}).get("step") == step, f"step {step}")
        return process

    def stop_by_control(self) -> None:
        stop = {"reason": "stopped", "detail": "the stack is deleted", "at": datetime.now(UTC).isoformat()}
        self.store.put_json(self.keys.control, {"stop": stop})

    def heartbeat(self) -> Any:
        return self.store.read_json(self.keys.heartbeat)

    def outcome(self) -> Any:
        return self.store.read_json(self.keys.outcome)

    def log(self, attempt: int = 1) -> str:
        return (self.store.read(self.keys.attempt(attempt) + "training.log") or b"").decode()

    def logged_steps(self) -> list[int]:
        lines = (self.store.read(self.keys.metrics + "steps.jsonl") or b"").decode().splitlines()
        return [json.loads(line)["step"] for line in lines]

    def close(self) -> None:
        """End what a failed test left behind, trainers included."""
        for process in self.processes:
            if process.poll() is None:
                kill_with_children(process.pid)
                process.wait()


def flip(lab: Lab, prefix: str) -> None:
    """Damage one file of the checkpoint at ``prefix``."""
    body = lab.store.read(prefix + "weights/model.bin")
    lab.store.put(prefix + "weights/model.bin", body[:-1] + b"!")
