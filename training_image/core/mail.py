"""Sends each e-mail of a run once, whoever sees that it is due, and loses none.

An event's object is created as pending, its e-mail published, then the object marked as sent. What could not be
published, or whose sender died in between, is sent by whoever looks next. It comes twice only if a sender dies after
publishing and before it has marked the object.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar

import boto3
from botocore.config import Config

from training_image.core.codec import Record, UnreadableError
from training_image.core.contract import RunKeys
from training_image.core.notices import Notice
from training_image.core.records import now
from training_image.core.store import Store

TAKE_OVER_AFTER = timedelta(minutes=2)
"""A sender that has not said within this time what became of its e-mail is dead: ``sns_client`` gives up sooner."""


def sns_client() -> Any:
    """A client that gives up within half a minute."""
    return boto3.client("sns", config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}))


class Sent(StrEnum):
    """How far an event's e-mail has come."""

    PENDING = "pending"  # somebody is about to send it
    FAILED = "failed"  # sending it did not work: whoever looks next sends it
    SENT = "sent"


@dataclass(frozen=True)
class Event(Record):
    """``events/<name>.json``: one e-mail to the operator, and whether it was sent."""

    NAME: ClassVar[str] = "an event"

    subject: str
    body: str
    at: datetime
    """When whoever sends it took it on."""
    token: str
    """Of whoever sends it."""
    sent: Sent = Sent.SENT
    """Events of an earlier version say nothing: they were sent, or lost for good."""

    def taken_on(self, token: str) -> Event:
        """By another sender, as of now."""
        return replace(self, at=now(), token=token, sent=Sent.PENDING)

    def marked(self, sent: Sent) -> Event:
        return replace(self, sent=sent)


class Mail:
    """The e-mails of one run. ``sns`` is a client as ``sns_client`` makes it."""

    def __init__(self, store: Store, sns: Any, topic_arn: str, run_id: str) -> None:
        self._store, self._sns, self._topic, self._keys = store, sns, topic_arn, RunKeys(run_id)

    def announce(self, notice: Notice) -> bool:
        """Send ``notice`` unless its event exists already; whether it was sent.

        Raises:
            Exception: S3's or SNS's; what was not sent stays for ``send_overdue``.
        """
        event = Event(notice.subject, notice.body, now(), uuid.uuid4().hex, Sent.PENDING)
        key = self._keys.event(notice.name)
        if not self._store.create_json(key, event.to_json()):
            return False
        self._send(key, event)
        return True

    def send_overdue(self) -> None:
        """Send what others could not.

        Raises:
            Exception: S3's or SNS's, of the first that could not be sent.
        """
        for item in self._store.list(self._keys.events):
            try:
                body = self._store.read(item.key) or b""
                event = Event.parse(body)
            except UnreadableError as error:
                print(f"{item.key}: {error}")
                continue
            if event.sent is Sent.SENT:
                continue
            if event.sent is Sent.PENDING and now() < event.at + TAKE_OVER_AFTER:
                continue
            mine = event.taken_on(uuid.uuid4().hex)
            if self._store.replace_json(item.key, body, mine.to_json()):
                self._send(item.key, mine)

    def _send(self, key: str, event: Event) -> None:
        try:
            self._sns.publish(TopicArn=self._topic, Subject=event.subject, Message=event.body)
        except Exception:
            self._store.put_json(key, event.marked(Sent.FAILED).to_json())
            raise
        self._store.put_json(key, event.marked(Sent.SENT).to_json())
