"""An instance's life through AWS's own APIs: real server, real user data, real processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.exceptions
import psutil
import pytest
from typer.testing import CliRunner

from local_cloud import cli, processes
from local_cloud.cloud import LocalCloud, LocalCloudError
from tests.support.local_lab import Lab, wait_for
from tests.support.processes import listening

HEAD = """#!/bin/bash
set -u
export AWS_DEFAULT_REGION=us-east-1
U=$DESTDIR/etc/systemd/system
mkdir -p "$U"
TOKEN=$(curl -s -X PUT "$AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/api/token" \
  -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
ID=$(curl -s -H "X-aws-ec2-metadata-token: $TOKEN" "$AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/meta-data/instance-id")
say() { printf '%s' "$2" | aws s3 cp - "s3://box-outputs/$1"; }
"""
UNIT = """
aws ecr get-login-password | docker login --username AWS --password-stdin "@HOST@"
docker pull "@IMAGE@"
cat >"$DESTDIR/after" <<AFTER
#!/bin/bash
echo "\\$SERVICE_RESULT \\$EXIT_CODE \\$EXIT_STATUS" | aws s3 cp - s3://box-outputs/$ID/after
AFTER
chmod +x "$DESTDIR/after"
cat >"$DESTDIR/start" <<START
#!/bin/bash
exec docker run --rm --name training --ipc=host -v $DESTDIR/opt:$DESTDIR/opt -e GIVEN=1 @IMAGE@ --x 1 >$DESTDIR/log 2>&1
START
chmod +x "$DESTDIR/start"
cat >"$U/training.service" <<EOF
[Service]
ExecStart=$DESTDIR/start
ExecStop=docker stop -t 20 training
ExecStopPost=$DESTDIR/after
TimeoutStopSec=30
EOF
systemctl daemon-reload
systemctl enable --now training.service
say "$ID/up" "$(env | cut -d= -f1 | sort | tr '\\n' ' ')"
"""


def unit(lab: Lab) -> str:
    return HEAD + UNIT.replace("@IMAGE@", lab.image).replace("@HOST@", lab.image.split("/")[0])


def test_a_scale_in_reaches_the_container_as_sigterm(lab: Lab) -> None:
    name = lab.group("scale-in", unit(lab))
    box = lab.up(name)
    exported = wait_for("user data done", lambda: lab.object(f"{box}/up")).split()
    assert {"PATH", "DESTDIR", "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT"} <= set(exported)
    assert not [n for n in exported if n in {"HOME", "AWS_ACCESS_KEY_ID", "VIRTUAL_ENV", "PYTHONPATH"}]
    log = lab.box(box) / "log"
    line = wait_for("the app runs", lambda: log.read_text() if log.exists() else "")
    assert "code: the copy" in line
    assert "arguments: ['--x', '1']" in line
    assert "'BASE'" in line
    assert "'GIVEN'" in line
    assert "AWS_ACCESS_KEY_ID" not in line
    instance = lab.ec2.describe_instances(InstanceIds=[box])["Reservations"][0]["Instances"][0]
    assert (instance["InstanceLifecycle"], instance["InstanceType"]) == ("spot", "g6.xlarge")
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags == {"from": "template", "lab": "mine", "aws:autoscaling:groupName": name}

    lab.asg.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)
    wait_for("terminated", lambda: lab.state(box) == "terminated")
    assert "got SIGTERM" in log.read_text()
    assert lab.object(f"{box}/after") == "exit-code exited 20\n"
    assert lab.members(name) == []
    assert processes.marked("DESTDIR", str(lab.box(box))) == []


def test_the_bytes_that_run_are_those_of_the_launch_template(lab: Lab) -> None:
    text = HEAD + 'say "$ID/bytes" "$(base64 -w0 "$0")" # ünïcode ${NOT_SUBSTITUTED}\n'
    name = lab.group("bytes", text)
    box = lab.up(name)
    encoded = wait_for("the script's own bytes", lambda: lab.object(f"{box}/bytes"))
    data = lab.ec2.describe_launch_template_versions(LaunchTemplateName=name)["LaunchTemplateVersions"][0]
    assert encoded == data["LaunchTemplateData"]["UserData"]


def test_poweroff_ends_the_instance_and_the_group_replaces_it(lab: Lab) -> None:
    body = 'if [ "$(aws s3 ls s3://box-outputs/once/)" = "" ]; then say once/1 x; poweroff; fi\n'
    name = lab.group("replaced", HEAD + body)
    first = lab.up(name)
    second = wait_for("a replacement", lambda: [m for m in lab.members(name) if m["InstanceId"] != first])
    assert lab.state(first) == "terminated"
    assert second[0]["LifecycleState"] == "InService"
    causes = " ".join(a["Cause"] for a in lab.asg.describe_scaling_activities(AutoScalingGroupName=name)["Activities"])
    assert "health check" in causes


END_SELF = (
    "aws autoscaling terminate-instance-in-auto-scaling-group --instance-id $ID --should-decrement-desired-capacity"
)


def test_the_instance_may_take_its_group_down_with_it(lab: Lab) -> None:
    name = lab.group("self", f"{HEAD}{END_SELF}\n", hook_seconds=60)
    box = lab.up(name)
    wait_for("the hook holds it", lambda: lab.members(name)[0]["LifecycleState"] == "Terminating:Wait")
    assert lab.describe(name)["DesiredCapacity"] == 0
    assert "in response to a user request, shrinking the capacity from 1 to 0." in lab.last_cause(name)
    lab.asg.complete_lifecycle_action(
        AutoScalingGroupName=name, LifecycleHookName="drain", InstanceId=box, LifecycleActionResult="CONTINUE"
    )
    wait_for("terminated", lambda: lab.state(box) == "terminated")
    assert lab.members(name) == []


def test_another_groups_tag_refuses_the_termination(lab: Lab) -> None:
    body = f'{END_SELF} 2>"$DESTDIR/err"\nsay "$ID/err" "$(cat "$DESTDIR/err")"\n'
    box = lab.up(lab.group("foreign", HEAD + body, lab="theirs"))
    assert "AccessDenied" in wait_for("the refusal", lambda: lab.object(f"{box}/err"))


def test_a_hook_that_nobody_completes_times_out(lab: Lab) -> None:
    name = lab.group("timeout", HEAD, hook_seconds=1)
    box = lab.up(name)
    lab.asg.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)
    wait_for("terminated", lambda: lab.state(box) == "terminated")


def test_the_role_limits_the_instance(lab: Lab) -> None:
    body = 'aws s3 cp "$0" s3://not-for-boxes/x 2>"$DESTDIR/err"; say "$ID/denied" "$(cat "$DESTDIR/err")"\n'
    box = lab.up(lab.group("limited", HEAD + body))
    assert "AccessDenied" in wait_for("the refusal", lambda: lab.object(f"{box}/denied"))
    assert lab.s3.list_objects_v2(Bucket=lab.other).get("Contents", []) == []


def test_a_scheduled_action_ends_the_group(lab: Lab) -> None:
    name = lab.group("scheduled", HEAD)
    box = lab.up(name)
    put = lab.asg.put_scheduled_update_group_action
    later = datetime.now(UTC) + timedelta(hours=1)
    ending = {"AutoScalingGroupName": name, "ScheduledActionName": "deadline", "MinSize": 0, "MaxSize": 0}
    put(**ending, DesiredCapacity=0, StartTime=later)
    soon = datetime.now(UTC) + timedelta(seconds=2)
    put(**ending, DesiredCapacity=0, StartTime=soon)  # the same name overwrites
    wait_for("terminated", lambda: lab.state(box) == "terminated")
    assert "scheduled action" in lab.last_cause(name)
    assert lab.asg.describe_scheduled_actions(AutoScalingGroupName=name)["ScheduledUpdateGroupActions"] == []
    with pytest.raises(botocore.exceptions.ClientError, match="New SetDesiredCapacity value 1 is above max value 0"):
        lab.asg.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    with pytest.raises(botocore.exceptions.ClientError, match="in the past"):
        put(**ending, StartTime=datetime(2020, 1, 1, tzinfo=UTC))


def test_a_timer_that_elapsed_fires_at_once_when_persistent(lab: Lab) -> None:
    body = """
printf '[Service]\\nType=oneshot\\nExecStart=touch %s/fired\\n' "$DESTDIR" >"$U/t.service"
printf '[Timer]\\nOnCalendar=2020-01-01 00:00:00 UTC\\nPersistent=true\\n' >"$U/t.timer"
systemctl enable --now t.timer
"""
    box = lab.up(lab.group("timer", HEAD + body))
    wait_for("the timer's service", lambda: (lab.box(box) / "fired").exists())


def test_describe_shows_policy_and_suspended_processes(lab: Lab) -> None:
    name = lab.group("described", HEAD)
    lab.asg.suspend_processes(AutoScalingGroupName=name, ScalingProcesses=["AZRebalance"])
    group = lab.describe(name)
    overrides = group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    assert [o["InstanceType"] for o in overrides] == ["g6.xlarge", "g5.xlarge"]
    assert [p["ProcessName"] for p in group["SuspendedProcesses"]] == ["AZRebalance"]
    assert "LaunchTemplate" not in group
    lab.asg.resume_processes(AutoScalingGroupName=name, ScalingProcesses=["AZRebalance"])
    assert lab.describe(name)["SuspendedProcesses"] == []


def test_cloudformation_drains_the_group_before_it_deletes_it(lab: Lab) -> None:
    cfn = lab.cloud.client("cloudformation")
    lab.group("source", HEAD)
    found = lab.ec2.describe_launch_templates(LaunchTemplateNames=["source"])["LaunchTemplates"]
    properties = {
        "MinSize": "0",
        "MaxSize": "1",
        "AvailabilityZones": ["us-east-1a"],
        "LaunchTemplate": {"LaunchTemplateId": found[0]["LaunchTemplateId"], "Version": "1"},
    }
    group = {"Type": "AWS::AutoScaling::AutoScalingGroup", "Properties": properties}
    cfn.create_stack(StackName="stack", TemplateBody=json.dumps({"Resources": {"Group": group}}))
    cfn.get_waiter("stack_create_complete").wait(StackName="stack", WaiterConfig={"Delay": 1})
    resource = cfn.describe_stack_resource(StackName="stack", LogicalResourceId="Group")["StackResourceDetail"]
    name = resource["PhysicalResourceId"]
    box = lab.up(name)
    cfn.delete_stack(StackName="stack")
    cfn.get_waiter("stack_delete_complete").wait(StackName="stack", WaiterConfig={"Delay": 1})
    assert lab.state(box) == "terminated"
    assert lab.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"] == []


def test_an_absent_image_tag_is_an_error_and_immutable_tags_are_refused(lab: Lab) -> None:
    ecr = lab.cloud.client("ecr")
    with pytest.raises(ecr.exceptions.ImageNotFoundException):
        ecr.describe_images(repositoryName="lab/app", imageIds=[{"imageTag": "absent"}])
    uri = ecr.create_repository(repositoryName="fixed", imageTagMutability="IMMUTABLE")["repository"]["repositoryUri"]
    context = lab.scratch / "other"
    context.mkdir()
    for text, code in (("one", 0), ("two", 1)):
        (context / "Dockerfile").write_text(f"FROM scratch\nENV X={text}\n")
        assert lab.docker("build", "--tag", "t", ".", cwd=context).returncode == 0
        assert lab.docker("tag", "t", f"{uri}:1").returncode == 0
        pushed = lab.docker("push", f"{uri}:1")
        assert pushed.returncode == code, pushed.stderr
    assert "immutable" in pushed.stderr


def test_a_second_cloud_of_the_same_clone_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalCloudError, match="running already"):
        LocalCloud(lab.cloud.root).start()
    with monkeypatch.context() as patch:
        patch.setattr(cli, "ROOT", lab.cloud.root)
        refused = CliRunner().invoke(cli.app, ["up"])
    assert (refused.exit_code, "running already" in refused.stderr) == (1, True)
    assert lab.asg.describe_auto_scaling_groups()  # and the first one is unharmed


def test_what_has_ended_meanwhile_listens_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)), subprocess.Popen(["true"]) as ended:
        found = [psutil.Process(ended.pid), psutil.Process()]
        ended.wait()
        assert listening(found) == {"127.0.0.1"}


def test_everything_listens_on_loopback_and_nothing_survives(tmp_path: Path) -> None:
    cloud = LocalCloud(tmp_path)
    cloud.start()
    try:
        lab = Lab(cloud, tmp_path)
        box = lab.up(lab.group("short", unit(lab)))
        wait_for("user data done", lambda: lab.object(f"{box}/up"))
        ours = processes.marked("DESTDIR", str(lab.box(box))) + processes.marked("LAB_LOCAL_SERVER", str(cloud.state))
        assert len(ours) >= 4
        assert listening(ours) == {"127.0.0.1"}
        attached = LocalCloud.attach(tmp_path)
        assert attached is not None
        assert attached.endpoint == cloud.endpoint
    finally:
        cloud.stop()
    assert [p for p in ours if processes.alive(p)] == []
    assert LocalCloud.attach(tmp_path) is None


OWNER = """
import sys, time
from pathlib import Path
from local_cloud.cloud import LocalCloud
LocalCloud(Path(sys.argv[1])).start()
print('up', flush=True)
time.sleep(600)
"""


def test_a_killed_cloud_leaves_nothing_once_the_next_one_starts(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout as out:
        assert out.readline() == "up\n"
        first = LocalCloud.attach(tmp_path)
        assert first is not None
        owner.kill()
    with LocalCloud(tmp_path) as second:
        assert second.endpoint != first.endpoint
        assert len(processes.marked("LAB_LOCAL_SERVER", str(second.state))) == 1
