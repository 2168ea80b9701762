"""Killers 2 and 3 against an instance that is deaf: it has no timer, reports nothing, and ignores SIGTERM.

The real construct is deployed: the function runs with its own role under IAM enforcement, woken by its own rules.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_autoscaling as autoscaling

from lab_constructs.safety import Safety
from local_cloud.cloud import ACCOUNT, REGION
from tests.support.local_lab import Lab, wait_for
from tests.support.mailbox import Mailbox
from tests.support.runs import run_json
from tests.support.stacks import FLAGS
from training_image.core import contract

SUFFIX, GROUP, ASSETS, STACK = "1a2b3c4d", "watched", "box-assets", "Watched"
DEAF = """#!/bin/bash
U=$DESTDIR/etc/systemd/system
mkdir -p "$U"
printf '#!/bin/bash\\ntrap "" TERM INT\\nwhile :; do sleep 0.2; done\\n' >"$DESTDIR/deaf"
chmod +x "$DESTDIR/deaf"
printf '[Service]\\nExecStart=%s/deaf\\nTimeoutStopSec=1\\n' "$DESTDIR" >"$U/deaf.service"
systemctl daemon-reload
systemctl enable --now deaf.service
touch "$DESTDIR/ready"
"""
BROKEN = "def handler(event, context):\n    raise RuntimeError('broken')\n"


class Watch:
    """The deployed function, the group it watches, and a queue that hears what the operator is mailed."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self._functions, sns = lab.cloud.client("lambda"), lab.cloud.client("sns")
        self._runs, self.run_id = 0, ""
        topic = sns.create_topic(Name="alerts")["TopicArn"]
        self.subjects = Mailbox(lab.cloud.client("sqs"), sns, topic).subjects
        lab.group(GROUP, DEAF, hook_seconds=600)  # a hung instance's hook would hold it
        tag = {"Key": contract.STACK_TAG, "Value": SUFFIX, "PropagateAtLaunch": True}
        lab.asg.create_or_update_tags(Tags=[{**tag, "ResourceId": GROUP, "ResourceType": "auto-scaling-group"}])
        self._deploy(folder, topic)

    def _deploy(self, folder: Path, topic: str) -> None:
        app = cdk.App(context=FLAGS, outdir=str(folder / "cdk.out"))
        synthesizer = cdk.CliCredentialsStackSynthesizer(file_assets_bucket_name=ASSETS)
        environment = cdk.Environment(account=ACCOUNT, region=REGION)
        stack = cdk.Stack(app, STACK, synthesizer=synthesizer, env=environment)
        Safety(
            stack,
            "Safety",
            lab="default",
            group=autoscaling.AutoScalingGroup.from_auto_scaling_group_name(stack, "Group", GROUP),
            stack_suffix=SUFFIX,
            run_prefix=f"run-{SUFFIX}",
            outputs_bucket=self.lab.bucket,
            alert_topic=topic,
            max_runtime_hours=12,
            cost_alert_threshold=50,
            cost_tag_active=False,
        )
        template = app.synth().get_stack_by_name(STACK).template
        (function,) = [item for item in template["Resources"].values() if item["Type"] == "AWS::Lambda::Function"]
        self._key = function["Properties"]["Code"]["S3Key"]
        code = folder / "cdk.out" / f"asset.{self._key.removesuffix('.zip')}"
        self.lab.s3.create_bucket(Bucket=ASSETS)
        self.lab.s3.upload_file(shutil.make_archive(str(folder / "code"), "zip", code), ASSETS, self._key)
        cloudformation = self.lab.cloud.client("cloudformation")
        cloudformation.create_stack(StackName=STACK, TemplateBody=json.dumps(template), Capabilities=["CAPABILITY_IAM"])
        cloudformation.get_waiter("stack_create_complete").wait(StackName=STACK, WaiterConfig={"Delay": 1})
        found = cloudformation.describe_stack_resources(StackName=STACK)["StackResources"]
        (self._function,) = [
            item["PhysicalResourceId"] for item in found if item["ResourceType"] == "AWS::Lambda::Function"
        ]
        (self.runtime_alarm,) = [
            item["PhysicalResourceId"] for item in found if item["LogicalResourceId"].startswith("SafetyMaxRuntime")
        ]

    # --- a run and its instance ---------------------------------------------------------------------------------------
    def start(self) -> str:
        """A run with an hour to go, and its instance, which serves."""
        self._runs += 1
        self.run_id = f"run-{SUFFIX}-{self._runs}"
        self.put(
            self.keys.run,
            run_json(
                run_id=self.run_id,
                stack_name=STACK,
                outputs_bucket=self.lab.bucket,
                created_at=datetime.now(UTC).isoformat(),
                max_attempts=3,
            ),
        )
        self.put(contract.pointer_key(SUFFIX), {"run_id": self.run_id})
        box = self.lab.up(GROUP)
        wait_for("the box is deaf", lambda: (self.lab.box(box) / "ready").exists())
        return box

    @property
    def keys(self) -> contract.RunKeys:
        return contract.RunKeys(self.run_id)

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.lab.s3.put_object(Bucket=self.lab.bucket, Key=key, Body=json.dumps(value).encode())

    def beat(self, box: str, age: timedelta) -> None:
        at = (datetime.now(UTC) - age).isoformat()
        self.put(self.keys.heartbeat, {"instance_id": box, "at": at, "attempt": 1, "durable_step": 40})

    def pass_the_deadline(self) -> None:
        passed = (datetime.now(UTC) - timedelta(minutes=6)).isoformat()
        self.put(self.keys.control, {"limits": {"deadline": passed}})

    def outcome(self) -> dict[str, Any]:
        return dict(json.loads(self.lab.object(self.keys.outcome) or "{}"))

    def wait_until_gone(self, box: str) -> None:
        wait_for("the box is gone", lambda: self.lab.state(box) == "terminated")

    # --- the function -----------------------------------------------------------------------------------------------
    def look(self) -> str | None:
        """Call the function as its schedule does: its error, if it fails."""
        answer = self._functions.invoke(FunctionName=self._function, Payload=b"{}")
        return answer["Payload"].read().decode() if "FunctionError" in answer else None

    def break_the_function(self) -> None:
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as archive:
            archive.writestr("index.py", BROKEN)
        self._functions.update_function_code(FunctionName=self._function, ZipFile=code.getvalue())

    def repair_the_function(self) -> None:
        self._functions.update_function_code(FunctionName=self._function, S3Bucket=ASSETS, S3Key=self._key)


@pytest.fixture(scope="module")
def deployed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    return Watch(lab, tmp_path_factory.mktemp("watch"))


@pytest.fixture
def watch(deployed: Watch) -> Iterator[Watch]:
    """With a function that works and a group that is empty, after each test too."""
    yield deployed
    deployed.repair_the_function()
    lab = deployed.lab
    lab.asg.update_auto_scaling_group(AutoScalingGroupName=GROUP, MinSize=0, MaxSize=0, DesiredCapacity=0)
    boxes = [member["InstanceId"] for member in lab.members(GROUP)]
    if boxes:
        lab.ec2.terminate_instances(InstanceIds=boxes)
    wait_for("the group is empty", lambda: not lab.members(GROUP))


def test_a_deaf_instance_is_ended_past_its_deadline_in_spite_of_its_hook_and_the_operator_is_told(watch: Watch) -> None:
    box = watch.start()
    watch.beat(box, timedelta(0))
    assert watch.look() is None
    assert (watch.lab.state(box), watch.outcome()) == ("running", {}), "a healthy box is left alone"

    watch.pass_the_deadline()
    assert watch.look() is None
    watch.wait_until_gone(box)
    outcome = watch.outcome()
    assert (outcome["reason"], outcome["by"], outcome["step"]) == ("expired", "terminator", 40)
    group = watch.lab.describe(GROUP)
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 0, 0)
    told = f"{STACK}: run {watch.run_id} reached its deadline"
    wait_for("the e-mail", lambda: told in watch.subjects())
    assert watch.look() is None
    assert watch.subjects().count(told) == 1, "nothing is said twice"


def test_an_instance_that_has_fallen_silent_is_ended_as_failed(watch: Watch) -> None:
    box = watch.start()
    watch.beat(box, timedelta(minutes=11))
    assert watch.look() is None
    watch.wait_until_gone(box)
    assert watch.outcome()["reason"] == "failed"
    assert f"{box} has sent no heartbeat" in watch.outcome()["detail"]


def test_a_spot_warning_makes_it_look_and_tell_with_nobody_calling_it(watch: Watch) -> None:
    box = watch.start()
    watch.beat(box, timedelta(0))
    watch.lab.cloud.fault("interrupt", instance=box, seconds=60)
    told = f"{STACK}: run {watch.run_id} is being interrupted"
    wait_for("the e-mail", lambda: told in watch.subjects())
    assert watch.outcome() == {}


def test_the_runtime_alarm_makes_it_look_and_tells_the_operator(watch: Watch) -> None:
    box = watch.start()
    watch.beat(box, timedelta(0))
    watch.pass_the_deadline()
    watch.lab.cloud.client("cloudwatch").set_alarm_state(
        AlarmName=watch.runtime_alarm, StateValue="ALARM", StateReason="a test"
    )
    watch.wait_until_gone(box)
    assert wait_for("the outcome", watch.outcome)["by"] == "terminator"  # it comes after the instance's end
    wait_for("the alarm's e-mail", lambda: any("ALARM" in subject for subject in watch.subjects()))


def test_with_the_function_broken_too_the_scheduled_action_ends_the_instance(watch: Watch) -> None:
    box = watch.start()
    watch.break_the_function()
    watch.pass_the_deadline()
    assert "broken" in (watch.look() or "")
    assert watch.lab.state(box) == "running"
    put_hook = watch.lab.asg.put_lifecycle_hook
    put_hook(
        AutoScalingGroupName=GROUP, LifecycleHookName="drain", HeartbeatTimeout=1, DefaultResult="CONTINUE",
        LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
    )  # fmt: skip
    watch.lab.asg.put_scheduled_update_group_action(
        AutoScalingGroupName=GROUP, ScheduledActionName="deadline", MinSize=0, MaxSize=0, DesiredCapacity=0,
        StartTime=datetime.now(UTC) + timedelta(seconds=2),
    )  # fmt: skip
    watch.wait_until_gone(box)
    assert "scheduled action" in watch.lab.last_cause(GROUP)
    assert watch.outcome() == {}, "nobody else has ended it"
