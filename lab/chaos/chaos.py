"""A series of runs that are disturbed as planned, each compared with a run that nobody disturbs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.chaos import observe
from lab.chaos.plan import ENDS_A_BOX, PHASES, Fault, Kind, plan
from lab.chaos.strike import Striker, remove_small_disk, small_disk
from lab.operator import resources
from lab.operator.cdk import Cdk
from lab.operator.follow import RunStalledError
from local_cloud import clock
from local_cloud.cloud import LocalCloud
from training_image.config.run_settings import variable
from training_image.core.contract import DATA_STACK, TRAINING_STACK, Reason, RunKeys
from training_image.core.records import Outcome, read_outcome
from training_image.core.store import Store
from training_image.storage import checkpoints

STEPS, SAVE_STEPS = 60, 8
SETTINGS = {
    variable("training", "use_cpu"): "true",
    variable("training", "max_steps"): str(STEPS),
    variable("training", "save_steps"): str(SAVE_STEPS),
    variable("training", "per_device_train_batch_size"): "8",
    variable("training", "gradient_accumulation_steps"): "24",
    variable("training", "max_length"): "128",
    variable("evaluation", "max_new_tokens"): "4",
    variable("lora", "lora_dropout"): "0.1",  # random numbers at every step: a resume that loses their state shows
}
MAX_ATTEMPTS = 20
REACH_SECONDS = 900.0
"""A fault's moment, or the end of a run, that has not come by then is a failure."""
POLL_SECONDS = 0.05
_BLURS = {Kind.S3_REFUSES, Kind.S3_DROPS, Kind.S3_SLOW, Kind.KILL_UPLOADING, Kind.CORRUPT, Kind.DISK_FULL}
"""After these more may be repeated than is promised: no checkpoint could be published, or the newest is gone."""
UPLOAD_SECONDS = 10.0
BYTES_PER_SECOND = 10e6
"""A checkpoint of an undisturbed instance may take the first, and its size over the second, to reach S3: the publisher
looks once a second, and the machine may be busy."""


@dataclass
class Options:
    root: Path
    """Of the clone: where `cdk` runs."""
    folder: Path
    """For the cloud's state and logs."""
    runs: int
    seed: int
    base_model: Path
    data: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """``LLM_*`` that win over ``SETTINGS``."""
    only: Collection[Kind] = tuple(Kind)
    """The kinds of fault to choose from."""

    @property
    def settings(self) -> dict[str, str]:
        return {**SETTINGS, **self.variables}


def chaos(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Do the series; returns the report, whose ``problems`` are empty if all is well.

    Raises:
        CdkError, LocalCloudError: the stage could not be set.
        RunStalledError: a run did not end.
        ValueError: no such series can be planned.
    """
    cloud = LocalCloud(options.folder)
    boxes = cloud.state / "boxes"
    model_bytes = sum(path.stat().st_size for path in options.base_model.iterdir())
    shutil.rmtree(boxes, ignore_errors=True)
    skipped = {}
    try:
        if no_disk := small_disk(boxes, 2**30 + 6 * model_bytes):
            skipped[Kind.DISK_FULL] = no_disk
        try:
            clock.preload(cloud.state)
        except clock.ClockError as error:
            skipped[Kind.CLOCK_JUMP] = str(error)
        with cloud:
            return _series(options, cloud, {kind: why for kind, why in skipped.items() if kind in options.only}, say)
    finally:
        remove_small_disk(boxes)


def _series(
    options: Options, cloud: LocalCloud, skipped: dict[Kind, str], say: Callable[[str], None]
) -> dict[str, Any]:
    steps = int(options.settings[variable("training", "max_steps")])
    save_steps = int(options.settings[variable("training", "save_steps")])
    available = [kind for kind in options.only if kind not in skipped]
    planned = plan(options.seed, options.runs, steps=steps, save_steps=save_steps, available=available)
    stage = Stage(options, cloud)
    reference = stage.run(0, ())
    say(f"reference: {reference['outcome']}, adapter {str(reference['adapter_sha256'])[:12]}, {reference['seconds']} s")
    runs = []
    for number, faults in enumerate(planned, 1):
        run = stage.run(number, faults)
        run["equal"] = run["adapter_sha256"] is not None and run["adapter_sha256"] == reference["adapter_sha256"]
        run["problems"] = problems(run, steps, save_steps)
        runs.append(run)
        done = {True: "", False: " (never struck)"}
        what = ", ".join(f"{fault['kind']} at {fault['when']}{done[fault['struck']]}" for fault in run["faults"])
        verdict = "; ".join(run["problems"]) or "same adapter"
        say(f"run {number}: {what}: {run['attempts']} attempts, repeated {run['repeated_steps']}: {verdict}")
    found = [f"run {run['number']}: {text}" for run in runs for text in run["problems"]]
    if reference["outcome"] != Reason.SUCCEEDED:
        found.insert(0, f"the reference run ended as {reference['outcome']}: {reference['detail']}")
    struck = [fault for run in runs for fault in run["faults"] if fault["struck"]]
    last = (steps - 1) // save_steps * save_steps
    inside = [fault for fault in struck if fault["phase"] == "training" and save_steps < (fault["step"] or 0) < last]
    if 2 * len(inside) < len(struck):
        found.append(f"only {len(inside)} of {len(struck)} faults struck between the first and the last checkpoint")
    return {
        "seed": options.seed,
        "faults": {
            "planned": sum(len(run["faults"]) for run in runs),
            "struck": len(struck),
            "struck_between_checkpoints": len(inside),
        },
        "reference": reference,
        "skipped": {str(kind): why for kind, why in skipped.items()},
        "runs": runs,
        "problems": found,
    }


def problems(run: dict[str, Any], steps: int, save_steps: int) -> list[str]:
    """What is not as promised about one disturbed run."""
    if run["outcome"] != Reason.SUCCEEDED:
        return [f"it ended as {run['outcome']}: {run['detail']}"]
    found = []
    if not run["equal"]:
        found.append("its adapter is not that of the undisturbed run")
    if run["lost_steps"]:
        found.append(f"{run['lost_steps']} of {steps} steps are missing or doubled in its record")
    if run["ended_by_attempt"] != run["attempts"]:
        found.append(f"attempt {run['ended_by_attempt']} ended it, although attempt {run['attempts']} had taken over")
    for fault, resumed in _resumed_after(run):
        if fault["kind"] != Kind.CORRUPT and resumed < fault["durable_step"]:
            found.append(f"the checkpoint of step {fault['durable_step']} was lost: resumed from {resumed}")
    for attempt, again, waiting in zip(run["boxes"], run["repeated_steps"], run["uploading"], strict=False):
        kinds = {fault["kind"] for fault in _struck(run, attempt)}
        if kinds <= {Kind.CLOCK_JUMP}:
            found.append(f"attempt {attempt['number']} ended, and nothing that was done to it should end it")
        if kinds == {Kind.NOTICE} and again:
            found.append(f"attempt {attempt['number']} had notice, and yet {again} steps were repeated")
        if not kinds & _BLURS:
            found += _too_much(attempt["number"], again, waiting, save_steps)
    return found


def _too_much(attempt: int, again: int, waiting: dict[str, Any] | None, save_steps: int) -> Iterator[str]:
    """The promise: one interval at most, and the steps that pass while the newest checkpoint is being uploaded."""
    if again > save_steps + (waiting["steps"] if waiting else 0):
        during = f" and {waiting['steps']} while that of step {waiting['step']} was uploaded" if waiting else ""
        yield f"{again} steps were repeated after attempt {attempt}, more than the interval of {save_steps}{during}"
    if waiting and waiting["seconds"] > UPLOAD_SECONDS + waiting["size"] / BYTES_PER_SECOND:
        seconds = f"{waiting['seconds']:.0f} s"
        yield f"the checkpoint of step {waiting['step']} was not in S3 {seconds} later, when attempt {attempt} ended"


def _resumed_after(run: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Faults that ended an instance, with the step that the next attempt resumed from."""
    for attempt, resumed in zip(run["boxes"], run["resumed_steps"], strict=False):
        for fault in _struck(run, attempt):
            if "durable_step" in fault:
                yield fault, resumed


def _struck(run: dict[str, Any], attempt: dict[str, Any]) -> list[dict[str, Any]]:
    """What was done to the instance of this attempt."""
    return [fault for fault in run["faults"] if fault["struck"] and fault["instance"] == attempt["instance"]]


class Stage:
    """Both stacks in a local cloud; ``run`` starts one run after the other in them."""

    def __init__(self, options: Options, cloud: LocalCloud) -> None:
        self._options, self._cloud = options, cloud
        cloud.bootstrap()
        self._cdk = Cdk(options.root, options.folder, cloud.environ())
        self._cdk.run("deploy", DATA_STACK, "--require-approval", "never")
        places = self._outputs(DATA_STACK)
        s3 = cloud.client("s3")
        s3.upload_file(str(options.data), places["TrainingBucket"], "data/train.jsonl")
        for path in options.base_model.iterdir():
            s3.upload_file(str(path), places["TrainingBucket"], f"models/base/{path.name}")
        self._base = f"s3://{places['TrainingBucket']}/models/base/"
        self._store = Store(s3, places["OutputsBucket"])
        self._ec2 = cloud.client("ec2")

    def _outputs(self, stack: str) -> dict[str, str]:
        return resources.outputs(self._cloud.client("cloudformation"), stack)

    def run(self, number: int, faults: tuple[Fault, ...]) -> dict[str, Any]:
        """One run from its deploy to its end, with ``faults`` on the way; what became of it."""
        began = time.monotonic()
        variables = {variable("model", "base_model"): self._base, **self._options.settings}
        options = ["--require-approval", "never", "-c", f"new_run=chaos-{number}", "-c", f"max_attempts={MAX_ATTEMPTS}"]
        # Only where it is needed: what is preloaded touches every process of an instance.
        self._cloud.fault("movable-clocks", on=any(fault.kind is Kind.CLOCK_JUMP for fault in faults))
        self._cdk.run("deploy", TRAINING_STACK, *options, variables=variables)
        stack = self._outputs(TRAINING_STACK)
        keys = RunKeys(stack["RunId"])
        striker = Striker(self._cloud, self._store, stack["AutoScalingGroupName"])
        struck = [self._strike(striker, keys, fault) for fault in faults]
        striker.end_lasting(at_once=False)
        self._until(lambda: self._outcome(keys) is not None and not self._live())
        outcome = self._outcome(keys)
        if outcome is None or self._live():  # the next run would be started beside its instance
            raise RunStalledError(f"Run {keys.run_id} and its instance did not end within {REACH_SECONDS:.0f} s.")
        found = observe.attempts(self._store, keys, self._cloud.state / "boxes")
        lines = (self._store.read(keys.metrics + "steps.jsonl") or b"").decode().splitlines()
        for box in self._cloud.boxes():
            shutil.rmtree(box, ignore_errors=True)
        return {
            "number": number,
            "run_id": keys.run_id,
            "faults": struck,
            "outcome": outcome.reason,
            "detail": outcome.detail,
            "attempts": len(found),
            "ended_by_attempt": outcome.attempts,
            "boxes": [{"number": attempt.number, "instance": attempt.instance} for attempt in found],
            "resumed_steps": [attempt.resumed_from for attempt in found[1:]],
            "repeated_steps": observe.repeated(found),
            "uploading": [asdict(waiting) if waiting else None for waiting in observe.uploading(found)],
            "lost_steps": observe.gaps([json.loads(line)["step"] for line in lines], outcome.step or 0),
            "adapter_sha256": outcome.adapter_sha256,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _strike(self, striker: Striker, keys: RunKeys, fault: Fault) -> dict[str, Any]:
        """Wait for the fault's moment and do it. Not ``struck``: the moment never came (``instance`` None), or there
        was nothing to do it to any more."""
        said: dict[str, Any] = {"kind": fault.kind, "when": fault.when, "struck": False}
        said.update(dict.fromkeys(("instance", "step", "phase")))
        box: Path | None = None

        def due() -> bool:
            nonlocal box
            box = self._box_at(fault)
            return box is not None or self._outcome(keys) is not None

        self._until(due, POLL_SECONDS)
        if box is None:
            return said
        status = observe.status(box)
        said.update(instance=box.name, step=status.get("step"), phase=status.get("phase") or "booting")
        before = self._durable_step(keys)
        said["struck"] = striker.strike(fault.kind, box.name, keys)
        if said["struck"] and fault.kind in ENDS_A_BOX:  # the next fault is for the instance that comes after
            self._until(lambda: box.name not in self._live() or self._outcome(keys) is not None)
            # Beside its successor an instance may still publish what comes too late for that one to resume from.
            said["durable_step"] = before if fault.kind is Kind.TWO_BOXES else self._durable_step(keys)
        return said

    def _durable_step(self, keys: RunKeys) -> int:
        return max((item.step for item in checkpoints.published(self._store, keys)), default=0)

    def _box_at(self, fault: Fault) -> Path | None:
        """The live instance whose trainer is where the fault wants it."""
        for instance in self._live():
            box = self._cloud.state / "boxes" / instance
            status = observe.status(box)
            if fault.at_step is not None:
                if status.get("phase") == "training" and (status.get("step") or 0) >= fault.at_step:
                    return box
            elif observe.work_dir(box).final.exists():
                if fault.phase == "uploading":
                    return box
            elif status.get("phase") == fault.phase or (not status and fault.phase == PHASES[0] and box.exists()):
                return box
        return None

    def _live(self) -> list[str]:
        return resources.live_instances(self._ec2)

    def _outcome(self, keys: RunKeys) -> Outcome | None:
        return read_outcome(self._store, keys)

    @staticmethod
    def _until(condition: Callable[[], bool], poll_seconds: float = 0.5) -> None:
        deadline = time.monotonic() + REACH_SECONDS
        while not condition() and time.monotonic() < deadline:
            time.sleep(poll_seconds)
