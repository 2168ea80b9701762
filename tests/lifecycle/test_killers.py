"""Killers 2 and 3 with what comes before them broken: an instance that no longer obeys, a function that raises."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from local_cloud import control
from tests.support.mailbox import Mailbox
from tests.support.processes import stopped, supervisors
from tests.support.stage import ENDLESS, LONG, Stage
from training_image.core import contract

pytestmark = pytest.mark.lifecycle


@pytest.fixture
def mailbox(stage: Stage) -> Mailbox:
    """Of the alert topic."""
    topic = stage.outputs("DataStack")["AlertTopicArn"]
    return Mailbox(stage.cloud.client("sqs"), stage.cloud.client("sns"), topic)


@dataclass(frozen=True)
class Deaf:
    outputs: dict[str, str]
    box: Path


@pytest.fixture
def deaf(stage: Stage) -> Iterator[Deaf]:
    """A deployed stack whose instance trains, and then is deaf and dumb: its supervisor stands still, its timer is
    gone."""
    outputs = stage.deploy(*stage.trainer(ENDLESS), **LONG)
    run_id = outputs["RunId"]
    stage.wait("a checkpoint", lambda: stage.heartbeat(run_id).get("durable_step"), run_id)
    box = stage.cloud.state / "boxes" / stage.heartbeat(run_id)["instance_id"]
    assert control.call(box, "stop", [], ["training-deadline.timer"])[0] == 0
    frozen = supervisors(str(box))
    assert frozen
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    yield Deaf(outputs, box)
    for process in stopped(frozen):
        process.send_signal(signal.SIGCONT)
    stage.destroy()
    assert not stage.instances()


def thaw_and_wait(stage: Stage, deaf: Deaf) -> None:
    """The power button has been pressed; a process that stands still would only be killed after its stop timeout."""

    def gone() -> bool:
        for process in stopped(supervisors(str(deaf.box))):
            process.send_signal(signal.SIGCONT)
        return not stage.instances()

    stage.wait("the box is gone", gone, deaf.outputs["RunId"])


def test_an_instance_that_no_longer_obeys_is_ended_by_the_auto_terminator(stage: Stage, mailbox: Mailbox, deaf: Deaf):
    run_id = deaf.outputs["RunId"]
    assert f"{stage.stack}: run {run_id} has started" in mailbox.subjects()
    passed = (datetime.now(UTC) - timedelta(minutes=6)).isoformat()
    stage.s3.put_object(
        Bucket=stage.bucket,
        Key=contract.RunKeys(run_id).control,
        Body=json.dumps({"limits": {"deadline": passed}}).encode(),
    )
    # Nobody calls it: its own schedule does.
    outcome = stage.wait("the auto-terminator's outcome", lambda: stage.outcome(run_id), run_id, 240)
    assert (outcome["reason"], outcome["by"]) == ("expired", "terminator")
    (group,) = stage.autoscaling.describe_auto_scaling_groups(
        AutoScalingGroupNames=[deaf.outputs["AutoScalingGroupName"]]
    )["AutoScalingGroups"]
    assert group["MaxSize"] == 0
    thaw_and_wait(stage, deaf)
    told = f"{stage.stack}: run {run_id} reached its deadline"
    stage.wait("the e-mail", lambda: told in mailbox.subjects(), run_id)
    (mail,) = [mail for mail in mailbox.mails if mail["Subject"] == told]
    assert "1 instance(s)" in mail["Message"]
    assert "cdk destroy TrainingStack" in mail["Message"]


def test_with_the_function_broken_too_the_scheduled_action_ends_the_instance(stage: Stage, deaf: Deaf):
    run_id, group = deaf.outputs["RunId"], deaf.outputs["AutoScalingGroupName"]
    client = stage.cloud.client("lambda")
    (name,) = [
        item["FunctionName"] for item in client.list_functions()["Functions"] if "Terminator" in item["FunctionName"]
    ]
    client.update_function_configuration(FunctionName=name, Handler="index.no_such_handler")
    assert "FunctionError" in client.invoke(FunctionName=name, Payload=b"{}")

    (action,) = stage.autoscaling.describe_scheduled_actions(AutoScalingGroupName=group)["ScheduledUpdateGroupActions"]
    run = stage.read(contract.RunKeys(run_id).run)
    assert run is not None
    assert action["StartTime"] - datetime.fromisoformat(run["deadline"]) == timedelta(minutes=10)
    # The same action, moved to where the test can wait for it.
    stage.autoscaling.put_scheduled_update_group_action(
        AutoScalingGroupName=group,
        ScheduledActionName=action["ScheduledActionName"],
        StartTime=datetime.now(UTC) + timedelta(seconds=2),
        **{key: action[key] for key in ("MinSize", "MaxSize", "DesiredCapacity")},
    )
    stage.wait(
        "the power button",
        lambda: (
            stage.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"][0][
                "DesiredCapacity"
            ]
            == 0
        ),
        run_id,
    )
    thaw_and_wait(stage, deaf)
