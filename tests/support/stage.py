"""One local cloud with DataStack deployed, a tiny model and data in its bucket: where life cycles are lived through."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from local_cloud.cloud import LocalCloud
from tests.support.cores import one_core
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


FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
QUICK = ("steps=6",)
ENDLESS = ("steps=1000000", "every=100", "pace=0.02")
"""For ``Stage.trainer``: as ``SHORT`` and ``LONG`` would go, without a model."""


class Stage:
    """The cloud, the real CLI in front of it, and views of what a run has left in S3.

    ``run`` names the stack that commands are for, beside those of other tests; None: TrainingStack itself.
    """

    def __init__(self, cloud: LocalCloud, logs: Path) -> None:
        self.cloud, self._logs = cloud, logs
        self.s3, self.autoscaling, self.ec2 = (cloud.client(name) for name in ("s3", "autoscaling", "ec2"))
        self.cloudformation = cloud.client("cloudformation")
        self.run: str | None = None
        self._count = 0
        self._assemblies: dict[tuple[str, ...], Path] = {}
        self._deployed: dict[str | None, Path] = {}

    def cdk(self, *arguments: str, typed: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
        """``cdk`` in a shell with ``variables``; its output is kept in a log.

        The same settings are synthesised once, then deployed or destroyed from their assembly. Where that they are
        synthesised is what is tested, the command has to be ``typed``.
        """
        words = self._with_run(arguments)
        values = [value for word, value in pairwise(words) if word == "-c"]
        settings = (*values, *(f"{name}={value}" for name, value in sorted(variables.items())))
        known = None if typed else self._assemblies.get(settings)
        folder = known or self._logs / f"assembly-{self._count:02}"
        result = self._typed(words, *(("--app", str(folder)) if known else ("--output", str(folder))), **variables)
        if (folder / "manifest.json").exists():
            self._assemblies[settings] = folder
            if "deploy" in words and contract.TRAINING_STACK in words and result.returncode == 0:
                self._deployed[_value(values, "run")] = folder
        return result

    def _with_run(self, arguments: Sequence[str]) -> list[str]:
        words = list(arguments)
        if self.run and contract.TRAINING_STACK in words and _value(words, "run") is None:
            words += ["-c", f"run={self.run}"]
        return words

    def _typed(self, words: Sequence[str], *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self._count += 1
        clean = {name: value for name, value in self.cloud.environ().items() if not name.startswith("LLM_")}
        result = subprocess.run(
            [str(ROOT / "node_modules/.bin/cdk"), *words, "--no-color", "--no-notices", *options],
            cwd=ROOT,
            env={**clean, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,  # an image may be built meanwhile
        )
        (self._logs / f"{self._count:02}-{words[0]}.log").write_text(result.stdout)
        return result

    def lab(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``lab`` as typed in a shell of the cloud's."""
        words = [str(ROOT / ".venv/bin/lab"), *arguments, *(("-c", f"run={self.run}") if self.run else ())]
        return subprocess.run(
            words, cwd=ROOT, env=self.cloud.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    def trainer(self, options: Sequence[str]) -> tuple[str, str]:
        """For ``cdk``: the trainer is `fake_trainer.py` with these options, where the trainer is not what is tested."""
        script = self._logs / FAKE_TRAINER.name  # here, because a clone may lie under a name with spaces
        if not script.exists():
            shutil.copy(FAKE_TRAINER, script)
        return ("-c", " ".join([f"training_command=python {script}", *options]))

    @property
    def stack(self) -> str:
        """Name of the run's stack in the account."""
        return contract.TRAINING_STACK if self.run is None else f"{contract.TRAINING_STACK}-{self.run}"

    def deploy(self, *arguments: str, **variables: str) -> dict[str, str]:
        """Deploy TrainingStack and return its outputs."""
        words = self._with_run(["deploy", contract.TRAINING_STACK, "--require-approval", "never", *arguments])
        result = self.cdk(*words, **variables)
        assert result.returncode == 0, result.stdout
        run = _value(words, "run")
        return self.outputs(contract.TRAINING_STACK if run is None else f"{contract.TRAINING_STACK}-{run}")

    def destroy(self, run: str | None = None) -> None:
        """`cdk destroy TrainingStack`, of ``run`` or of the stage's own, from the assembly it was deployed from."""
        run = run or self.run
        words = ["destroy", contract.TRAINING_STACK, "--force"]
        if folder := self._deployed.get(run):
            result = self._typed(words, "--app", str(folder))
        else:
            result = self.cdk(*words, *(("-c", f"run={run}") if run else ()), **SHORT)
        assert result.returncode == 0, result.stdout

    def leftovers(self) -> list[str]:
        """Runs whose stack is there, as ``destroy`` wants them."""
        prefix = f"{contract.TRAINING_STACK}-"
        return [name.removeprefix(prefix) for name in self.stacks() if name.startswith(prefix)]

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


def _value(words: Sequence[str], key: str) -> str | None:
    """Of ``key=value`` among the words."""
    return next((word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")), None)


@contextmanager
def opened(folder: Path, engine: str = "process") -> Iterator[Stage]:
    """A stage below ``folder``, until the block ends."""
    with ExitStack() as ending:
        with one_core():  # the cloud's instances, not the CLI
            cloud = ending.enter_context(LocalCloud(folder, engine))
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
