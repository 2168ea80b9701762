"""The real boot script on a box of the local cloud: where it works, and what it leaves on a box that is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab.local_cloud.cloud import LocalCloud
from lab_constructs.compute import render_user_data
from tests.local_cloud.conftest import SHIMS, Lab, wait_for

SUPERVISOR = '''
"""In the supervisor's place: leaves data, and says that the run has ended."""
import sys
from pathlib import Path
work = Path(sys.argv[sys.argv.index("--work-dir") + 1])
(work / "data").mkdir()
(work / "data" / "train.jsonl").write_text("one line")
print("work:", work, flush=True)
'''
TRAINER = '''
"""In the trainer's place: says what it was given, and leaves a result."""
import json, os, sys
from pathlib import Path
work = Path(sys.argv[sys.argv.index("--work-dir") + 1])
given = {name: value for name, value in os.environ.items() if name.startswith("LLM_")}
run = json.loads((work / "run.json").read_text())
print(json.dumps({"given": given, "run": run["settings"], "data": (work / "data/train.jsonl").read_text()}))
(work / "adapter").mkdir()
sys.exit(int(os.environ.get("LLM_EXIT", "0")))
'''
MOUNTED = """
mkdir -p "$DESTDIR/opt/dlami/nvme"
mountpoint() { [ "$2" = "$DESTDIR/opt/dlami/nvme" ]; }
"""


class BootLab(Lab):
    """Its image trains nothing; its box runs the script of the launch template."""

    def push_image(self) -> str:
        context = self.scratch / "boot"
        (context / "training_image").mkdir(parents=True)
        for name, text in {"__init__": "", "supervisor": SUPERVISOR, "train": TRAINER}.items():
            (context / f"training_image/{name}.py").write_text(text)
        (context / "Dockerfile").write_text(
            "FROM python:3.11-slim\nWORKDIR /app\nCOPY training_image training_image\n"
            'ENTRYPOINT ["python", "-m", "training_image.supervisor"]\n'
        )
        uri = self.cloud.client("ecr").create_repository(repositoryName="lab/boot")["repository"]["repositoryUri"]
        steps = [
            ("login", "--username", "AWS", "--password-stdin", uri.split("/")[0]),
            ("build", "--tag", "boot", "."),
            ("tag", "boot", f"{uri}:1"),
            ("push", f"{uri}:1"),
        ]
        for step in steps:
            result = self.docker(*step, text="token", cwd=context)
            assert result.returncode == 0, result.stderr
        return f"{uri}:1"

    def boot(self, name: str, *, before: str = "", deadline: timedelta = timedelta(hours=1)) -> Path:
        """A kept box, once its run has ended; ``before`` runs in front of the script."""
        run = {
            "group": name,
            "image": self.image,
            "gpus": 0,
            "auto_shutdown": False,
            "deadline": (datetime.now(UTC) + deadline).isoformat(timespec="seconds"),
            "settings": {"seed": 7},
        }
        self.s3.put_object(Bucket=self.bucket, Key=f"runs/{name}-1/run.json", Body=json.dumps(run))
        pointer = json.dumps({"run_id": f"{name}-1"})
        self.s3.put_object(Bucket=self.bucket, Key=f"stacks/{name}/current.json", Body=pointer)
        script = render_user_data(outputs_bucket=self.bucket, stack_suffix=name, region="us-east-1")
        shebang, rest = script.split("\n", 1)
        box = self.box(self.up(self.group(name, f"{shebang}\n{before}{rest}")))
        log = box / "var/log/training-setup.log"
        wait_for("the run's end", lambda: log.exists() and "the box stays for review" in log.read_text(), 180)
        wait_for("the setup's end", lambda: "setup done" in log.read_text(), 60)
        return box


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory):
    with LocalCloud(tmp_path_factory.mktemp("clone")) as cloud:
        yield BootLab(cloud, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def kept(boots: BootLab) -> Path:
    return boots.boot("kept")


def rerun(lab: BootLab, box: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As typed in a session on the box."""
    path = f"{SHIMS}:{lab.cloud.state / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "DESTDIR": str(box), "AWS_ENDPOINT_URL": lab.cloud.endpoint, **variables}
    return subprocess.run(
        [box / "usr/local/bin/rerun-training"], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_kept_box_trains_again_with_what_the_caller_exports(boots: BootLab, kept: Path) -> None:
    result = rerun(boots, kept, LLM_TRAINING__LEARNING_RATE="1e-5", LLM_LORA__R="4 8", OTHER="unseen")
    assert result.returncode == 0, result.stderr
    said = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert said["given"] == {"LLM_TRAINING__LEARNING_RATE": "1e-5", "LLM_LORA__R": "4 8"}
    assert said["run"] == {"seed": 7}
    assert said["data"] == "one line"
    (work,) = (kept / "opt/training/rerun").iterdir()
    assert (work / "adapter").is_dir()
    assert '"given"' in (work / "training.log").read_text()
    assert f"{work}/adapter s3://{boots.bucket}/runs/kept-1/rerun/{work.name}/" in result.stdout
    assert not (kept / "opt/training/adapter").exists(), "what the run has left is untouched"
    assert "rerun" not in str(boots.s3.list_objects_v2(Bucket=boots.bucket)["Contents"]), "nothing is uploaded"


def test_a_rerun_that_fails_is_a_command_that_fails(boots: BootLab, kept: Path) -> None:
    result = rerun(boots, kept, LLM_EXIT="12")
    assert result.returncode == 12
    assert "Results:" not in result.stdout


def test_the_script_that_trains_again_passes_shellcheck(kept: Path) -> None:
    """The linter sees it in the boot script as text only."""
    shellcheck = Path(sys.executable).with_name("shellcheck")
    script = kept / "usr/local/bin/rerun-training"
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_session_managers_user_has_the_sudo_that_its_agent_would_give_it(kept: Path) -> None:
    sudoers = kept / "etc/sudoers.d/ssm-agent-users"
    assert sudoers.read_text() == "ssm-user ALL=(ALL) NOPASSWD:ALL\n"
    assert sudoers.stat().st_mode & 0o777 == 0o440


def test_the_instance_store_is_used_where_the_machine_image_has_mounted_it(boots: BootLab) -> None:
    box = boots.boot("nvme", before=MOUNTED)
    assert f"work: {box}/opt/dlami/nvme/training" in (box / "var/log/training.log").read_text()
    assert not (box / "opt/training").exists()
    result = rerun(boots, box)
    assert result.returncode == 0, result.stderr
    assert '"given": {}' in result.stdout
    assert list((box / "opt/dlami/nvme/training/rerun").iterdir())


def test_a_deadline_that_was_put_off_is_obeyed_by_the_boxs_own_timer(boots: BootLab) -> None:
    """A deploy has moved it while the box ran: at the old one the timer looks again, and arms itself anew."""
    box = boots.boot("put-off", deadline=timedelta(seconds=45))
    later = (datetime.now(UTC) + timedelta(hours=3)).replace(microsecond=0)
    control = json.dumps({"limits": {"deadline": later.isoformat(), "auto_shutdown": False}})
    boots.s3.put_object(Bucket=boots.bucket, Key="runs/put-off-1/control.json", Body=control)
    timer = box / "etc/systemd/system/training-deadline.timer"
    wait_for("a new alarm", lambda: f"OnCalendar={later:%Y-%m-%d %H:%M:%S} UTC" in timer.read_text(), 120)
    assert boots.state(box.name) == "running"
    assert not (box / "usr/local/lib/llm-tuning-lab/expired").exists()

    # And one that passes is the end, kept for review or not.
    passed = datetime.now(UTC).replace(microsecond=0)
    control = json.dumps({"limits": {"deadline": passed.isoformat(), "auto_shutdown": False}})
    boots.s3.put_object(Bucket=boots.bucket, Key="runs/put-off-1/control.json", Body=control)
    subprocess.run(
        [box / "usr/local/lib/llm-tuning-lab/expire"],
        env={"PATH": f"{SHIMS}:{boots.cloud.state / 'bin'}:{os.environ['PATH']}", "DESTDIR": str(box)}
        | {name: value for name, value in boots.cloud.environ().items() if name.startswith("AWS_")},
        check=False,
    )
    wait_for("the box is gone", lambda: boots.state(box.name) == "terminated", 60)
