"""The auto-terminator's edge, with AWS in memory: what it ends, in what order, and what it tells whom."""

import io
import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.support.lambdas import load
from tests.support.runs import run_json
from training_image.core.contract import RunKeys

index = load("auto_terminator", "index").index
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEYS = RunKeys("run-1a2b3c4d-1")
ENVIRON = {
    "GROUP": "group-1",
    "OUTPUTS_BUCKET": "out",
    "STACK_SUFFIX": "1a2b3c4d",
    "STACK_NAME": "TrainingStack",
    "ALERT_TOPIC": "topic",
    "MAX_RUNTIME_HOURS": "2",
}


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, "call")


class Aws:
    """S3, Auto Scaling, EC2 and SNS of one stack with one instance. ``calls`` are those that change something."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.mails: list[str] = []
        self.broken: set[str] = set()
        self.instances = [{"InstanceId": "i-1", "LaunchTime": NOW - timedelta(hours=1)}]
        self.group = [{"DesiredCapacity": 1}]
        self.put("stacks/1a2b3c4d/current.json", {"run_id": KEYS.run_id})
        self.run(deadline=NOW + timedelta(hours=1))
        self.beat(NOW)

    def run(self, **changes):
        own = {"run_id": KEYS.run_id, "created_at": (NOW - timedelta(hours=1)).isoformat(), **changes}
        self.put(KEYS.run, run_json(**{**own, "deadline": own["deadline"].isoformat()}))

    def beat(self, at: datetime, **changes):
        beat = {"instance_id": "i-1", "at": at.isoformat(), "attempt": 1, "phase": "training", "durable_step": 40}
        self.put(KEYS.heartbeat, {**beat, **changes})

    def put(self, key, value):
        self.objects[key] = json.dumps(value).encode()

    def get(self, key):
        return json.loads(self.objects[key]) if key in self.objects else None

    def _do(self, call):
        if call in self.broken:
            raise refused("Throttling")
        self.calls.append(call)

    # --- as boto3's clients -------------------------------------------------------------------------------------------
    def get_object(self, Bucket, Key):
        if "s3" in self.broken:
            raise refused("SlowDown")
        if Key not in self.objects:
            raise refused("NoSuchKey")
        return {"Body": io.BytesIO(self.objects[Key]), "ETag": str(hash(self.objects[Key]))}

    def put_object(self, Bucket, Key, Body, IfNoneMatch=None, IfMatch=None):
        if (IfNoneMatch and Key in self.objects) or (IfMatch and IfMatch != str(hash(self.objects[Key]))):
            raise refused("PreconditionFailed")
        self.objects[Key] = Body

    def describe_auto_scaling_groups(self, AutoScalingGroupNames):
        assert AutoScalingGroupNames == ["group-1"]
        return {"AutoScalingGroups": self.group}

    def get_paginator(self, operation):
        self.operation = operation
        return self

    def paginate(self, **arguments):
        if self.operation == "list_objects_v2":
            found = [key for key in self.objects if key.startswith(arguments["Prefix"])]
            return [{"Contents": [{"Key": k, "Size": 1, "LastModified": NOW, "ETag": "e"} for k in found]}]
        if self.operation == "describe_instances":
            assert {"Name": "tag:llm-tuning-lab:stack", "Values": ["1a2b3c4d"]} in arguments["Filters"]
            return [{"Reservations": [{"Instances": self.instances}]}]
        launch = {"Description": "Launching a new EC2 instance: i-1", "StartTime": NOW - timedelta(hours=1)}
        return [{"Activities": [{**launch, "StatusCode": "Successful"}]}]

    def update_auto_scaling_group(self, **sizes):
        assert (sizes["MinSize"], sizes["MaxSize"], sizes["DesiredCapacity"]) == (0, 0, 0)
        self._do("capacity 0")

    def terminate_instances(self, InstanceIds):
        self._do(f"terminate {' '.join(InstanceIds)}")
        self.instances = []

    def publish(self, TopicArn, Subject, Message):
        assert TopicArn == "topic"
        if "sns" in self.broken:
            raise refused("Throttled")
        self.mails.append(Subject)


@pytest.fixture
def aws(monkeypatch):
    found = Aws()
    monkeypatch.setattr(boto3, "client", lambda name, **options: found)
    return found


def look(event=None, now=NOW):
    index.Terminator(ENVIRON, now).look(event or {"source": "aws.events"})


def test_a_healthy_run_is_left_alone_and_nobody_is_bothered(aws):
    look()
    assert (aws.calls, aws.mails) == ([], [])


def test_past_the_deadline_capacity_goes_first_then_the_instance_then_the_outcome_and_the_mail(aws):
    aws.run(deadline=NOW - timedelta(minutes=6))
    look()
    assert aws.calls == ["capacity 0", "terminate i-1"]
    outcome = aws.get(KEYS.outcome)
    assert (outcome["reason"], outcome["by"], outcome["step"]) == ("expired", "terminator", 40)
    assert aws.mails == [f"TrainingStack: run {KEYS.run_id} reached its deadline"]
    look()
    assert len(aws.mails) == 1, "nothing is said twice"


def test_limits_that_were_changed_under_the_run_hold(aws):
    aws.run(deadline=NOW - timedelta(minutes=6))
    aws.put(KEYS.control, {"limits": {"deadline": (NOW + timedelta(hours=1)).isoformat()}})
    look()
    assert aws.calls == []


@pytest.mark.parametrize("broken", ["capacity 0", "terminate i-1"])
def test_a_step_that_fails_keeps_no_other_from_being_tried_and_the_function_fails(aws, broken):
    aws.run(deadline=NOW - timedelta(minutes=6))
    aws.broken = {broken}
    with pytest.raises(RuntimeError, match="failed"):
        look()
    assert aws.calls == [call for call in ("capacity 0", "terminate i-1") if call != broken]
    assert aws.get(KEYS.outcome) is not None


def test_an_outcome_of_the_instance_stands(aws):
    said = {"reason": "succeeded", "by": "instance", "at": (NOW - timedelta(minutes=11)).isoformat()}
    aws.put(KEYS.outcome, said)
    look()
    assert aws.calls == ["capacity 0", "terminate i-1"]
    assert aws.get(KEYS.outcome) == said
    assert set(aws.mails) == {"TrainingStack: instances terminated", f"TrainingStack: run {KEYS.run_id} succeeded"}


def test_an_email_that_could_not_be_sent_is_sent_by_the_next_look_once(aws):
    aws.run(deadline=NOW - timedelta(minutes=6))
    aws.broken = {"sns"}
    with pytest.raises(RuntimeError, match="mailing failed"):
        look()
    assert aws.mails == []
    assert aws.get(KEYS.event("ended"))["sent"] == "failed"
    aws.broken = set()
    look()
    look()
    assert aws.mails == [f"TrainingStack: run {KEYS.run_id} reached its deadline"]
    assert aws.get(KEYS.event("ended"))["sent"] == "sent"


def test_what_another_function_could_not_send_is_sent_too(aws):
    event = {"subject": "It has started", "body": "b", "token": "t"}
    aws.put(KEYS.event("started"), {**event, "at": datetime.now(UTC).isoformat(), "sent": "pending"})
    look()
    assert aws.mails == [], "whoever is about to send it may still be at work"
    aws.put(KEYS.event("started"), {**event, "at": "2026-01-01T00:00:00+00:00", "sent": "pending"})
    look()
    look()
    assert aws.mails == ["It has started"]


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"schema": 3}', b'{"limits": {"deadline": "9999-12-31T23:59:59+00:00"}}']
)
def test_a_control_file_that_cannot_be_understood_leaves_the_runs_own_limits(aws, body):
    aws.run(deadline=NOW - timedelta(minutes=6))
    aws.objects[KEYS.control] = body
    look()
    assert aws.get(KEYS.outcome)["reason"] == "expired"


@pytest.mark.parametrize("body", [b"", b"null", b'{"reason": "of its own"}', b'"succeeded"'])
def test_an_outcome_that_cannot_be_understood_has_ended_the_run(aws, body):
    aws.objects[KEYS.outcome] = body
    look()
    assert aws.calls == ["capacity 0", "terminate i-1"]
    assert f"TrainingStack: run {KEYS.run_id} failed" in aws.mails


@pytest.mark.parametrize("body", [b"[1]", b'{"run_id": 7}', b"\xff"])
def test_a_run_that_cannot_be_understood_ends_by_age(aws, body):
    aws.objects[KEYS.run] = body
    look()
    assert aws.calls == []
    look(now=NOW + timedelta(hours=2))
    assert aws.calls == ["capacity 0", "terminate i-1"]


def test_without_s3_an_old_instance_is_ended_and_a_young_one_is_not(aws):
    aws.broken = {"s3"}
    look()
    assert aws.calls == []
    look(now=NOW + timedelta(hours=2))
    assert aws.calls == ["capacity 0", "terminate i-1"]
    assert aws.mails == ["TrainingStack: instances terminated"]


def test_an_interruption_is_told_if_it_is_this_stacks_instance(aws):
    warning = {"detail-type": "EC2 Spot Instance Interruption Warning", "detail": {"instance-id": "i-9"}}
    look(warning)
    assert aws.mails == []
    warning["detail"]["instance-id"] = "i-1"
    look(warning)
    assert aws.mails == [f"TrainingStack: run {KEYS.run_id} is being interrupted"]


def test_a_resume_is_told_once_the_instance_knows_from_where(aws):
    aws.beat(NOW, attempt=2, phase="downloading")
    look()
    assert aws.mails == []
    aws.beat(NOW, attempt=2, resumed_from_step=40)
    look()
    look()
    assert aws.mails == [f"TrainingStack: run {KEYS.run_id} goes on (attempt 2)"]
    assert "step 40" in aws.get(KEYS.event("attempt-2"))["body"]


def test_a_group_that_is_gone_is_a_stack_being_deleted(aws):
    aws.group = []
    look()
    assert (aws.calls, aws.mails) == ([], [])
