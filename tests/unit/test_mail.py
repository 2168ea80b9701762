"""No e-mail is lost and none comes twice, whatever fails between an event, its e-mail and its mark."""

import json
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from training_image.core import mail
from training_image.core.contract import RunKeys
from training_image.core.mail import TAKE_OVER_AFTER, Event, Mail, Sent
from training_image.core.notices import Notice
from training_image.core.store import StoredObject

KEYS = RunKeys("run-1a2b3c4d-1")
STARTED = Notice("started", "It has started", "body")


class Down(Exception):
    pass


class Died(BaseException):
    """A function's end, which no handler of the function sees."""


class World:
    """A bucket, a topic and a clock; ``publishing`` is what a publication does."""

    def __init__(self):
        self.objects, self.mails = {}, []
        self.time = mail.now()
        self.publishing = "works"

    def send(self, notice):
        return Mail(self, self, "topic", KEYS.run_id).announce(notice)

    def look(self):
        Mail(self, self, "topic", KEYS.run_id).send_overdue()

    def event(self, name="started"):
        return Event.parse(self.objects[KEYS.event(name)])

    # --- as Store and as boto3's client -------------------------------------------------------------------------------
    def create_json(self, key, value):
        if key in self.objects:
            return False
        self.put_json(key, value)
        return True

    def put_json(self, key, value):
        self.objects[key] = json.dumps(value).encode()

    def replace_json(self, key, expected, value):
        if self.objects[key] != expected:
            return False
        self.put_json(key, value)
        return True

    def read(self, key):
        return self.objects.get(key)

    def list(self, prefix):
        return [StoredObject(key, 1, self.time, "e") for key in sorted(self.objects) if key.startswith(prefix)]

    def publish(self, TopicArn, Subject, Message):
        if self.publishing == "refused":
            raise Down
        if self.publishing == "dies before":
            raise Died
        self.mails.append(Subject)
        if self.publishing == "dies after":
            raise Died


@pytest.fixture
def world(monkeypatch):
    found = World()
    monkeypatch.setattr(mail, "now", lambda: found.time)
    return found


def test_nothing_is_said_twice(world):
    assert [world.send(STARTED), world.send(STARTED)] == [True, False]
    world.look()
    assert world.mails == ["It has started"]
    assert world.event().sent is Sent.SENT


def test_what_could_not_be_sent_is_sent_by_the_next_look(world):
    world.publishing = "refused"
    with pytest.raises(Down):
        world.send(STARTED)
    with pytest.raises(Down):
        world.look()
    world.publishing = "works"
    world.look()
    world.look()
    assert world.mails == ["It has started"]


def test_an_email_of_a_sender_that_died_is_sent_when_it_cannot_be_alive_any_more(world):
    world.publishing = "dies before"
    with pytest.raises(Died):
        world.send(STARTED)
    world.publishing = "works"
    world.look()
    assert world.mails == [], "it may still be about to"
    world.time += TAKE_OVER_AFTER
    world.look()
    assert world.mails == ["It has started"]


def test_it_comes_twice_only_if_the_sender_died_between_sending_and_marking(world):
    world.publishing = "dies after"
    with pytest.raises(Died):
        world.send(STARTED)
    world.publishing, world.time = "works", world.time + TAKE_OVER_AFTER
    world.look()
    world.look()
    assert world.mails == ["It has started"] * 2


def test_an_event_of_an_earlier_version_was_sent_and_one_that_is_unreadable_stops_no_other(world, capsys):
    world.objects[KEYS.event("a")] = b"nonsense"
    world.put_json(KEYS.event("b"), {"subject": "old", "body": "", "at": "2026-01-01T00:00:00+00:00", "token": "t"})
    world.put_json(KEYS.event("c"), Event("new", "", world.time, "t", Sent.FAILED).to_json())
    world.look()
    assert world.mails == ["new"]
    assert "is unreadable" in capsys.readouterr().out


class AnyOrder(RuleBasedStateMachine):
    """Announcements, looks, refusals and the passing of time in any order; deaths between sending and marking apart."""

    def __init__(self):
        super().__init__()
        self.world, self.due = World(), set()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(mail, "now", lambda: self.world.time)

    def teardown(self):
        self.world.publishing = "works"
        self.world.time += TAKE_OVER_AFTER
        self.world.look()
        assert sorted(self.world.mails) == sorted(self.due), "all of them in the end"
        self.patch.undo()

    @rule(name=st.sampled_from("abc"), publishing=st.sampled_from(["works", "refused", "dies before"]))
    def announce(self, name, publishing):
        self.world.publishing = publishing
        self.due.add(name)
        with suppress(Down, Died):
            self.world.send(Notice(name, name, ""))

    @rule(publishing=st.sampled_from(["works", "refused", "dies before"]))
    def look(self, publishing):
        self.world.publishing = publishing
        with suppress(Down, Died):
            self.world.look()

    @rule(seconds=st.integers(0, 200))
    def wait(self, seconds):
        self.world.time += timedelta(seconds=seconds)

    @invariant()
    def none_comes_twice(self):
        assert len(self.world.mails) == len(set(self.world.mails))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=12, deadline=None)
