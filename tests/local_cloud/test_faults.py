"""Faults come from outside, hit instances only, and end when told to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cloud.faults import UnknownFaultError
from tests.support.local_lab import Lab, wait_for

IDLE = "#!/bin/bash\nexport AWS_DEFAULT_REGION=us-east-1\nexec sleep 600\n"
WRITER = """#!/bin/bash
export AWS_DEFAULT_REGION=us-east-1 AWS_MAX_ATTEMPTS=1
exec python3 - <<'PY'
import os, time
from pathlib import Path
import boto3
s3, root = boto3.client("s3"), Path(os.environ["DESTDIR"])
while True:
    began = time.monotonic()
    try:
        s3.put_object(Bucket="box-outputs", Key="writer", Body=bytes(200_000))
        line, name = f"{time.monotonic() - began}", "done"
    except Exception as error:
        line, name = str(error), "errors"
    with (root / name).open("a") as file:
        print(line.splitlines()[0], file=file)
    time.sleep(0.05)
PY
"""


@pytest.fixture
def writer(lab: Lab) -> Iterator[Path]:
    """The directory of an instance that uploads all the time."""
    name = lab.group(f"writer-{len(lab.made)}", WRITER)
    directory = lab.box(lab.up(name))
    wait_for("a first upload", (directory / "done").exists)
    yield directory
    lab.cloud.fault("s3", settings={})
    lab.asg.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=0, DesiredCapacity=0)


CLOCK = """#!/bin/bash
exec python3 - <<'PY'
import os, time
from pathlib import Path
path, began = Path(os.environ["DESTDIR"]) / "clocks", time.monotonic()
while True:
    with path.open("a") as file:
        print(time.time(), time.monotonic() - began, file=file)
    time.sleep(0.05)
PY
"""


def test_a_clock_jumps_forth_and_back_and_time_goes_on_meanwhile(lab: Lab) -> None:
    try:
        lab.cloud.fault("movable-clocks", on=True)
    except UnknownFaultError as error:
        pytest.skip(str(error))
    box = lab.up(lab.group("clock", CLOCK))
    lab.cloud.fault("movable-clocks", on=False)
    clocks = lab.box(box) / "clocks"

    def ahead() -> float:
        lines = clocks.read_text().splitlines() if clocks.exists() else []
        return round(float(lines[-1].split()[0]) - time.time()) if lines and len(lines[-1].split()) == 2 else 0

    for seconds in (240, -240, 0):
        lab.cloud.fault("clock", instance=box, seconds=seconds)
        wait_for(f"a clock that is {seconds} s ahead", lambda wanted=seconds: abs(ahead() - wanted) < 30)
    wait_for("a line", clocks.exists)
    moments = [float(line.split()[1]) for line in clocks.read_text().splitlines()[:-1]]
    assert moments == sorted(moments), "the monotonic clock stays"
    assert moments[-1] < 200
    fixed = lab.up(lab.group("fixed-clock", IDLE))
    with pytest.raises(UnknownFaultError, match="stands fast"):
        lab.cloud.fault("clock", instance=fixed, seconds=5)


def test_without_capacity_no_instance_comes_and_the_group_says_why(lab: Lab) -> None:
    lab.cloud.fault("no-capacity", on=True)
    name = lab.group("no-capacity", IDLE)
    lab.asg.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=0, MaxSize=1, DesiredCapacity=1)

    def failed() -> list[str]:
        found = lab.asg.describe_scaling_activities(AutoScalingGroupName=name)["Activities"]
        return [a["Description"] for a in found if a["StatusCode"] == "Failed"]

    assert "UnfulfillableCapacity" in wait_for("a failed launch", failed)[0]
    assert not lab.members(name)
    lab.cloud.fault("no-capacity", on=False)
    wait_for("a box once there is capacity", lambda: lab.members(name))


def test_a_kill_gives_no_notice_and_the_group_replaces_the_instance(lab: Lab) -> None:
    name = lab.group("kill", IDLE)
    box = lab.up(name)
    lab.cloud.fault("kill", instance=box)
    assert lab.state(box) == "terminated"
    wait_for("another box", lambda: [m for m in lab.members(name) if m["InstanceId"] != box])


def test_an_interruption_gives_notice_first(lab: Lab) -> None:
    """What the instance itself has written it has written before its end."""
    script = IDLE.replace(
        "exec sleep 600",
        'T=$(curl -s -X PUT "$AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/api/token" '
        "-H 'X-aws-ec2-metadata-token-ttl-seconds: 60')\n"
        'until curl -sf -H "X-aws-ec2-metadata-token: $T" '
        '"$AWS_EC2_METADATA_SERVICE_ENDPOINT/latest/meta-data/spot/instance-action" >"$DESTDIR/notice"; '
        "do sleep 0.1; done\n"
        'mv "$DESTDIR/notice" "$DESTDIR/seen"; exec sleep 600',
    )
    box = lab.up(lab.group("interrupt", script))
    lab.cloud.fault("interrupt", instance=box, seconds=10)
    seen = lab.box(box) / "seen"
    wait_for("the notice", seen.exists)
    assert '"action": "terminate"' in seen.read_text()
    wait_for("the end", lambda: lab.state(box) == "terminated")


@pytest.mark.parametrize(("settings", "word"), [({"refuse": True}, "SlowDown"), ({"drop_uploads": True}, "onnection")])
def test_an_outage_of_s3_hits_instances_and_not_the_operator(lab: Lab, writer: Path, settings: dict, word: str) -> None:
    lab.cloud.fault("s3", settings=settings)
    errors = writer / "errors"
    wait_for(f"{word} in the box", lambda: errors.exists() and word in errors.read_text())
    lab.s3.put_object(Bucket=lab.bucket, Key="operator", Body=b"x")
    lab.cloud.fault("s3", settings={})
    before = (writer / "done").read_text()
    wait_for("uploads again", lambda: (writer / "done").read_text() != before)


def test_a_throttled_s3_takes_its_time(lab: Lab, writer: Path) -> None:
    lab.cloud.fault("s3", settings={"bytes_per_second": 100_000.0})
    done = writer / "done"
    wait_for("a slow upload", lambda: any(float(line) > 1.9 for line in done.read_text().splitlines()))


def test_what_does_not_exist_is_refused_in_a_sentence(lab: Lab) -> None:
    with pytest.raises(UnknownFaultError, match="no running instance 'i-0'"):
        lab.cloud.fault("kill", instance="i-0")
    with pytest.raises(UnknownFaultError, match="no fault"):
        lab.cloud.fault("earthquake")
