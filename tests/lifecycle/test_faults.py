"""What a run makes of the demo's other faults, on the shared stage, with a trainer that learns nothing.

`test_demo_faults.py` types one of them as a user would; `test_chaos.py` has the real trainer go on after a kill.
"""

from __future__ import annotations

import json

import pytest

from lab.chaos.observe import gaps
from lab.demo.fault import FEW_ATTEMPTS, DemoFault, Saboteur
from lab.operator.follow import Place
from tests.support.stage import QUICK, SHORT, Stage
from training_image.core import contract
from training_image.core.records import read_heartbeat
from training_image.core.store import Store

pytestmark = pytest.mark.lifecycle
STEPS = 1200
PACED = (f"steps={STEPS}", "every=50", "pace=0.02")
"""Heartbeats are seconds apart, and one must come between a checkpoint and the end."""


def test_a_result_that_cannot_be_uploaded_fails_the_run_after_its_attempts(stage: Stage):
    saboteur = Saboteur(DemoFault.NO_UPLOAD, stage.cloud)
    assert saboteur.options == FEW_ATTEMPTS
    saboteur.before_the_run()
    run_id = stage.deploy(*stage.trainer(QUICK), *saboteur.options, **SHORT)["RunId"]
    outcome = stage.wait("an outcome", lambda: stage.outcome(run_id), run_id)
    stage.wait("the box is gone", lambda: not stage.instances(), run_id)
    assert (outcome["reason"], outcome["by"], outcome["attempts"]) == ("failed", "instance", 2), stage.log(run_id)
    assert "The result could not be uploaded" in outcome["detail"]
    assert outcome.get("adapter_sha256") is None
    keys = contract.RunKeys(run_id)
    assert [key for key in stage.objects(keys.prefix) if key.startswith(keys.adapter)] == []
    stage.destroy()
    assert stage.stack not in stage.stacks()


@pytest.mark.parametrize("fault", [DemoFault.KILL_SUPERVISOR, DemoFault.KILL_MACHINE])
def test_a_run_whose_first_instance_is_killed_succeeds_by_a_second_one_that_resumes(stage: Stage, fault: DemoFault):
    saboteur = Saboteur(fault, stage.cloud)
    saboteur.before_the_run()
    outputs = stage.deploy(*stage.trainer(PACED), *saboteur.options, **SHORT)
    run_id = outputs["RunId"]
    place = Place(Store(stage.s3, stage.bucket), contract.RunKeys(run_id), outputs["AutoScalingGroupName"])

    def struck() -> bool:
        saboteur.at(place, read_heartbeat(place.store, place.keys))
        return saboteur.struck

    stage.wait("the kill", struck, run_id)
    outcome = stage.wait("an outcome", lambda: stage.outcome(run_id), run_id)
    stage.wait("the box is gone", lambda: not stage.instances(), run_id)
    assert (outcome["reason"], outcome["attempts"]) == ("succeeded", 2), stage.log(run_id)
    assert stage.heartbeat(run_id)["resumed_from_step"] > 0
    assert outcome["step"] == STEPS
    lines = (place.store.read(place.keys.metrics + "steps.jsonl") or b"").decode().splitlines()
    assert gaps([json.loads(line)["step"] for line in lines], STEPS) == 0, "each step stands there once"
    stage.destroy()
    assert stage.stack not in stage.stacks()
