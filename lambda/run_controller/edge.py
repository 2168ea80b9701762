"""The run controller's AWS edge: carries out what policy.py decides. Standard library and boto3 only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import boto3
import run_file
from group import Group, ensure_spot_role
from image_digest import hold, release
from policy import Action, Current, Request, decide
from run_file import Refused

from training_image.core import contract, notices
from training_image.core.codec import UnreadableError
from training_image.core.contract import Actor, Reason, RunKeys
from training_image.core.mail import Mail, sns_client
from training_image.core.records import (
    LimitChange,
    Run,
    StopRequest,
    in_force,
    now,
    outcome_now,
    read_outcome,
    read_run,
    readable_control,
    update_control,
)
from training_image.core.schema import NewerSchemaError
from training_image.core.store import Store, s3_client

ANSWER_RESERVE_SECONDS = 60
"""Kept back from the function's time for ending the instance and answering."""
DRAIN_WAIT_SECONDS = 420
"""How long a stop waits for the instance's own outcome: an evaluation batch or an upload may be under way."""
POLL_SECONDS = 2
LATE_RUNS = 10
"""How many runs back a request that is delivered once more is recognised; Lambda gives up after six hours."""


def serve(event: dict[str, Any], remaining_ms: Callable[[], int]) -> dict[str, str]:
    """Handle one request and return the resource's attributes.

    Raises:
        Refused: a run is active and the request would change it.
    """
    controller = Controller(json.loads(event["ResourceProperties"]["Spec"]), remaining_ms)
    old = event.get("OldResourceProperties", {}).get("Spec")
    rolling_back = event["RequestType"] != "Delete" and _rolling_back(event["StackId"])
    request = Request(
        kind=event["RequestType"],
        request_id=event["RequestId"],
        spec=controller.spec,
        old_spec=json.loads(old) if old else None,
        undoes=controller.latest_update() if rolling_back else None,
    )
    if request.kind == "Update" and not rolling_back:
        controller.note_update(request.request_id)
    current = _current(controller, request)
    decision = decide(request, current)
    print(f"{request.kind}: {decision.action}, because {decision.sentence}")
    if decision.action is Action.REFUSE:
        raise Refused(decision.sentence)
    if decision.action is Action.START:
        return {"RunId": controller.start(request.request_id)}
    if decision.action is Action.LIMIT and current is not None:
        controller.limit(current)
    if decision.action is Action.STOP:
        controller.stop(current, decision.sentence)
    return {"RunId": current.run_id if current else "none"}


def _current(controller: Controller, request: Request) -> Current | None:
    """The stack's run. A delete and a rollback must not fail: they do what can be done without an unreadable record."""
    try:
        return controller.current(request.request_id)
    except UnreadableError as error:
        if request.kind != "Delete" and request.undoes is None:
            raise
        print(f"the stack's run is not known: {error}")
        return None


def _rolling_back(stack_id: str) -> bool:
    stacks = boto3.client("cloudformation").describe_stacks(StackName=stack_id)["Stacks"]
    return "ROLLBACK" in stacks[0]["StackStatus"]


class Controller:
    """One stack's runs: its group, its pointer, its objects."""

    def __init__(self, spec: dict[str, Any], remaining_ms: Callable[[], int]) -> None:
        self.spec = spec
        self._group = Group(spec["group"])
        self._store = Store(s3_client(), spec["outputs_bucket"])
        self._pointer = contract.pointer_key(spec["stack_suffix"])
        self._remaining_ms = remaining_ms

    def current(self, request_id: str) -> Current | None:
        """The pointer's run; for a late repeat of an older request, the run which that request began.

        A run whose group has neither capacity nor an instance counts as ended, unless this very request is still
        starting it and has not set the capacity yet.
        """
        pointer = self._store.read_json(self._pointer)
        if pointer is None:
            return None
        run = read_run(self._store, RunKeys(pointer["run_id"]))
        if run is None:
            return None
        if run.request_id != request_id:
            run = self._begun_by(request_id, before=pointer["number"]) or run
        ended = read_outcome(self._store, RunKeys(run.run_id)) is not None
        if not ended and (run.request_id != request_id or pointer.get("started")):
            ended = self._closed(run)
        return Current(run.run_id, run.request_id, run.spec, ended)

    def note_update(self, request_id: str) -> None:
        """Beside the pointer's run, so that a rollback knows which update it undoes: its own event does not say."""
        pointer = self._store.read_json(self._pointer)
        if pointer is not None and pointer["request_id"] != request_id:  # else it is delivered once more
            self._store.put_json(self._pointer, {**pointer, "latest_update": request_id})

    def latest_update(self) -> str:
        """Id of the latest update that was noted, else of the request that started the run; empty if there is none."""
        pointer = self._store.read_json(self._pointer) or {"request_id": ""}
        return str(pointer.get("latest_update", pointer["request_id"]))

    def _begun_by(self, request_id: str, before: int) -> Run | None:
        """An earlier run that this request began: Lambda may deliver it again hours later, and it must not begin one
        more."""
        for number in range(before - 1, max(0, before - LATE_RUNS), -1):
            run_id = contract.run_id(self.spec["run_name"], self.spec["stack_suffix"], number)
            run = read_run(self._store, RunKeys(run_id))
            if run is not None and run.request_id == request_id:
                return run
        return None

    def start(self, request_id: str) -> str:
        """Mint the run and ask for its instance; safe to repeat with the same request id.

        Raises:
            Refused: what it should begin with is not there or does not fit.
        """
        inherited = run_file.inherited(self._store, self.spec)
        run_file.check_adapter(self._store, {**self.spec, **inherited}["settings"])
        if self.spec["use_spot"]:
            ensure_spot_role()
        pointer = self._store.read_json(self._pointer) or {"number": 0}
        number = pointer["number"] if pointer.get("request_id") == request_id else pointer["number"] + 1
        while True:
            began = now()
            run = run_file.mint(self.spec, inherited, request_id, number, began, self._deadline(began))
            if self._store.create_json(RunKeys(run.run_id).run, run.to_json()):
                break
            before = read_run(self._store, RunKeys(run.run_id))
            if before is not None and before.request_id == request_id:
                run = before
                break
            number += 1
        warning = self._hold(run)
        if pointer.get("request_id") != request_id:  # else the instance may be this run's own
            self._remove_kept_instance()
            if "run_id" in pointer:
                self._release(pointer["run_id"])
        pointer |= {"run_id": run.run_id, "number": number, "request_id": request_id}
        self._store.put_json(self._pointer, {**pointer, "started": False})
        self._group.arm(run.deadline)
        self._group.open()
        self._store.put_json(self._pointer, {**pointer, "started": True})
        self._announce(run.run_id, lambda: notices.started(run, warning))
        return run.run_id

    def limit(self, current: Current) -> None:
        """Put this request's limits in force: the instance and the terminator read them, killer 3 is moved."""
        keys = RunKeys(current.run_id)
        run = self._run(keys)
        deadline = self._deadline(run.created_at)
        limits = LimitChange(deadline=deadline, **{name: self.spec[name] for name in contract.LIVE_LIMITS})
        update_control(self._store, keys, lambda control: replace(control, limits=limits))
        self._group.arm(deadline)

    def _deadline(self, started: datetime) -> datetime:
        return started + timedelta(hours=self.spec["max_runtime_hours"])

    def _remove_kept_instance(self) -> None:
        """An instance kept for review after an earlier run (auto_shutdown=false) holds the one place that the group
        has."""
        if self._group.instances():
            self._group.close()
            self._wait(DRAIN_WAIT_SECONDS, lambda: not self._group.instances())

    def stop(self, current: Current | None, why: str) -> None:
        """Ask for a checkpoint, wait for the instance within a bound, then take the capacity away whatever happened."""
        if current is not None and not current.ended:
            keys = RunKeys(current.run_id)
            self._ask_to_stop(keys, why)
            self._wait(
                DRAIN_WAIT_SECONDS, lambda: read_outcome(self._store, keys) is not None or not self._group.instances()
            )
        self._group.close()
        if not self._wait(DRAIN_WAIT_SECONDS, lambda: not self._group.instances()):
            print(f"STILL THERE: {self._group.instances()} in group {self._group.name}; check them in the EC2 console")
        if current is not None and not current.ended:
            self._close(current.run_id, Reason.STOPPED, f"Stopped before an instance reported: {why}.")
            # Not left to the auto-terminator, which a stack that is being deleted takes along.
            self._announce(current.run_id, lambda: self._end_notice(current.run_id))
        if current is not None:
            self._release(current.run_id)

    def _ask_to_stop(self, keys: RunKeys, why: str) -> None:
        """Where it cannot be asked, the capacity is taken away all the same."""
        request = StopRequest(now(), detail=why)
        try:
            update_control(self._store, keys, lambda control: replace(control, stop=request))
        except NewerSchemaError as error:
            print(f"the run is not asked for a checkpoint: {error}")

    def _hold(self, run: Run) -> str:
        """Keep the image for as long as the run is the stack's current one; the sentence that says why it is not."""
        try:
            hold(run.image, contract.repository_name(self.spec["lab"]), run.run_id)
        except Exception as error:
            print(f"the image of run {run.run_id} is not held: {error!r}")
            return (
                f"Its image got no tag {contract.image_tag(run.run_id)} ({error}): the repository's lifecycle may "
                "delete it under the run, if many images are pushed."
            )
        return ""

    def _release(self, run_id: str) -> None:
        """An image that is held too long costs cents; it fails no request."""
        try:
            release(contract.repository_name(self.spec["lab"]), run_id)
        except Exception as error:
            print(f"the image of run {run_id} stays held: {error!r}")

    def _end_notice(self, run_id: str) -> notices.Notice:
        keys = RunKeys(run_id)
        run, outcome = self._run(keys), read_outcome(self._store, keys)
        used = self._group.used_since(run.created_at)
        return notices.ended(run, outcome or outcome_now(Reason.STOPPED, "", Actor.CONTROLLER), used)

    def _run(self, keys: RunKeys) -> Run:
        run = read_run(self._store, keys)
        if run is None:
            raise FileNotFoundError(f"s3://{self._store.bucket}/{keys.run} does not exist any more")
        return run

    def _announce(self, run_id: str, notice: Callable[[], notices.Notice]) -> None:
        """An e-mail that cannot be written or sent must not fail a request. It is tried twice, because a stack that is
        being deleted leaves no function that would send it later."""
        mail = Mail(self._store, sns_client(), self.spec["alert_topic"], run_id)
        for send in (lambda: mail.announce(notice()), mail.send_overdue):
            try:
                send()
            except Exception as error:
                print(f"no e-mail about run {run_id}: {error!r}")

    def _closed(self, run: Run) -> bool:
        """Whether a run without an outcome can no longer get one; if so, write it."""
        deadline = in_force(run, readable_control(self._store, RunKeys(run.run_id), print)).deadline
        overdue = now() > deadline + timedelta(seconds=contract.SCHEDULED_ACTION_MARGIN_SECONDS)
        if not self._group.is_empty():
            return False
        if overdue:
            self._close(run.run_id, Reason.EXPIRED, "The deadline passed before an instance could report.")
        else:
            self._close(run.run_id, Reason.FAILED, "The group was emptied and no instance reported an outcome.")
        return True

    def _close(self, run_id: str, reason: Reason, detail: str) -> None:
        outcome = outcome_now(reason, detail, Actor.CONTROLLER)
        self._store.create_json(RunKeys(run_id).outcome, outcome.to_json())

    def _wait(self, seconds: float, done: Callable[[], bool]) -> bool:
        """Poll until ``done`` or the bound, which the function's own remaining time cuts short."""
        end = time.monotonic() + min(seconds, self._remaining_ms() / 1000 - ANSWER_RESERVE_SECONDS)
        while not done():
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True
