"""What can tell a running attempt to stop, each looked at every few seconds from a thread of its own."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from training_image.core.contract import DEADLINE_MARGIN_SECONDS, Reason, RunKeys
from training_image.core.records import Claim, Control, now
from training_image.core.store import Store
from training_image.supervisor.decisions import Cause, Stop

log = logging.getLogger(__name__)


def deadline_stop(deadline: datetime, at: datetime) -> Stop | None:
    """The run's time is up, or nearly so."""
    if at < deadline - timedelta(seconds=DEADLINE_MARGIN_SECONDS):
        return None
    return Stop(Cause.DEADLINE, f"the run's deadline is {deadline.isoformat()}", Reason.EXPIRED)


def control_stop(control: Control) -> Stop | None:
    """The controller asked for a checkpoint and the end of the run."""
    asked = control.stop
    return None if asked is None else Stop(Cause.CONTROL, asked.detail, asked.reason)


def claim(store: Store, keys: RunKeys, instance_id: str | None, max_attempts: int) -> tuple[int, bool]:
    """Take the lowest attempt number that is free, whoever else is trying: (number, whether it is ours). If all are
    taken, the number is the last one's."""
    for number in range(1, max_attempts + 1):
        ours = Claim(instance_id, now(), uuid.uuid4().hex)
        if store.create_json(keys.claim(number), ours.to_json()):
            return number, True
    return max_attempts, False


def newer_claim(store: Store, keys: RunKeys, attempt: int) -> Stop | None:
    """Another instance has claimed the next attempt: this one is taken for dead. Claims are dense, one look is
    enough."""
    if store.read(keys.claim(attempt + 1)) is None:
        return None
    return Stop(Cause.FENCED, f"attempt {attempt + 1} has taken over")


class Poller:
    """Calls ``look`` every ``interval`` seconds and passes on the first stop of each cause.

    A look that fails is no news: it is logged, once for each outage.
    """

    def __init__(
        self, name: str, interval: float, look: Callable[[], Stop | None], on_stop: Callable[[Stop], None]
    ) -> None:
        self._name = name
        self._interval = interval
        self._look = look
        self._on_stop = on_stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Look no more; does not wait for a look under way."""
        self._ended.set()

    def _run(self) -> None:
        told: set[Cause] = set()
        failing = False
        while not self._ended.is_set():
            try:
                stop = self._look()
                failing = False
            except Exception as error:  # an outage of what is watched is no reason to stop training
                stop = None
                if not failing:
                    log.warning("%s: no answer (%s)", self._name, error)
                failing = True
            if stop is not None and stop.cause not in told:
                told.add(stop.cause)
                self._on_stop(stop)
            self._ended.wait(self._interval)
