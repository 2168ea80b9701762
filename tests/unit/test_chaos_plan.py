"""What a series of disturbed runs consists of, decided before it starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.chaos.chaos import UPLOAD_SECONDS, problems
from lab.chaos.observe import Attempt, Waiting, gaps, repeated, uploading
from lab.chaos.plan import NEEDS_THE_CONTAINER, ONLY_WHILE_TRAINING, PHASES, Kind, plan

kinds = st.sets(st.sampled_from(sorted(Kind)), min_size=1)


@given(
    seed=st.integers(0, 999), runs=st.integers(1, 40), saves=st.integers(2, 20), every=st.integers(2, 9), kinds=kinds
)
def test_at_least_half_of_the_faults_strike_between_the_first_and_the_last_checkpoint(seed, runs, saves, every, kinds):
    steps = saves * every + 1
    planned = plan(seed, runs, steps=steps, save_steps=every, available=kinds)
    assert len(planned) == runs
    faults = [fault for run in planned for fault in run]
    inside = [fault for fault in faults if fault.at_step is not None and every < fault.at_step < saves * every]
    assert 2 * len(inside) >= len(faults)
    assert {fault.kind for fault in faults} <= kinds
    for run in planned:
        assert any(fault.at_step is not None for fault in run)
        moments = [fault.at_step for fault in run if fault.at_step is not None]
        assert moments == sorted(set(moments)), "each at a step of its own, in order"
        assert all(fault.phase in PHASES for fault in run if fault.at_step is None)
        assert not any(fault.kind in ONLY_WHILE_TRAINING and fault.phase for fault in run)
        assert not any(fault.kind in NEEDS_THE_CONTAINER and fault.phase == "booting" for fault in run)
    assert planned == plan(seed, runs, steps=steps, save_steps=every, available=kinds), "the seed decides"


def test_a_series_of_thirty_has_every_kind():
    planned = plan(1, 30, steps=60, save_steps=10, available=list(Kind))
    assert {fault.kind for run in planned for fault in run} == set(Kind)
    assert max(len(run) for run in planned) >= 2


@pytest.mark.parametrize(("steps", "save_steps"), [(10, 10), (20, 10), (5, 9)])
def test_without_room_between_checkpoints_there_is_no_plan(steps, save_steps):
    with pytest.raises(ValueError, match="between two checkpoints"):
        plan(1, 1, steps=steps, save_steps=save_steps, available=[Kind.NOTICE])


def test_what_was_done_again_is_counted_per_attempt():
    one, two, three = Attempt(1, "i-1", 0, 17), Attempt(2, "i-2", 10, 25), Attempt(3, "i-3", 25, 60)
    assert repeated([one, two, three]) == [7, 0]
    assert repeated([one]) == []


@pytest.mark.parametrize(
    ("steps", "wrong"), [([1, 2, 3], 0), ([1, 3], 1), ([1, 2, 2, 3], 1), ([], 3)]
)  # fmt: skip
def test_each_step_stands_in_the_record_exactly_once(steps, wrong):
    assert gaps(steps, 3) == wrong


def fault(kind, instance="i-1", struck=True, **more):
    return {"kind": kind, "instance": instance, "struck": struck, **more}


def run_of(*faults, repeated=(3,), resumed=(8,), waiting=None, **more):
    """Two attempts, of which the first got the faults."""
    boxes = [{"number": 1, "instance": "i-1"}, {"number": 2, "instance": "i-2"}]
    steps = {"repeated_steps": list(repeated), "resumed_steps": list(resumed), "lost_steps": 0}
    steps["uploading"] = [waiting for _ in repeated]
    ended = {"outcome": "succeeded", "detail": "", "equal": True, "attempts": 2, "ended_by_attempt": 2}
    return {"faults": list(faults), "boxes": boxes, **steps, **ended, **more}


def on_its_way(step, steps=1, seconds=0.5):
    return {"step": step, "steps": steps, "seconds": seconds, "size": 1000}


KILLED = fault(Kind.KILL_MACHINE, durable_step=8)


def test_a_run_that_kept_all_promises_has_no_problem():
    assert problems(run_of(KILLED), steps=60, save_steps=8) == []


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (run_of(KILLED, outcome="failed", detail="no room"), "it ended as failed: no room"),
        (run_of(KILLED, equal=False), "not that of the undisturbed run"),
        (run_of(KILLED, lost_steps=2), "2 of 60 steps are missing or doubled"),
        (run_of(KILLED, repeated=[9]), "9 steps were repeated after attempt 1, more than the interval of 8"),
        (
            run_of(KILLED, repeated=[11], waiting=on_its_way(16, steps=2)),
            "the interval of 8 and 2 while that of step 16",
        ),
        (run_of(KILLED, waiting=on_its_way(16, seconds=UPLOAD_SECONDS + 1)), "step 16 was not in S3 11 s later"),
        (run_of(fault(Kind.KILL_UPLOADING, durable_step=16)), "checkpoint of step 16 was lost: resumed from 8"),
        (run_of(fault(Kind.NOTICE, durable_step=8)), "had notice, and yet 3 steps were repeated"),
        (run_of(fault(Kind.TWO_BOXES), ended_by_attempt=1), "attempt 1 ended it, although attempt 2 had taken over"),
        (run_of(), "attempt 1 ended, and nothing"),
        (run_of(fault(Kind.CLOCK_JUMP)), "attempt 1 ended, and nothing"),
        (run_of(fault(Kind.KILL_TRAINER, struck=False)), "attempt 1 ended, and nothing"),
    ],
)
def test_each_broken_promise_is_a_problem(run, words):
    (found,) = problems(run, steps=60, save_steps=8)
    assert words in found


def test_what_passes_while_the_newest_checkpoint_is_uploaded_is_repeated_too():
    """Killed at step 50, with the checkpoint of step 48 on its way: from 40 again."""
    lost = run_of(KILLED, repeated=[10], resumed=[40], waiting=on_its_way(48, steps=2))
    assert problems(lost, steps=60, save_steps=8) == []


def test_a_large_checkpoint_may_take_the_longer():
    large = on_its_way(16, seconds=UPLOAD_SECONDS + 1) | {"size": 10**9}
    assert problems(run_of(KILLED, waiting=large), steps=60, save_steps=8) == []


def test_what_came_too_late_is_the_oldest_checkpoint_that_the_next_attempt_did_not_get():
    disk = tuple(Waiting(step, 50 - step, 1.0, 10) for step in (40, 48))
    one, two, three = Attempt(1, "i-1", 0, 50, disk), Attempt(2, "i-2", 40, 55), Attempt(3, "i-3", 48, 60)
    assert uploading([one, two, three]) == [disk[1], None]
    assert uploading([one]) == []


def test_what_could_not_be_kept_is_not_asked_for():
    """Where uploads failed, more than one interval may go; a corrupt checkpoint is not to be resumed from."""
    assert problems(run_of(KILLED, fault(Kind.S3_REFUSES), repeated=[12]), steps=60, save_steps=8) == []
    assert problems(run_of(fault(Kind.CORRUPT, durable_step=16), repeated=[12]), steps=60, save_steps=8) == []
