"""What a series of disturbed runs consists of, decided before it starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.chaos.observe import Attempt, gaps, repeated
from lab.chaos.plan import PHASES, Kind, plan

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
        assert not any(fault.kind is Kind.CORRUPT and fault.phase for fault in run)
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
