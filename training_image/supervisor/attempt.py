"""One attempt at a run, from its claim to its exit code (``contract.SupervisorExit``).

The main thread waits for events (prepared, trainer gone, stop) and decides; threads watch, publish and report. It
never calls Auto Scaling: what its exit code means for the instance is the host's business, in one place.
"""

from __future__ import annotations

import argparse
import logging
import math
import queue
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from training_image.core.codec import UnreadableError
from training_image.core.contract import (
    DRAIN_SECONDS,
    Actor,
    Phase,
    Reason,
    RunKeys,
    State,
    SupervisorExit,
    TrainerExit,
    WorkDir,
)
from training_image.core.errors import UserError
from training_image.core.records import Control, Run, in_force, outcome_now, readable_control
from training_image.core.store import Store
from training_image.storage import checkpoints
from training_image.supervisor import ending, watch
from training_image.supervisor.cloudwatch import published
from training_image.supervisor.decisions import CRASHED, Cause, Stop, may_end_at_once, verdict
from training_image.supervisor.ending import Gone
from training_image.supervisor.imds import Imds
from training_image.supervisor.preparation import prepare
from training_image.supervisor.publisher import Publisher
from training_image.supervisor.reporter import Reporter, read_status
from training_image.supervisor.trainer_process import Tee, TrainerProcess

log = logging.getLogger(__name__)

# The base model is in Hugging Face's cache before the trainer starts, which needs neither the Hub nor its token.
TRAINER = ["env", "HF_HUB_OFFLINE=1", sys.executable, "-m", "training_image.train", "--work-dir"]
UPLOAD_RESERVE_SECONDS = 40
"""Part of DRAIN_SECONDS that is kept for uploads: the trainer is killed when the rest is over."""
LAST_LINES = 5
_LOOK_SECONDS = 0.5
"""Between looks at a trainer that is to stop. It bounds every other wait too: a signal that arrives just before a wait
does not interrupt it, and would be handled only after it."""


@dataclass(frozen=True)
class Prepared:
    """Everything is downloaded."""

    resume: checkpoints.Resume


Events = queue.SimpleQueue[Stop | Prepared | Gone]  # reentrant, as a signal handler needs it


class Attempt:
    """``run`` is called once."""

    def __init__(
        self, store: Store, keys: RunKeys, work: WorkDir, tee: Tee, events: Events, options: argparse.Namespace
    ) -> None:
        self._store = store
        self._keys = keys
        self._work = work
        self._tee = tee
        self._events = events
        self._options = options
        self._imds = Imds()
        self._number = 0
        self._at_risk = False
        self._publisher: Publisher | None = None
        self._reporter: Reporter | None = None
        self._drained_by: float | None = None  # monotonic; None while nobody asked to stop

    def run(self) -> int:
        body = self._store.read(self._keys.run)
        if body is None:
            raise FileNotFoundError(f"s3://{self._store.bucket}/{self._keys.run} does not exist: nothing to run.")
        self._work.run.write_bytes(body)
        if self._store.read(self._keys.outcome) is not None:
            log.info("The run has ended before")
            return SupervisorExit.RUN_ENDED
        try:
            self._run = Run.parse(body)
        except UnreadableError as error:
            return self._end(Reason.FAILED, str(error))
        control = self._control()
        if stop := watch.control_stop(control) or watch.deadline_stop(self._deadline, datetime.now(UTC)):
            return self._end(stop.reason or Reason.STOPPED, f"{stop.detail}, before this instance began")
        self._instance_id = self._imds.get("instance-id")
        self._number, ours = watch.claim(self._store, self._keys, self._instance_id, self._run.max_attempts)
        if not ours:
            return self._end(Reason.FAILED, f"All {self._run.max_attempts} attempts of the run were used up")
        log.info("Attempt %d of %d", self._number, self._run.max_attempts)
        return self._attend()

    # --- before ---------------------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        try:
            self._events.put(Prepared(prepare(self._store, self._keys, self._run, self._work)))
        except UserError as error:
            self._events.put(Gone(TrainerExit.BAD_INPUT, str(error)))
        except Exception as error:
            log.exception("Preparing the instance failed")
            self._events.put(Gone(CRASHED, f"Preparing the instance failed: {error}"))

    # --- during ---------------------------------------------------------------------------------------------------
    def _attend(self) -> int:
        self._reporter = Reporter(
            self._store,
            self._keys,
            self._work,
            attempt=self._number,
            instance_id=self._instance_id,
            booted_at=self._options.booted_at,
            interval=self._options.interval,
            log_file=self._tee.path,
            durable_step=self._durable_step,
        )
        self._reporter.enter(Phase.DOWNLOADING)
        self._reporter.start()
        pollers = [
            watch.Poller("instance", self._options.interval, self._look_at_instance, self._events.put),
            watch.Poller("run", self._options.interval, self._look_at_run, self._events.put),
        ]
        for poller in pollers:
            poller.start()
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
        with published(
            self._run,
            self._work,
            attempt=self._number,
            log_file=self._tee.path,
            durable_step=self._durable_step,
            interval=self._options.interval,
        ):
            gone, stop = self._wait_until_gone()
            for poller in pollers:
                poller.end()
            return self._conclude(gone, stop, self._reporter)

    def _look_at_instance(self) -> Stop | None:
        if not self._at_risk and self._imds.rebalance_recommended():
            log.info("This instance is at an elevated risk of interruption: saving a checkpoint now")
            self._at_risk = True
            self._work.save.touch()
        return watch.deadline_stop(self._deadline, datetime.now(UTC)) or self._imds.notice()

    def _look_at_run(self) -> Stop | None:
        newer = watch.newer_claim(self._store, self._keys, self._number)
        return newer or watch.control_stop(self._control())

    def _control(self) -> Control:
        """Reads control.json and adopts its limits. If it is unreadable, the limits of run.json apply."""
        control = readable_control(self._store, self._keys, log.warning)
        self._deadline = in_force(self._run, control).deadline
        return control

    def _wait_until_gone(self) -> tuple[Gone, Stop | None]:
        trainer: TrainerProcess | None = None
        stop: Stop | None = None
        give_up = math.inf  # monotonic
        while True:
            try:
                event = self._events.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if stop is None:
                    continue
                if may_end_at_once(read_status(self._work).phase):
                    log.info("The trainer has nothing unsaved and is ended at once")
                elif time.monotonic() < give_up:
                    continue
                else:
                    log.warning("The trainer did not stop in time and is killed: the last published checkpoint stands")
                event = Gone(None)
            if isinstance(event, Prepared):
                trainer = self._start(event.resume)
                continue
            if isinstance(event, Stop):
                log.info("Stopping: %s", event.detail)
                if stop is None or event.reason or event.cause is Cause.FENCED:  # an end outranks a leave
                    stop = event
                if self._drained_by is None:
                    self._drained_by = time.monotonic() + DRAIN_SECONDS
                    give_up = self._drained_by - UPLOAD_RESERVE_SECONDS
                self._work.stop.touch()
                if trainer is not None and event.cause is not Cause.FENCED:
                    continue
                event = Gone(None)
            if trainer is not None:
                trainer.kill()
            return event, stop

    def _start(self, resume: checkpoints.Resume) -> TrainerProcess:
        assert self._reporter is not None  # noqa: S101
        if resume.manifest:
            log.info("Resuming from the checkpoint of step %d", resume.manifest.step)
            self._reporter.resumed_from_step = resume.manifest.step
        self._publisher = Publisher(
            self._store,
            self._keys,
            self._work.checkpoints,
            attempt=self._number,
            settings_sha256=self._run.settings_sha256,
            resumed=resume,
        )
        self._publisher.start()
        self._reporter.enter(Phase.LOADING)
        command = self._run.training_command or (*TRAINER, str(self._work.root))
        return TrainerProcess(command, self._work.root, self._tee, lambda code: self._events.put(Gone(code)))

    def _durable_step(self) -> int | None:
        return self._publisher.durable_step if self._publisher else None

    # --- after ----------------------------------------------------------------------------------------------------
    def _conclude(self, gone: Gone, stop: Stop | None, reporter: Reporter) -> int:
        last_lines = self._tee.tail(LAST_LINES)  # the trainer's, before ours follow
        stop = self._last_look(stop)
        if stop is not None and stop.cause is Cause.FENCED:
            log.info("Leaving without a word: %s", stop.detail)
            reporter.abandon()
            if self._publisher:
                self._publisher.abandon()
            return SupervisorExit.INSTANCE_LEAVING
        reporter.enter(Phase.UPLOADING)
        budget = DRAIN_SECONDS if self._drained_by is None else self._drained_by - time.monotonic()
        if self._publisher and not self._publisher.finish(budget):
            log.warning("The last checkpoint could not be published in time")
        final, gone = self._upload_result(gone)
        judged = verdict(
            trainer_exit=gone.exit_code,
            succeeded=final is not None,
            stop=stop,
            attempt=self._number,
            max_attempts=self._run.max_attempts,
        )
        if judged.reason is Reason.SUCCEEDED and final is not None:
            detail = f"{final.get('step')} steps on {final.get('train_examples')} examples"
            facts = ending.final_facts(final)
        else:
            detail = self._detail(gone, stop, last_lines)
            facts = {"step": read_status(self._work).step or self._durable_step()}
        log.info("Attempt %d is over: %s", self._number, detail)
        reporter.flush()
        if judged.reason is not None:
            self._end(judged.reason, detail, resumed_from_step=reporter.resumed_from_step, **facts)
        reporter.close(State.WAITING if judged.reason is None else State.ENDED)
        return judged.exit_code

    def _upload_result(self, gone: Gone) -> tuple[dict[str, Any] | None, Gone]:
        """The final marker once the result is in S3; else None, and why. What was not uploaded is no result."""
        final = ending.final_marker(self._work) if gone.exit_code == TrainerExit.DONE else None
        if final is None:
            return None, gone
        try:
            ending.upload_results(self._store, self._keys, self._work)
        except Exception as error:
            log.exception("The result could not be uploaded")
            return None, Gone(gone.exit_code, f"The result could not be uploaded ({error})")
        return final, gone

    def _detail(self, gone: Gone, stop: Stop | None, last_lines: list[str]) -> str:
        if stop is not None and gone.exit_code not in (TrainerExit.BAD_INPUT, TrainerExit.OUT_OF_MEMORY):
            return ending.stop_sentence(stop, self._durable_step())
        return ending.gone_sentence(gone, self._work, self._number, self._run.max_attempts, last_lines)

    def _end(self, reason: Reason, detail: str, **facts: Any) -> int:
        outcome = outcome_now(reason, detail, Actor.INSTANCE, attempts=self._number, **facts)
        ending.write_outcome(self._store, self._keys, outcome)
        return SupervisorExit.RUN_ENDED

    def _last_look(self, stop: Stop | None) -> Stop | None:
        """A destroy reaches the instance as a scale-in too: only control.json says that the run is to end."""
        try:
            found = self._look_at_run()
        except Exception as error:
            log.warning("Whether the run is to end is not known: %s", error)
            return stop
        if found is None or (stop is not None and stop.cause is Cause.FENCED):
            return stop
        return found
