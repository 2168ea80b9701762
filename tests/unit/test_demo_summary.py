"""summary.json and the verdict: what is promised to others, and that no failure is called a success."""

import dataclasses
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lab.demo import report
from lab.demo.recheck import Recheck
from lab.demo.summary import Facts, instance_seconds, phase_seconds, problems, summarize, to_first_step
from lab.operator import record, resources
from lab.operator.record import RunRecord
from tests.support.runs import a_run, run_json
from training_image.core.contract import Actor, Reason, RunKeys
from training_image.core.records import Outcome
from training_image.core.store import StoredObject

PROMISED = """
run_id outcome ended_by engine base_model train_examples eval_examples steps eval_loss_before eval_loss_after
exact_match_before exact_match_after attempts resumed_from_step adapter_uri adapter_sha256
instances_running_before_destroy instances_running_after stacks_after phase_seconds first_step_seconds wall_seconds
"""


def timeline(*phases: tuple[str, float, float]) -> dict[str, Any]:
    """Of name, start and seconds."""
    return {"phases": [{"phase": name, "started_at": start, "seconds": seconds} for name, start, seconds in phases]}


def good() -> Facts:
    samples = [{"prompt": "Which call?", "expected": "ec2:A", "answer": "ec2:A"}]
    return Facts(
        run_id="run-1a2b3c4d-1",
        record=RunRecord(
            run=a_run(settings={"model": {"base_model": "s3://training/models/Small/"}}),
            outcome=Outcome(Reason.SUCCEEDED, by=Actor.INSTANCE, attempts=1, step=60, adapter_sha256="ab12"),
            eval_before={"loss": 4.8, "exact_match": 0.0, "examples": 96}
            | {"samples": [{"prompt": "Which call?", "expected": "ec2:A", "answer": "I think [bold]"}]},
            eval_after={"loss": 1.2001},
            timelines=(timeline(("image_pull", 100.0, 3.0), ("first_step", 103.0, 1.5), ("training", 104.5, 238.5)),),
        ),
        recheck=Recheck(3336, 96, 1.2, 0.25, samples, "ab12"),
        adapter_uri="s3://outputs/runs/run-1a2b3c4d-1/adapter/",
        ended_by="instance",
        instances_before_destroy=0,
        instances_after=0,
        stacks_after=["CDKToolkit", "DataStack"],
        own_seconds={"Deploying DataStack": 7.04},
        wall_seconds=500.0,
    )


def test_summary_has_exactly_the_promised_keys() -> None:
    assert set(summarize(good())) == set(PROMISED.split())
    assert set(summarize(Facts(problem="cdk failed"))) == set(PROMISED.split())
    json.dumps(summarize(good()))


def test_after_comes_from_the_fresh_evaluation_not_from_the_run() -> None:
    summary = summarize(good())
    assert (summary["eval_loss_before"], summary["eval_loss_after"]) == (4.8, 1.2)
    assert (summary["exact_match_after"], summary["adapter_sha256"]) == (0.25, "ab12")


def test_all_is_well() -> None:
    assert problems(good()) == []


def changed_outcome(**values: Any) -> dict[str, Any]:
    facts = good()
    return {"record": dataclasses.replace(facts.record, outcome=dataclasses.replace(facts.record.outcome, **values))}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem": "cdk deploy failed"}, "cdk deploy failed"),
        (changed_outcome(reason=Reason.FAILED, detail="train.jsonl, line 3"), "line 3"),
        (changed_outcome(adapter_sha256="other"), "sha256"),
        ({"recheck": None}, "not evaluated again"),
        ({"recheck": dataclasses.replace(good().recheck, loss=1.5)}, "1.5"),
        ({"ended_by": "controller"}, "controller"),
        ({"ended_by": None}, "nobody"),
        ({"instances_before_destroy": 1}, "before the destroy"),
        ({"instances_after": 1}, "after the destroy"),
        ({"stacks_after": ["DataStack", "TrainingStack"]}, "TrainingStack is still there"),
        ({"stacks_after": []}, "DataStack is gone"),
    ],
)
def test_every_failure_is_named(change: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(dataclasses.replace(good(), **change)))


def test_phase_seconds_adds_attempts_up() -> None:
    timelines = tuple(timeline(("training", start, 5.0)) for start in (0.0, 100.0))
    assert phase_seconds({"Deploying DataStack": 7.04}, timelines) == {"deploying_datastack": 7.0, "training": 10.0}
    assert instance_seconds(timelines) == 10.0


def test_the_way_to_the_first_step_ends_with_it_and_is_no_sum_of_phases_that_overlap() -> None:
    boot = (("image_pull", 100.0, 5.0), ("prefetch", 100.0, 6.0))
    whole = timeline(*boot, ("first_step", 106.0, 2.5), ("training", 108.5, 60.0))
    assert to_first_step((whole, {})) == {"image_pull": 5.0, "prefetch": 6.0, "first_step": 2.5, "total": 8.5}
    assert to_first_step((timeline(*boot),)) == {}
    assert to_first_step(()) == {}
    assert instance_seconds((whole,)) == 68.5


@pytest.mark.parametrize("width", [40, 80, 160])
def test_report_fits_the_terminal_and_shows_both_answers(width: int, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    facts = good()
    report.show(console, summarize(facts), problems(facts), facts, tmp_path)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    first_step = "first step: 4 s (in seconds: image pull 3.0, first step 1.5)"
    for expected in (first_step, "4.80", "1.20", "25%", "I think [bold]", "ec2:A", "g5.xlarge", "make demo DATA="):
        assert expected.replace(" ", "") in "".join(text.replace("│", "").split())


def test_report_of_a_failure_names_the_log(tmp_path: Path) -> None:
    log = tmp_path / "attempts" / "1" / "training.log"
    log.parent.mkdir(parents=True)
    log.touch()
    console = Console(file=io.StringIO(), width=500)
    facts = dataclasses.replace(good(), **changed_outcome(reason=Reason.FAILED, detail="[b]odd text"))
    report.show(console, summarize(facts), problems(facts), facts, tmp_path)
    assert str(log) in console.file.getvalue()
    assert "[b]odd text" in console.file.getvalue()


REQUEST = (
    "At T instance i-1 was taken out of service in response to a user request, shrinking the capacity from 1 to 0."
)
CAPACITY = (
    "At T a user request update of AutoScalingGroup constraints to min: 0, max: 1, desired: 0 changing the desired "
    "capacity from 1 to 0. At T an instance was taken out of service in response to a difference between desired and "
    "actual capacity, shrinking the capacity from 1 to 0. At T instance i-1 was selected for termination."
)


@pytest.mark.parametrize(
    ("causes", "by", "expected"),
    [
        ([REQUEST], Actor.INSTANCE, "instance"),
        ([REQUEST], None, "group"),
        ([CAPACITY], Actor.INSTANCE, "group"),
        ([CAPACITY], Actor.CONTROLLER, "controller"),
        ([CAPACITY.replace("a user request update", "scheduled action deadline")], Actor.INSTANCE, "scheduled_action"),
        (
            ["At T an instance was taken out of service in response to an EC2 health check."],
            Actor.INSTANCE,
            "health_check",
        ),
        ([], Actor.INSTANCE, None),
    ],
)
def test_who_ended_the_instance(causes: list[str], by: Actor | None, expected: str | None) -> None:
    assert resources.ended_by(causes, Outcome(Reason.SUCCEEDED, by=by)) == expected


class Memory:
    """A store in a dict."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self._objects = objects

    def read(self, key: str) -> bytes | None:
        return json.dumps(self._objects[key]).encode() if key in self._objects else None

    def list(self, prefix: str) -> list[StoredObject]:
        at = datetime.now(UTC)
        return [StoredObject(key, 1, at, "e") for key in self._objects if key.startswith(prefix)]


def test_a_run_is_read_from_its_objects() -> None:
    keys = RunKeys("run-1a2b3c4d-1")
    store = Memory(
        {
            keys.run: run_json(run_id=keys.run_id),
            keys.outcome: {"reason": "succeeded"},
            keys.claim(1): {},
            keys.claim(2): {},
            f"{keys.attempt(2)}timeline.json": {"booted_at": 1.0},
            f"{keys.metrics}eval_after.json": ["nonsense"],
        }
    )
    found = record.record(store, keys)
    assert found.succeeded
    assert found.run is not None
    assert found.run.run_id == keys.run_id
    assert found.timelines == ({"booted_at": 1.0},)
    assert (found.eval_before, found.eval_after) == (None, None)
