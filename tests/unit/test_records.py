"""The records of a run: written and read back the same, and no body whatever that a reader does not survive."""

import json
import math
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runs import a_run, run_json
from training_image.core import records
from training_image.core.codec import UnreadableError
from training_image.core.contract import SCHEMA_VERSION, Actor, Phase, Reason, RunKeys, State
from training_image.core.mail import Event, Sent
from training_image.core.records import (
    Claim,
    Control,
    Heartbeat,
    LimitChange,
    Outcome,
    Run,
    Status,
    StopRequest,
    in_force,
    outcome_now,
    read_control,
    read_heartbeat,
    read_outcome,
    read_run,
    update_control,
)
from training_image.core.schema import NewerSchemaError

KEYS = RunKeys("run-1a2b3c4d-1")
KINDS = (Run, Control, Outcome, Heartbeat, Status, Claim, Event)

moments = st.datetimes(datetime(2000, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=0)
)
counts = st.none() | st.integers(0, 10**9)
numbers = st.none() | st.floats(0, 1e9)
texts = st.text(max_size=20)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["9999-12-31T23:59:59+00:00", "2026-02-30", "2026-01-01T00:00:00", "0001-01-01T00:00:00+14:00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
written = st.one_of(
    st.builds(
        lambda deadline, attempts, kept, words: a_run(
            deadline=deadline.isoformat(), max_attempts=attempts, auto_shutdown=kept, training_command=words
        ),
        moments, st.integers(1, 50), st.booleans(), st.none() | st.lists(texts, min_size=1, max_size=3),
    ),
    st.builds(
        Control,
        stop=st.none() | st.builds(StopRequest, moments, st.sampled_from(Reason), texts),
        limits=st.none() | st.builds(LimitChange, st.none() | moments, numbers, st.none() | st.booleans()),
    ),
    st.builds(Outcome, st.sampled_from(Reason), st.none() | texts, st.sampled_from(Actor), moments, counts, counts),
    st.builds(
        Heartbeat, st.sampled_from(Phase), counts, counts, numbers, numbers, numbers, moments, st.sampled_from(State),
        counts, counts, counts, st.none() | texts,
    ),
    st.builds(Status, st.sampled_from(Phase), counts, counts, numbers, numbers, numbers, moments),
    st.builds(Claim, st.none() | texts, moments, texts),
    st.builds(Event, texts, texts, moments, texts, st.sampled_from(Sent)),
)  # fmt: skip


class Memory:
    """A bucket in a dict."""

    def __init__(self, **objects):
        self.objects = {getattr(KEYS, name): body for name, body in objects.items()}

    def read(self, key):
        return self.objects.get(key)

    def update(self, key, change):
        self.objects[key] = json.dumps(change(self.objects.get(key))).encode()


def refusal(read):
    """Why ``read`` finds it unreadable; None: it does not. Anything else that it raises fails the test."""
    try:
        read()
    except UnreadableError as error:
        return str(error)
    return None


@given(written)
def test_what_is_written_is_read_back_the_same(record):
    assert type(record).parse(json.dumps(record.to_json()).encode()) == record


@given(st.sampled_from(KINDS), st.binary(max_size=60) | any_json.map(lambda value: json.dumps(value).encode()))
def test_a_body_of_any_kind_is_read_or_is_unreadable_in_one_sentence(kind, body):
    said = refusal(lambda: kind.parse(body))
    assert said is None or (said.startswith(kind.NAME) and "\n" not in said)


@given(st.data(), written, any_json)
def test_a_field_of_any_kind_is_read_or_is_unreadable_by_its_name(data, record, value):
    changed = record.to_json()
    name = data.draw(st.sampled_from(sorted(field.name for field in fields(record))))
    said = refusal(lambda: type(record).read({**changed, name: value}))
    assert said is None or said.startswith(record.NAME)


@given(any_json)
def test_a_report_with_a_field_that_makes_no_sense_keeps_the_others(value):
    beat = {"instance_id": "i-1", "at": "2026-01-01T00:00:00+00:00"}
    found = Heartbeat.read({**beat, "loss": value, "phase": value, "step": value})
    assert (found.instance_id, found.at) == ("i-1", datetime(2026, 1, 1, tzinfo=UTC))
    assert found.loss is None or math.isfinite(found.loss)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"deadline": "9999-12-31T23:59:59+00:00"}, "deadline is no time"),
        ({"deadline": "2026-01-01T00:00:00"}, "deadline is no time with a zone"),
        ({"deadline": None}, "deadline is no time"),
        ({"max_attempts": True}, "max_attempts is no number"),
        ({"max_attempts": 10**5000}, "max_attempts is no number"),
        ({"settings": []}, "settings is no object"),
        ({"training_command": "python"}, "training_command is no list"),
        ({"secrets": {"hugging_face": 1}}, "secrets is no text"),
        ({"schema": 0}, "schema is 0"),
        ({"schema": "2"}, "schema is '2'"),
    ],
)
def test_an_order_is_read_strictly(change, said):
    with pytest.raises(UnreadableError, match=r"run\.json is unreadable: .*") as caught:
        Run.read(run_json(**change))
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", [Run, Control, Outcome])
def test_a_newer_schema_is_refused_with_what_to_do(kind):
    with pytest.raises(NewerSchemaError, match=rf"has schema {SCHEMA_VERSION + 1}.*git pull, make setup"):
        kind.read({"schema": SCHEMA_VERSION + 1})


def test_an_outcome_of_the_first_schema_is_migrated():
    first = {"reason": "succeeded", "by": "box", "at": "2026-01-01T00:00:00+00:00", "attempts": 1}
    assert Outcome.read(first).by is Actor.INSTANCE
    assert Outcome.read({**first, "by": "terminator"}).by is Actor.TERMINATOR


# --- the rules --------------------------------------------------------------------------------------------------------
@given(st.booleans(), st.none() | moments, st.none() | st.booleans(), st.booleans())
def test_a_changed_limit_lies_over_the_runs_own_and_a_stop_overrides_what_keeps_the_instance(own, moved, kept, stopped):
    run = a_run(auto_shutdown=own)
    control = Control(
        stop=StopRequest(records.now()) if stopped else None, limits=LimitChange(deadline=moved, auto_shutdown=kept)
    )
    held = in_force(run, control)
    assert held.deadline == (moved or run.deadline)
    assert held.auto_shutdown == (stopped or (own if kept is None else kept))
    assert in_force(run, None) == records.Limits(run.deadline, own)


def test_what_nobody_changed_is_not_written_for_the_shell_on_the_instance():
    assert Control(limits=LimitChange(auto_shutdown=False)).to_json() == {
        "limits": {"auto_shutdown": False}, "schema": SCHEMA_VERSION,
    }  # fmt: skip


def test_every_writer_of_an_outcome_writes_the_same_fields():
    outcome = outcome_now(Reason.FAILED, "why", Actor.CONTROLLER)
    assert outcome.at is not None
    assert abs(outcome.at - datetime.now(UTC)) < timedelta(minutes=1)
    assert set(outcome.to_json()) == {field.name for field in fields(Outcome)}


# --- readers ----------------------------------------------------------------------------------------------------------
def test_what_is_not_there_is_told_from_what_is_unreadable():
    nothing, broken = Memory(), Memory(run=b"{", control=b"[]", outcome=b"", heartbeat=b"nonsense")
    assert (read_run(nothing, KEYS), read_outcome(nothing, KEYS)) == (None, None)
    assert (read_control(nothing, KEYS), read_heartbeat(nothing, KEYS)) == (Control(), Heartbeat())
    for read in (read_run, read_control):
        with pytest.raises(UnreadableError):
            read(broken, KEYS)
    ended = read_outcome(broken, KEYS)
    assert ended is not None, "whatever it says, the run has ended"
    assert ended.reason is Reason.FAILED
    assert "outcome.json is unreadable" in ended.sentence
    assert read_heartbeat(broken, KEYS) == Heartbeat()


def test_a_control_file_is_changed_and_one_that_is_unreadable_replaced():
    stop = StopRequest(records.now(), detail="why")
    for body in (None, b"[", Control(limits=LimitChange(auto_shutdown=True))):
        bucket = Memory()
        if body is not None:
            bucket.objects[KEYS.control] = body if isinstance(body, bytes) else json.dumps(body.to_json()).encode()
        update_control(bucket, KEYS, lambda control: replace(control, stop=stop))
        assert read_control(bucket, KEYS).stop == stop
    assert read_control(bucket, KEYS).limits == LimitChange(auto_shutdown=True)
    newer = Memory(control=b'{"schema": 99}')
    with pytest.raises(NewerSchemaError):
        update_control(newer, KEYS, lambda control: replace(control, stop=stop))
