"""One local cloud with DataStack deployed, a tiny model and data in its bucket: where life cycles are lived through."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_cloud.cloud import LocalCloud
from tests.support.tiny_model import save_model
from training_image.core import contract
from training_image.core.store import Store
from training_image.storage import checkpoints

ROOT = Path(__file__).parents[2]
SHORT = {
    "LLM_TRAINING__USE_CPU": "true",
    "LLM_TRAINING__MAX_STEPS": "4",
    "LLM_TRAINING__PER_DEVICE_TRAIN_BATCH_SIZE": "2",
    "LLM_TRAINING__GRADIENT_ACCUMULATION_STEPS": "1",
    "LLM_TRAINING__MAX_LENGTH": "64",
    "LLM_EVALUATION__MAX_NEW_TOKENS": "4",
}
LONG = {**SHORT, "LLM_TRAINING__MAX_STEPS": "1000000", "LLM_TRAINING__SAVE_STEPS": "100"}


class Stage:
    """The cloud, the real CLI in front of it, and views of what a run has left in S3."""

    def __init__(self, cloud: LocalCloud, logs: Path) -> None:
        self.cloud, self._logs = cloud, logs
        self.s3, self.autoscaling, self.ec2 = (cloud.client(name) for name in ("s3", "autoscaling", "ec2"))
        self.cloudformation = cloud.client("cloudformation")
        self._count = 0

    def cdk(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``cdk`` as typed in a shell with ``variables``; its output is kept in a log."""
        self._count += 1
        clean = {name: value for name, value in self.cloud.environ().items() if not name.startswith("LLM_")}
        words = [str(ROOT / "node_modules/.bin/cdk"), *arguments, "--no-color", "--no-notices"]
        result = subprocess.run(
            [*words, "--output", str(self._logs / "cdk.out")],
            cwd=ROOT,
            env={**clean, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,  # an image may be built meanwhile
        )
        (self._logs / f"{self._count:02}-{arguments[0]}.log").write_text(result.stdout)
        return result

    def lab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``lab`` as typed in a shell of the cloud's."""
        words = [str(ROOT / ".venv/bin/lab"), *arguments]
        return subprocess.run(
            words, cwd=ROOT, env=self.cloud.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    def deploy(self, *arguments: str, **variables: str) -> dict[str, str]:
        """Deploy TrainingStack and return its outputs."""
        result = self.cdk("deploy", "TrainingStack", "--require-approval", "never", *arguments, **variables)
        assert result.returncode == 0, result.stdout
        return self.outputs("TrainingStack")

    def outputs(self, stack: str) -> dict[str, str]:
        found = self.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
        return {item["OutputKey"]: item["OutputValue"] for item in found}

    def stacks(self) -> set[str]:
        found = self.cloudformation.describe_stacks()["Stacks"]
        return {item["StackName"] for item in found if item["StackStatus"] != "DELETE_COMPLETE"}

    @property
    def bucket(self) -> str:
        return self.outputs("DataStack")["OutputsBucket"]

    def read(self, key: str) -> dict[str, Any] | None:
        body = Store(self.s3, self.bucket).read(key)
        return None if body is None else json.loads(body)

    def outcome(self, run_id: str) -> dict[str, Any] | None:
        return self.read(contract.RunKeys(run_id).outcome)

    def heartbeat(self, run_id: str) -> dict[str, Any]:
        return self.read(contract.RunKeys(run_id).heartbeat) or {}

    def objects(self, prefix: str) -> dict[str, str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return {item["Key"]: item["ETag"] for item in found}

    def instances(self) -> list[str]:
        """Everything that still costs money."""
        return [
            instance["InstanceId"]
            for reservation in self.ec2.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
            if instance["State"]["Name"] != "terminated"
        ]

    def verified_step(self, run_id: str, folder: Path) -> int | None:
        """Step of the newest checkpoint whose every checksum holds after a download; None if there is none."""
        keys = contract.RunKeys(run_id)
        run = self.read(keys.run)
        assert run is not None
        found = checkpoints.fetch_newest(Store(self.s3, self.bucket), keys, run["settings_sha256"], folder)
        return found.manifest.step if found.manifest else None

    def log(self, run_id: str) -> str:
        """All that a failed assertion should show."""
        texts = []
        for key in self.objects(contract.RunKeys(run_id).prefix):
            if key.endswith((".log", "outcome.json", "heartbeat.json")):
                body = Store(self.s3, self.bucket).read(key) or b""
                texts.append(f"--- {key}\n{body.decode(errors='replace')[-3000:]}")
        return "\n".join(texts)

    def wait(self, what: str, condition: Callable[[], Any], run_id: str, seconds: float = 300) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.5)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.log(run_id)}")


@contextmanager
def opened(folder: Path, engine: str = "process") -> Iterator[Stage]:
    """A stage below ``folder``, until the block ends."""
    with LocalCloud(folder, engine) as cloud:
        cloud.bootstrap()
        stage = Stage(cloud, folder)
        result = stage.cdk("deploy", "DataStack", "--require-approval", "never")
        assert result.returncode == 0, result.stdout
        _push_data_and_model(stage, folder)
        yield stage


def _push_data_and_model(stage: Stage, folder: Path) -> None:
    bucket = stage.outputs("DataStack")["TrainingBucket"]
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    stage.s3.put_object(Bucket=bucket, Key="data/train.jsonl", Body=body.encode())
    save_model(folder / "model")
    for path in (folder / "model").iterdir():
        stage.s3.upload_file(str(path), bucket, f"models/tiny/{path.name}")
    os.environ.pop("LLM_MODEL__BASE_MODEL", None)
    for settings in (SHORT, LONG):
        settings["LLM_MODEL__BASE_MODEL"] = f"s3://{bucket}/models/tiny/"
