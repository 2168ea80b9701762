"""The life cycle with the real CDK CLI, emulated AWS and real processes. Acts of few deployments, to save minutes.

Where nothing is said of a trainer it is the real one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.stage import ENDLESS, LONG, QUICK, SHORT, Stage
from training_image.core import contract

pytestmark = pytest.mark.lifecycle


def finished(stage: Stage, run_id: str) -> dict:
    """Wait until the run has an outcome and its instance is gone, by itself."""
    outcome = stage.wait("an outcome", lambda: stage.outcome(run_id), run_id, seconds=400)
    stage.wait("the box is gone", lambda: not stage.instances(), run_id)
    return outcome


def training(stage: Stage, run_id: str, attempt: int = 1) -> dict:
    """Wait until the run trains and a checkpoint is durable."""

    def beat() -> dict | None:
        heartbeat = stage.heartbeat(run_id)
        ready = heartbeat.get("phase") == "training" and heartbeat.get("attempt") == attempt
        return heartbeat if ready and heartbeat.get("durable_step") else None

    return stage.wait(f"attempt {attempt} trains", beat, run_id)


def holders(stage: Stage) -> set[str]:
    """Runs for whose sake an image is kept, as the tags in DataStack's repository say."""
    repository = contract.repository_name("default")
    images = stage.cloud.client("ecr").describe_images(repositoryName=repository)["imageDetails"]
    assert images, "the image itself stays"
    return {tag for image in images for tag in image.get("imageTags", []) if tag.startswith(contract.RUN_TAG_PREFIX)}


def test_training_stack_without_data_stack_says_so_and_creates_nothing(stage: Stage):
    before = stage.stacks()
    result = stage.cdk("deploy", "TrainingStack", "--require-approval", "never", "-c", "lab=elsewhere", **SHORT)
    assert result.returncode != 0
    assert "deploy it first: cdk deploy DataStack" in result.stdout
    assert "repository/llm-tuning-lab/elsewhere/datastack-training" in result.stdout, "the error itself names it too"
    assert stage.stacks() == before
    assert not stage.instances()


def test_runs_that_finish(stage: Stage):
    before = stage.stacks()
    first = stage.deploy(**SHORT)
    run_id = first["RunId"]
    outcome = finished(stage, run_id)
    assert (outcome["reason"], outcome["by"], outcome["attempts"]) == ("succeeded", "instance", 1), stage.log(run_id)
    keys = contract.RunKeys(run_id)
    objects = stage.objects(keys.prefix)
    assert {keys.adapter + "adapter_model.safetensors", keys.adapter + "README.md"} <= set(objects)
    run = stage.read(keys.run)
    assert run is not None
    assert run["settings"]["training"]["max_steps"] == 4, "the shell's variables reach the run"
    assert "@sha256:" in run["image"]
    assert holders(stage) == {contract.image_tag(run_id)}
    (group,) = stage.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[first["AutoScalingGroupName"]])[
        "AutoScalingGroups"
    ]
    assert group["DesiredCapacity"] == 0
    (action,) = stage.autoscaling.describe_scheduled_actions(AutoScalingGroupName=first["AutoScalingGroupName"])[
        "ScheduledUpdateGroupActions"
    ]
    assert (action["MinSize"], action["MaxSize"], action["DesiredCapacity"]) == (0, 0, 0), "killer 3 is armed"

    # The same again: nothing happens, and the finished run stays finished.
    assert stage.deploy(**SHORT)["RunId"] == run_id
    assert not stage.instances()

    # Another learning rate: the next run, the first one's objects untouched.
    second = stage.deploy(*stage.trainer(QUICK), **SHORT, LLM_TRAINING__LEARNING_RATE="3e-4")["RunId"]
    assert second != run_id
    assert second.endswith("-2")
    assert holders(stage) == {contract.image_tag(second)}
    assert finished(stage, second)["reason"] == "succeeded", stage.log(second)
    assert stage.objects(keys.prefix) == objects

    stage.destroy()
    assert stage.stacks() == before
    assert stage.objects(keys.prefix) == objects, "results outlive their stack"
    assert holders(stage) == set()


def test_a_run_that_is_disturbed_and_then_destroyed(stage: Stage, tmp_path: Path):
    before = stage.stacks()
    outputs = stage.deploy(**LONG)
    run_id, group = outputs["RunId"], outputs["AutoScalingGroupName"]
    training(stage, run_id)

    # A scale-in reaches the instance as a shutdown: it leaves a verified checkpoint and no outcome.
    stage.autoscaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=0)
    stage.wait("the box is gone", lambda: not stage.instances(), run_id)
    saved = stage.verified_step(run_id, tmp_path / "after-scale-in")
    assert saved, stage.log(run_id)
    assert stage.outcome(run_id) is None

    # The next instance goes on from there.
    stage.autoscaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=1)
    heartbeat = training(stage, run_id, attempt=2)
    assert heartbeat["resumed_from_step"] == saved
    stage.wait("a step of its own", lambda: stage.heartbeat(run_id).get("step", 0) > saved, run_id)

    # Another learning rate now: refused in one sentence, and the run is unharmed.
    refused = stage.cdk(
        "deploy", "TrainingStack", "--require-approval", "never", **LONG, LLM_TRAINING__LEARNING_RATE="3e-4"
    )
    assert refused.returncode != 0
    assert f"Run {run_id} is active and goes on unharmed" in " ".join(refused.stdout.split())
    assert stage.outputs(stage.stack)["RunId"] == run_id
    step = stage.heartbeat(run_id)["step"]
    later = stage.wait("more steps", lambda: stage.heartbeat(run_id).get("step", 0) > step, run_id)
    assert later
    assert stage.heartbeat(run_id)["attempt"] == 2
    run = stage.read(contract.RunKeys(run_id).run)
    assert run is not None
    assert run["settings"]["training"]["learning_rate"] != 3e-4

    # Destroy while it trains, with a typo in the shell: deploy refuses that, destroy must not.
    wrong = {**LONG, "LLM_TRAINING__LEARNING_RAT": "1"}
    typo = stage.cdk("deploy", "TrainingStack", "--require-approval", "never", typed=True, **wrong)
    assert typo.returncode != 0
    assert "Did you mean LLM_TRAINING__LEARNING_RATE?" in typo.stdout
    destroyed = stage.cdk("destroy", "TrainingStack", "--force", typed=True, **wrong)
    assert destroyed.returncode == 0, destroyed.stdout
    assert stage.stacks() == before
    assert not stage.instances()
    outcome = stage.outcome(run_id)
    assert outcome is not None
    assert (outcome["reason"], outcome["by"]) == ("stopped", "instance"), stage.log(run_id)
    assert (stage.verified_step(run_id, tmp_path / "after-destroy") or 0) > step


def test_the_instance_stops_with_a_checkpoint_before_its_deadline(stage: Stage, tmp_path: Path):
    """Killer 1. The deadline is moved to where only the minutes are left that are kept back for stopping."""
    endless = stage.trainer(ENDLESS)
    run_id = stage.deploy(*endless, **LONG)["RunId"]
    training(stage, run_id)
    soon = (datetime.now(UTC) + timedelta(minutes=4)).isoformat()
    body = json.dumps({"limits": {"deadline": soon}}).encode()
    stage.s3.put_object(Bucket=stage.bucket, Key=contract.RunKeys(run_id).control, Body=body)
    outcome = finished(stage, run_id)
    assert (outcome["reason"], outcome["by"]) == ("expired", "instance"), stage.log(run_id)
    saved = stage.verified_step(run_id, tmp_path / "checkpoint")
    assert saved

    # Continued under a new limit: refused with another setting, then from the very step, and stopped by `lab stop`.
    resume = (*endless, "-c", f"resume={run_id}", "-c", "max_runtime_hours=1")
    other = {**LONG, "LLM_TRAINING__MAX_STEPS": "999"}
    refused = stage.cdk("deploy", "TrainingStack", "--require-approval", "never", *resume, **other)
    assert refused.returncode != 0
    assert "LLM_TRAINING__MAX_STEPS=999 (the run has 1000000)" in " ".join(refused.stdout.split())
    second = stage.deploy(*resume, **LONG)["RunId"]
    training(stage, second)
    stage.wait("a step of its own", lambda: stage.heartbeat(second).get("step", 0) > saved, second)
    assert stage.heartbeat(second)["resumed_from_step"] == saved
    stopped = stage.lab("stop")
    assert stopped.returncode == 0, stopped.stdout
    assert f"lab resume {second}" in stopped.stdout
    assert finished(stage, second)["reason"] == "stopped", stage.log(second)
    assert (stage.verified_step(second, tmp_path / "stopped") or 0) > saved
    assert stage.outcome(run_id) == outcome, "the first run's end stands"
