"""What a deploy does while a run is active: limits change at once, anything else is refused, off means stop."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.support.stage import ENDLESS, LONG, QUICK, SHORT, Stage
from training_image.core import contract

pytestmark = pytest.mark.lifecycle


def killer_3(stage: Stage) -> datetime:
    group = stage.outputs(stage.stack)["AutoScalingGroupName"]
    (action,) = stage.autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)["ScheduledUpdateGroupActions"]
    return action["StartTime"]


def test_limits_new_runs_and_the_instance_switched_off(stage: Stage, tmp_path: Path):
    endless, quick = stage.trainer(ENDLESS), stage.trainer(QUICK)
    run_id = stage.deploy(*endless, "-c", "max_runtime_hours=1", **LONG)["RunId"]
    keys = contract.RunKeys(run_id)
    stage.wait("a checkpoint", lambda: stage.heartbeat(run_id).get("durable_step"), run_id)
    frozen = stage.read(keys.run)
    assert frozen is not None
    began = datetime.fromisoformat(frozen["created_at"])

    # Limits: in force at once, on the instance's own ground and on AWS's, and the run goes on.
    later = (*endless, "-c", "max_runtime_hours=5", "-c", "auto_shutdown=false")
    assert stage.deploy(*later, **LONG)["RunId"] == run_id
    limits = (stage.read(keys.control) or {})["limits"]
    assert datetime.fromisoformat(limits["deadline"]) - began == timedelta(hours=5)
    assert limits["auto_shutdown"] is False
    assert killer_3(stage) - began == timedelta(hours=5, minutes=10)
    assert stage.read(keys.run) == frozen

    # Another run beside it: refused, and what the refused command said about limits is taken back.
    refused = stage.cdk(
        "deploy", "TrainingStack", "--require-approval", "never", *endless, "-c", "new_run=again", **LONG
    )
    assert refused.returncode != 0
    assert f"Run {run_id} is active and goes on unharmed" in " ".join(refused.stdout.split())
    assert killer_3(stage) - began == timedelta(hours=5, minutes=10)
    step = stage.heartbeat(run_id)["step"]
    stage.wait("more steps", lambda: stage.heartbeat(run_id).get("step", 0) > step, run_id)
    assert stage.heartbeat(run_id)["attempt"] == 1

    # Switched off: it stops with a checkpoint, though it was to be kept for review; the stack stays.
    stage.deploy(*later, "-c", "create_instance=false", **LONG)
    outcome = stage.outcome(run_id)
    assert outcome is not None
    assert (outcome["reason"], outcome["by"]) == ("stopped", "instance"), stage.log(run_id)
    assert not stage.instances()
    assert (stage.verified_step(run_id, tmp_path / "checkpoint") or 0) > step

    # On again, with the same settings as a run that succeeded: only another word starts another.
    first = stage.deploy(*quick, **SHORT)["RunId"]
    stage.wait("the end", lambda: stage.outcome(first) and not stage.instances(), first)
    assert stage.deploy(*quick, **SHORT)["RunId"] == first
    second = stage.deploy(*quick, "-c", "new_run=again", **SHORT)["RunId"]
    assert second != first
    stage.wait("the end", lambda: stage.outcome(second) and not stage.instances(), second)
    assert stage.deploy(*quick, **SHORT)["RunId"] == second, "a word that is left out again starts nothing"
    assert not stage.instances()
