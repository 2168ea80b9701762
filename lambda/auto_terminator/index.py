"""The auto-terminator: looks at its stack's group and run, ends what should have ended itself, and tells the operator.

Called every few minutes and by events. An event only makes it look now: what it does follows from what it sees. Errors
are not caught here, so that Lambda counts them and an alarm tells.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import boto3
from policy import Ending, Facts, Instance, decide

from training_image.core import contract, notices, usage
from training_image.core.contract import Actor, Phase, RunKeys
from training_image.core.mail import Mail, sns_client
from training_image.core.records import (
    Control,
    Heartbeat,
    Outcome,
    Run,
    outcome_now,
    read_heartbeat,
    read_outcome,
    read_run,
    readable_control,
)
from training_image.core.store import Store, s3_client
from training_image.core.usage import Usage

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
        self._autoscaling, self._ec2, self._sns = boto3.client("autoscaling"), boto3.client("ec2"), sns_client()

    def look(self, event: Mapping[str, Any]) -> None:
        """See, decide, act, tell.

        Raises:
            RuntimeError: something that had to be ended could not be; the next look tries again.
        """
        found = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        if not found["AutoScalingGroups"]:
            print("the group is gone: the stack is being deleted")
            return
        run, control, outcome, heartbeat = self._read_run()
        used = self._usage(run)
        facts = Facts(
            now=self._now,
            instances=self._instances(),
            desired=found["AutoScalingGroups"][0]["DesiredCapacity"],
            run=run,
            outcome=outcome,
            heartbeat=heartbeat,
            launches=used.launches,
            max_runtime=timedelta(hours=float(self._environ["MAX_RUNTIME_HOURS"])),
            control=control,
        )
        ending = decide(facts)
        print(f"{len(facts.instances)} instance(s), run {run.run_id if run else None}: {ending or 'nothing to do'}")
        failures = self._end(ending, facts) if ending else []
        if run is not None:
            failures += self._tell(event, run, facts, used)
        if failures:
            raise RuntimeError("; ".join(failures))

    # --- seeing -----------------------------------------------------------------------------------------------------
    def _instances(self) -> tuple[Instance, ...]:
        """By tag, so that an instance that somebody has detached from the group is seen too."""
        filters = [
            {"Name": f"tag:{contract.STACK_TAG}", "Values": [self._environ["STACK_SUFFIX"]]},
            {"Name": "instance-state-name", "Values": LIVE},
        ]
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=filters)
        return tuple(
            Instance(instance["InstanceId"], instance["LaunchTime"])
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        )

    def _read_run(self) -> tuple[Run | None, Control, Outcome | None, Heartbeat]:
        """Nothing if S3 does not answer or there is no run that can be understood: then age alone decides."""
        nothing = None, Control(), None, Heartbeat()
        try:
            pointer = self._store.read_json(contract.pointer_key(self._environ["STACK_SUFFIX"]))
            if pointer is None:
                return nothing
            keys = RunKeys(pointer["run_id"])
            run = read_run(self._store, keys)
            return (
                run,
                readable_control(self._store, keys, print),
                read_outcome(self._store, keys),
                read_heartbeat(self._store, keys),
            )
        except Exception as error:
            print(f"the run cannot be read: {error!r}")
            return nothing

    def _usage(self, run: Run | None) -> Usage:
        return usage.of_group(self._autoscaling, self._group, run.created_at, self._now) if run else Usage(0, 0.0)

    # --- ending -----------------------------------------------------------------------------------------------------
    def _end(self, ending: Ending, facts: Facts) -> list[str]:
        """Tries every step, even after one has failed; returns what went wrong."""
        names = [instance.instance_id for instance in facts.instances]
        steps: list[tuple[str, Callable[[], object]]] = [("capacity 0", self._scale_to_nothing)]
        if names:
            steps.append((f"terminating {', '.join(names)}", lambda: self._ec2.terminate_instances(InstanceIds=names)))
        if ending.reason is not None and facts.run is not None:
            keys, outcome = RunKeys(facts.run.run_id), self._outcome(ending, facts.heartbeat)
            steps.append(("writing the outcome", lambda: self._store.create_json(keys.outcome, outcome.to_json())))
        elif names:
            notice = notices.still_there(self._environ["STACK_NAME"], names, ending.sentence)
            steps.append(("mailing", lambda: self._say(notice, facts.run)))
        return _try_all(steps)

    def _scale_to_nothing(self) -> None:
        self._autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=self._group, MinSize=0, MaxSize=0, DesiredCapacity=0
        )

    def _outcome(self, ending: Ending, heartbeat: Heartbeat) -> Outcome:
        return outcome_now(
            ending.reason or contract.Reason.FAILED,
            ending.sentence,
            Actor.TERMINATOR,
            attempts=heartbeat.attempt,
            resumed_from_step=heartbeat.resumed_from_step,
            step=heartbeat.durable_step,
        )

    # --- telling ----------------------------------------------------------------------------------------------------
    def _tell(self, event: Mapping[str, Any], run: Run, facts: Facts, used: Usage) -> list[str]:
        """Everything is tried: what went wrong."""
        mail = Mail(self._store, self._sns, self._environ["ALERT_TOPIC"], run.run_id)
        steps: list[Callable[[], object]] = [
            partial(mail.announce, notice) for notice in self._due(event, run, facts, used)
        ]
        return _try_all([("mailing", step) for step in (*steps, mail.send_overdue)])

    def _due(self, event: Mapping[str, Any], run: Run, facts: Facts, used: Usage) -> Iterator[notices.Notice]:
        outcome = read_outcome(self._store, RunKeys(run.run_id))  # ours, if it has just been written
        if outcome is not None:
            yield notices.ended(run, outcome, used)
            return
        if event.get("detail-type") == SPOT_WARNING:
            warned = str(event.get("detail", {}).get("instance-id"))
            if warned in [instance.instance_id for instance in facts.instances]:
                yield notices.interrupted(run, warned, used)
        beat = facts.heartbeat
        # Before this phase the supervisor does not know yet what it resumes from.
        if (beat.attempt or 0) > 1 and beat.phase not in (None, Phase.DOWNLOADING):
            yield notices.resumed(run, beat.attempt or 0, beat.resumed_from_step, used)

    def _say(self, notice: notices.Notice, run: Run | None) -> None:
        """Under the run's events if it can be read, so that it is not lost; else there is only this try."""
        topic = self._environ["ALERT_TOPIC"]
        if run is not None:
            Mail(self._store, self._sns, topic, run.run_id).announce(notice)
        else:
            self._sns.publish(TopicArn=topic, Subject=notice.subject, Message=notice.body)


def _try_all(steps: Iterable[tuple[str, Callable[[], object]]]) -> list[str]:
    """Tries every step, even after one has failed; returns what went wrong."""
    failures = []
    for what, step in steps:
        try:
            step()
        except Exception as error:
            failures.append(f"{what} failed: {error!r}")
    return failures
