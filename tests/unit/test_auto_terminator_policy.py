"""What the auto-terminator ends, and above all what it never ends."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lambdas import load
from tests.support.runs import a_run
from training_image.core.contract import Reason
from training_image.core.records import Control, Heartbeat, LimitChange, Outcome, StopRequest

policy = load("auto_terminator", "policy").policy
Instance, Facts, decide = policy.Instance, policy.Facts, policy.decide

START = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE = START + timedelta(hours=12)


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


def facts(now: datetime, **changes):
    """A run in good health at ``now``: one instance since the start, that has just been heard."""
    values = {
        "now": now,
        "instances": (Instance("i-1", START),),
        "desired": 1,
        "run": a_run(created_at=START.isoformat(), deadline=DEADLINE.isoformat()),
        "outcome": None,
        "heartbeat": Heartbeat(instance_id="i-1", at=now),
        "launches": 1,
        "max_runtime": timedelta(hours=12),
        "control": Control(),
    }
    return Facts(**{**values, **changes})


def test_the_instance_goes_first_at_the_deadline():
    assert decide(facts(DEADLINE + minutes(4))) is None
    ending = decide(facts(DEADLINE + minutes(6)))
    assert ending.reason is Reason.EXPIRED
    assert "12:00 UTC" in ending.sentence


def test_a_run_that_waits_for_capacity_ends_at_its_deadline_too():
    waiting = {"instances": (), "heartbeat": Heartbeat(), "launches": 0}
    assert decide(facts(DEADLINE - minutes(1), **waiting)) is None
    assert decide(facts(DEADLINE + minutes(6), **waiting)).reason is Reason.EXPIRED


def test_an_instance_that_outlives_its_run_is_ended_without_another_outcome():
    ended = {"outcome": Outcome(Reason.SUCCEEDED, at=START)}
    assert decide(facts(START + minutes(9), **ended)) is None, "it still uploads its logs"
    ending = decide(facts(START + minutes(11), **ended))
    assert ending.reason is None


def test_an_instance_kept_for_review_stays_until_the_deadline():
    kept = {
        "outcome": Outcome(Reason.FAILED, at=START),
        "run": a_run(deadline=DEADLINE.isoformat(), auto_shutdown=False),
        "heartbeat": Heartbeat(),
    }
    assert decide(facts(DEADLINE, **kept)) is None
    assert decide(facts(DEADLINE + minutes(6), **kept)) is not None
    stopped = Control(stop=StopRequest(START))
    assert decide(facts(DEADLINE, **kept, control=stopped)) is not None, "who stops a run has reviewed it"


def test_silence_ends_a_run_but_booting_is_no_silence():
    last = START + minutes(60)
    heard = {"heartbeat": Heartbeat(instance_id="i-1", at=last)}
    assert decide(facts(last + minutes(9), **heard)) is None
    ending = decide(facts(last + minutes(11), **heard))
    assert ending.reason is Reason.FAILED
    assert "i-1" in ending.sentence
    replaced = {"instances": (Instance("i-2", last),), **heard}
    assert decide(facts(last + minutes(19), **replaced)) is None, "the new instance has time to boot"
    assert decide(facts(last + minutes(21), **replaced)).reason is Reason.FAILED


def test_a_stop_ends_a_run_that_has_no_instance_at_once_and_an_instance_that_does_not_obey():
    asked = {"control": Control(stop=StopRequest(START, detail="`lab stop` was typed"))}
    waiting = {"instances": (), "heartbeat": Heartbeat(), "launches": 0}
    ending = decide(facts(START + minutes(1), **asked, **waiting))
    assert (ending.reason, ending.sentence) == (Reason.STOPPED, "`lab stop` was typed, and there was no instance.")
    assert decide(facts(START + minutes(9), **asked)) is None, "it saves its checkpoint"
    assert decide(facts(START + minutes(11), **asked)).reason is Reason.STOPPED
    assert decide(facts(START + minutes(11), **asked, outcome=Outcome(Reason.STOPPED, at=START + minutes(10)))) is None


def test_a_crash_loop_ends():
    assert decide(facts(START + minutes(5), launches=5)) is None
    ending = decide(facts(START + minutes(5), launches=6))
    assert ending.reason is Reason.FAILED
    assert "max_attempts is 5" in ending.sentence


def test_where_nothing_can_be_read_age_alone_decides():
    blind = {"run": None, "heartbeat": Heartbeat()}
    assert decide(facts(START + timedelta(hours=12), **blind)) is None
    assert decide(facts(START + timedelta(hours=12.6), **blind)).reason is None


@pytest.mark.parametrize("finished", [None, Outcome(Reason.SUCCEEDED, at=START)])
def test_without_instances_and_capacity_there_is_nothing_to_end_before_the_deadline(finished):
    nothing = {"instances": (), "desired": 0, "outcome": finished, "heartbeat": Heartbeat()}
    assert decide(facts(START + minutes(30), **nothing)) is None


moments = st.datetimes(datetime(2025, 12, 31), datetime(2026, 1, 3), timezones=st.just(UTC))
runs = st.builds(
    lambda deadline, attempts, kept: a_run(deadline=deadline.isoformat(), max_attempts=attempts, auto_shutdown=kept),
    moments, st.integers(1, 5), st.booleans(),
)  # fmt: skip
anything = st.fixed_dictionaries(
    {
        "instances": st.lists(st.builds(Instance, st.sampled_from(["i-1", "i-2"]), moments), max_size=2).map(tuple),
        "desired": st.integers(0, 1),
        "run": st.none() | runs,
        "outcome": st.none() | st.builds(Outcome, st.sampled_from(Reason), at=st.none() | moments),
        "heartbeat": st.builds(
            Heartbeat, instance_id=st.none() | st.sampled_from(["i-1", "i-2"]), at=st.none() | moments
        ),
        "launches": st.integers(0, 9),
        "control": st.builds(
            Control,
            stop=st.none() | st.builds(StopRequest, moments),
            limits=st.none() | st.builds(LimitChange, st.none() | moments, st.none(), st.none() | st.booleans()),
        ),
    }
)


@given(anything, moments)
def test_it_never_raises_whatever_is_missing_or_unreadable(values, now):
    decide(facts(now, **values))


@given(anything, moments, st.timedeltas(timedelta(0), timedelta(days=3)))
def test_what_is_to_end_stays_to_end_as_time_passes(values, now, later):
    if decide(facts(now, **values)) is not None:
        assert decide(facts(now + later, **values)) is not None


@given(anything)
def test_no_instance_outlives_the_deadline_or_where_that_is_unknown_its_age(values):
    long_after = datetime(2026, 1, 5, tzinfo=UTC)
    if values["instances"]:
        assert decide(facts(long_after, **values)) is not None


@given(st.timedeltas(timedelta(0), timedelta(hours=12)), st.timedeltas(timedelta(0), minutes(10)), st.integers(1, 5))
def test_a_run_in_good_health_is_never_ended(age, quiet, launches):
    now = START + age
    beat = Heartbeat(instance_id="i-1", at=now - quiet)
    assert decide(facts(now, heartbeat=beat, launches=launches)) is None
