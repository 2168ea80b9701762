"""The run controller's AWS edge: carries out what policy.py decides. Standard library and boto3 only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import run_file
from botocore.exceptions import ClientError
from image_digest import hold, release
from policy import Action, Current, Request, decide
from run_file import Refused

from training_image.core import contract, notices
from training_image.core.store import Store, s3_client

ANSWER_RESERVE_SECONDS = 60
"""Kept back from the function's time for ending the box and answering."""
DRAIN_WAIT_SECONDS = 420
"""How long a stop waits for the box's own outcome: an evaluation batch or an upload may be under way."""
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
    current = controller.current(request.request_id)
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


def _rolling_back(stack_id: str) -> bool:
    stacks = boto3.client("cloudformation").describe_stacks(StackName=stack_id)["Stacks"]
    return "ROLLBACK" in stacks[0]["StackStatus"]


class Controller:
    """One stack's runs: its group, its pointer, its objects."""

    def __init__(self, spec: dict[str, Any], remaining_ms: Callable[[], int]) -> None:
        self.spec = spec
        self._group = spec["group"]
        self._store = Store(s3_client(), spec["outputs_bucket"])
        self._pointer = contract.pointer_key(spec["stack_suffix"])
        self._remaining_ms = remaining_ms
        self._autoscaling = boto3.client("autoscaling")

    def current(self, request_id: str) -> Current | None:
        """The run that the pointer names; to a request that is delivered once more after others, the one that it began.
        A run that lost its group's capacity counts as ended even if no box could say so; but not the run that this very
        request has begun to start and has not given its capacity yet."""
        pointer = self._store.read_json(self._pointer)
        if pointer is None:
            return None
        run = self._store.read_json(contract.RunKeys(pointer["run_id"]).run)
        if run is None:
            return None
        if run["request_id"] != request_id:
            run = self._begun_by(request_id, before=pointer["number"]) or run
        ended = self._store.read_json(contract.RunKeys(run["run_id"]).outcome) is not None
        if not ended and (run["request_id"] != request_id or pointer.get("started")):
            ended = self._closed(run)
        return Current(run["run_id"], run["request_id"], run["spec"], ended)

    def note_update(self, request_id: str) -> None:
        """Beside the pointer's run, so that a rollback knows which update it undoes: its own event does not say."""
        pointer = self._store.read_json(self._pointer)
        if pointer is not None and pointer["request_id"] != request_id:  # else it is delivered once more
            self._store.put_json(self._pointer, {**pointer, "latest_update": request_id})

    def latest_update(self) -> str:
        """Id of the update before this request; the one that started the run if none was noted since. Empty: none."""
        pointer = self._store.read_json(self._pointer) or {"request_id": ""}
        return str(pointer.get("latest_update", pointer["request_id"]))

    def _begun_by(self, request_id: str, before: int) -> dict[str, Any] | None:
        """An earlier run that this request began: Lambda may deliver it again hours later, and it must not begin one
        more."""
        for number in range(before - 1, max(0, before - LATE_RUNS), -1):
            run_id = contract.run_id(self.spec["run_name"], self.spec["stack_suffix"], number)
            run: dict[str, Any] | None = self._store.read_json(contract.RunKeys(run_id).run)
            if run is not None and run["request_id"] == request_id:
                return run
        return None

    def start(self, request_id: str) -> str:
        """Mint the run and ask for its box; safe to repeat with the same request id.

        Raises:
            Refused: what it should begin with is not there or does not fit.
        """
        inherited = run_file.inherited(self._store, self.spec)
        run_file.check_adapter(self._store, {**self.spec, **inherited}["settings"])
        if self.spec["use_spot"]:
            _ensure_spot_role()
        pointer = self._store.read_json(self._pointer) or {"number": 0}
        number = pointer["number"] if pointer.get("request_id") == request_id else pointer["number"] + 1
        while True:
            now = datetime.now(UTC)
            run = run_file.mint(self.spec, inherited, request_id, number, now, self._deadline(now))
            if self._store.create_json(contract.RunKeys(run["run_id"]).run, run):
                break
            run = self._store.read_json(contract.RunKeys(run["run_id"]).run) or {}
            if run.get("request_id") == request_id:
                break
            number += 1
        warning = self._hold(run)
        if pointer.get("request_id") != request_id:  # else the box may be this run's own
            self._remove_kept_box()
            if "run_id" in pointer:
                self._release(pointer["run_id"])
        pointer |= {"run_id": run["run_id"], "number": number, "request_id": request_id}
        self._store.put_json(self._pointer, {**pointer, "started": False})
        self._arm(datetime.fromisoformat(run["deadline"]))
        # Zone rebalancing would replace a training box for symmetry's sake.
        self._autoscaling.suspend_processes(AutoScalingGroupName=self._group, ScalingProcesses=["AZRebalance"])
        # Together: a scheduled action of an earlier run may have left the maximum at 0.
        self._scale(minimum=0, maximum=1, desired=1)
        self._store.put_json(self._pointer, {**pointer, "started": True})
        self._announce(run["run_id"], lambda: notices.started(run, warning))
        return str(run["run_id"])

    def limit(self, current: Current) -> None:
        """Put this request's limits in force: the box and the terminator read them, killer 3 is moved."""
        keys = contract.RunKeys(current.run_id)
        run = self._store.read_json(keys.run) or {}
        deadline = self._deadline(datetime.fromisoformat(run["created_at"]))
        limits = {name: self.spec[name] for name in contract.LIVE_LIMITS}
        limits["deadline"] = deadline.isoformat(timespec="seconds")
        self._store.update_json(keys.control, lambda control: {**control, "limits": limits})
        self._arm(deadline)

    def _deadline(self, started: datetime) -> datetime:
        return started + timedelta(hours=self.spec["max_runtime_hours"])

    def _remove_kept_box(self) -> None:
        """A box kept for review after an earlier run (auto_shutdown=false) holds the one place that the group has."""
        if self._boxes():
            self._scale(minimum=0, maximum=0, desired=0)
            self._wait(DRAIN_WAIT_SECONDS, lambda: not self._boxes())

    def stop(self, current: Current | None, why: str) -> None:
        """Ask for a checkpoint, wait for the box within a bound, then take the capacity away whatever happened."""
        if current is not None and not current.ended:
            keys = contract.RunKeys(current.run_id)
            request = {"reason": contract.Reason.STOPPED, "detail": why, "at": contract.utc_now()}
            self._store.update_json(keys.control, lambda control: {**control, "stop": request})
            self._wait(DRAIN_WAIT_SECONDS, lambda: self._store.read_json(keys.outcome) is not None or not self._boxes())
        self._scale(minimum=0, maximum=0, desired=0)
        if not self._wait(DRAIN_WAIT_SECONDS, lambda: not self._boxes()):
            print(f"STILL THERE: {self._boxes()} in group {self._group}; check them in the EC2 console")
        if current is not None and not current.ended:
            self._close(current.run_id, contract.Reason.STOPPED, f"Stopped before a box reported: {why}.")
            # Not left to the auto-terminator, which a stack that is being deleted takes along.
            self._announce(current.run_id, lambda: self._end_notice(current.run_id))
        if current is not None:
            self._release(current.run_id)

    def _hold(self, run: dict[str, Any]) -> str:
        """Keep the image for as long as the run is the stack's current one; the sentence that says why it is not."""
        try:
            hold(run["image"], contract.repository_name(self.spec["lab"]), run["run_id"])
        except Exception as error:
            print(f"the image of run {run['run_id']} is not held: {error!r}")
            return (
                f"Its image got no tag {contract.image_tag(run['run_id'])} ({error}): the repository's lifecycle may "
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
        keys = contract.RunKeys(run_id)
        run, outcome = self._store.read_json(keys.run), self._store.read_json(keys.outcome)
        pages = self._autoscaling.get_paginator("describe_scaling_activities").paginate(
            AutoScalingGroupName=self._group
        )
        activities = (item for page in pages for item in page["Activities"])
        used = notices.usage(activities, datetime.fromisoformat(run["created_at"]), datetime.now(UTC))
        return notices.ended(run, outcome, used)

    def _announce(self, run_id: str, notice: Callable[[], notices.Notice]) -> None:
        """An e-mail that cannot be written or sent must not fail a request."""
        try:
            notices.announce(self._store, boto3.client("sns"), self.spec["alert_topic"], run_id, notice())
        except Exception as error:
            print(f"no e-mail about run {run_id}: {error!r}")

    def _arm(self, deadline: datetime) -> None:
        """Killer 3: AWS itself takes the capacity away after the deadline, with no code of ours."""
        self._autoscaling.put_scheduled_update_group_action(
            AutoScalingGroupName=self._group,
            ScheduledActionName=contract.SCHEDULED_ACTION_NAME,
            # A deadline moved into the past leaves the box the same time to stop with a checkpoint.
            StartTime=max(deadline, datetime.now(UTC)) + timedelta(seconds=contract.SCHEDULED_ACTION_MARGIN_SECONDS),
            MinSize=0,
            MaxSize=0,
            DesiredCapacity=0,
        )

    def _closed(self, run: dict[str, Any]) -> bool:
        """Whether a run without an outcome can no longer get one; if so, write it."""
        group = self._describe()
        run = contract.in_force(run, self._store.read_json(contract.RunKeys(run["run_id"]).control))
        overdue = datetime.now(UTC) > datetime.fromisoformat(run["deadline"]) + timedelta(
            seconds=contract.SCHEDULED_ACTION_MARGIN_SECONDS
        )
        if group is None or group["DesiredCapacity"] > 0 or group["Instances"]:
            return False
        if overdue:
            self._close(run["run_id"], contract.Reason.EXPIRED, "The deadline passed before a box could report.")
        else:
            self._close(run["run_id"], contract.Reason.FAILED, "The group was emptied and no box reported an outcome.")
        return True

    def _close(self, run_id: str, reason: contract.Reason, detail: str) -> None:
        outcome = {"reason": reason, "detail": detail, "by": contract.Actor.CONTROLLER, "at": contract.utc_now()}
        self._store.create_json(
            contract.RunKeys(run_id).outcome, {**outcome, "attempts": None, "resumed_from_step": None, "step": None}
        )

    def _describe(self) -> dict[str, Any] | None:
        found = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        return found["AutoScalingGroups"][0] if found["AutoScalingGroups"] else None

    def _boxes(self) -> list[str]:
        group = self._describe()
        return [instance["InstanceId"] for instance in group["Instances"]] if group else []

    def _scale(self, *, minimum: int, maximum: int, desired: int) -> None:
        self._autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=self._group, MinSize=minimum, MaxSize=maximum, DesiredCapacity=desired
        )

    def _wait(self, seconds: float, done: Callable[[], bool]) -> bool:
        """Poll until ``done`` or the bound, which the function's own remaining time cuts short."""
        end = time.monotonic() + min(seconds, self._remaining_ms() / 1000 - ANSWER_RESERVE_SECONDS)
        while not done():
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True


def _ensure_spot_role() -> None:
    """The first spot request of an account needs this service-linked role; AWS answers InvalidInput if it exists."""
    try:
        boto3.client("iam").create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except ClientError as error:
        if error.response["Error"]["Code"] != "InvalidInput":
            raise
