"""The auto-terminator: looks at its stack's group and run, ends what should have ended itself, and tells the operator.

Called every few minutes and by events. An event only makes it look now: what it does follows from what it sees. Errors
are not caught here, so that Lambda counts them and an alarm tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from policy import Box, Ending, Facts, decide, moment

from training_image.core import contract, notices
from training_image.core.store import Store, s3_client

LIVE = ["pending", "running", "stopping", "stopped"]
SPOT_WARNING = "EC2 Spot Instance Interruption Warning"


def handler(event: dict[str, Any], context: object) -> None:
    """Entry point, for a schedule's, EC2's, Auto Scaling's and an alarm's events alike."""
    Terminator(os.environ, datetime.now(UTC)).look(event)


class Terminator:
    """One look. ``environ`` names the stack's group, tag, topic and bucket (constructs/lab_constructs/safety.py)."""

    def __init__(self, environ: Mapping[str, str], now: datetime) -> None:
        self._environ = environ
        self._now = now
        self._group = environ["GROUP"]
        self._store = Store(s3_client(), environ["OUTPUTS_BUCKET"])
        self._autoscaling, self._ec2, self._sns = (boto3.client(name) for name in ("autoscaling", "ec2", "sns"))

    def look(self, event: Mapping[str, Any]) -> None:
        """See, decide, act, tell.

        Raises:
            RuntimeError: something that had to be ended could not be; the next look tries again.
        """
        found = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        if not found["AutoScalingGroups"]:
            print("the group is gone: the stack is being deleted")
            return
        run, stop, outcome, heartbeat = self._read_run()
        used = self._usage(run)
        facts = Facts(
            now=self._now,
            boxes=self._boxes(),
            desired=found["AutoScalingGroups"][0]["DesiredCapacity"],
            run=run,
            outcome=outcome,
            heartbeat=heartbeat,
            launches=used.launches,
            max_runtime=timedelta(hours=float(self._environ["MAX_RUNTIME_HOURS"])),
            stop=stop,
        )
        ending = decide(facts)
        print(f"{len(facts.boxes)} instance(s), run {run['run_id'] if run else None}: {ending or 'nothing to do'}")
        failures = self._end(ending, facts) if ending else []
        if run is not None:
            self._tell(event, run, facts, used)
        if failures:
            raise RuntimeError("; ".join(failures))

    # --- seeing -----------------------------------------------------------------------------------------------------
    def _boxes(self) -> tuple[Box, ...]:
        """By tag, so that an instance that somebody has detached from the group is seen too."""
        filters = [
            {"Name": f"tag:{contract.STACK_TAG}", "Values": [self._environ["STACK_SUFFIX"]]},
            {"Name": "instance-state-name", "Values": LIVE},
        ]
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=filters)
        return tuple(
            Box(instance["InstanceId"], instance["LaunchTime"])
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        )

    def _read_run(self) -> tuple[dict[str, Any] | None, ...]:
        """Run with the limits in force, request to stop, outcome, heartbeat; nothing if S3 does not answer: then age
        alone decides."""
        try:
            pointer = self._store.read_json(contract.pointer_key(self._environ["STACK_SUFFIX"]))
            if pointer is None:
                return None, None, None, None
            keys = contract.RunKeys(pointer["run_id"])
            run = self._store.read_json(keys.run)
            if run is None:
                return None, None, None, None
            control = self._store.read_json(keys.control) or {}
            outcome, heartbeat = self._store.read_json(keys.outcome), self._store.read_json(keys.heartbeat)
            return contract.in_force(run, control), control.get("stop"), outcome, heartbeat
        except Exception as error:
            print(f"the run cannot be read: {error!r}")
            return None, None, None, None

    def _usage(self, run: Mapping[str, Any] | None) -> notices.Usage:
        since = moment((run or {}).get("created_at"))
        if since is None:
            return notices.Usage(0, 0.0)
        pages = self._autoscaling.get_paginator("describe_scaling_activities").paginate(
            AutoScalingGroupName=self._group
        )
        activities: Iterable[Mapping[str, Any]] = (item for page in pages for item in page["Activities"])
        return notices.usage(activities, since, self._now)

    # --- ending -----------------------------------------------------------------------------------------------------
    def _end(self, ending: Ending, facts: Facts) -> list[str]:
        """Everything is tried, whatever fails before it: what went wrong."""
        names = [box.instance_id for box in facts.boxes]
        steps: list[tuple[str, Callable[[], object]]] = [("capacity 0", self._scale_to_nothing)]
        if names:
            steps.append((f"terminating {', '.join(names)}", lambda: self._ec2.terminate_instances(InstanceIds=names)))
        if ending.reason is not None and facts.run is not None:
            run = facts.run
            steps.append(("writing the outcome", lambda: self._write_outcome(run, ending, facts.heartbeat or {})))
        elif names:
            notice = notices.still_there(self._environ["STACK_NAME"], names, ending.sentence)
            steps.append(("mailing", lambda: self._publish(notice)))
        failures = []
        for what, step in steps:
            try:
                step()
            except Exception as error:
                failures.append(f"{what} failed: {error!r}")
        return failures

    def _scale_to_nothing(self) -> None:
        self._autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=self._group, MinSize=0, MaxSize=0, DesiredCapacity=0
        )

    def _write_outcome(self, run: Mapping[str, Any], ending: Ending, heartbeat: Mapping[str, Any]) -> None:
        outcome = {
            "reason": ending.reason,
            "detail": ending.sentence,
            "by": contract.Actor.TERMINATOR,
            "at": contract.utc_now(),
            "attempts": heartbeat.get("attempt"),
            "resumed_from_step": heartbeat.get("resumed_from_step"),
            "step": heartbeat.get("durable_step"),
        }
        self._store.create_json(contract.RunKeys(run["run_id"]).outcome, outcome)

    # --- telling ----------------------------------------------------------------------------------------------------
    def _tell(self, event: Mapping[str, Any], run: Mapping[str, Any], facts: Facts, used: notices.Usage) -> None:
        outcome = self._store.read_json(contract.RunKeys(run["run_id"]).outcome)  # ours, if it has just been written
        if outcome is not None:
            self._announce(run, notices.ended(run, outcome, used))
            return
        if event.get("detail-type") == SPOT_WARNING:
            instance = str(event.get("detail", {}).get("instance-id"))
            if instance in [box.instance_id for box in facts.boxes]:
                self._announce(run, notices.interrupted(run, instance, used))
        beat = facts.heartbeat or {}
        # Before this phase the supervisor does not know yet what it resumes from.
        if (beat.get("attempt") or 0) > 1 and beat.get("phase") != "downloading":
            self._announce(run, notices.resumed(run, beat["attempt"], beat.get("resumed_from_step"), used))

    def _announce(self, run: Mapping[str, Any], notice: notices.Notice) -> None:
        notices.announce(self._store, self._sns, self._environ["ALERT_TOPIC"], run["run_id"], notice)

    def _publish(self, notice: notices.Notice) -> None:
        topic = self._environ["ALERT_TOPIC"]
        self._sns.publish(TopicArn=topic, Subject=notice.subject, Message=notice.body)
