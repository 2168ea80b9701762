"""The real boot script on an instance of the local cloud: where it works, and what it leaves on an instance that is
kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_constructs.compute import render_user_data
from local_cloud.cloud import LocalCloud
from tests.support.local_lab import SHIMS, Lab, wait_for
from tests.support.stub_host import archive
from training_image.supervisor.reporter import host_phases

SUPERVISOR = '''
"""In the supervisor's place: says what it finds, and that the run has ended."""
import os, stat, sys
from pathlib import Path
work = Path(sys.argv[sys.argv.index("--work-dir") + 1])
print("work:", work, flush=True)
print("found:", sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()), flush=True)
folders = [work, *(path for path in work.rglob("*") if path.is_dir())]
assert all(path.stat().st_mode & stat.S_IWOTH for path in folders), "the container's user writes here"
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
DAEMON = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}, "features": {"cdi": True}}
MOUNTED = f"""
mkdir -p "$DESTDIR/opt/dlami/nvme" "$DESTDIR/etc/docker"
echo '{json.dumps(DAEMON)}' >"$DESTDIR/etc/docker/daemon.json"
mountpoint() {{ [ "$2" = "$DESTDIR/opt/dlami/nvme" ]; }}
systemctl() {{
  if [ "${{2:-}}" = docker.service ]; then
    echo "$*" >>"$DESTDIR/asked"
    [ -z "${{REFUSED:-}}" ] || ! grep -q "$REFUSED" "$DESTDIR/etc/docker/daemon.json"
  else
    command systemctl "$@"
  fi
}}
export -f mountpoint systemctl
export REFUSED
"""
"""Here an instance store is no mount, and Docker no unit."""
COMMIT = "0123456789abcdef" * 2 + "01234567"
MIRROR = "models/hub/models--org--small/"
OBJECTS = {
    "data/train.jsonl": "one line",
    "data/more/eval.jsonl": "another",
    "data/notes.txt": "nothing to train on",
    "models/own/config.json": "{}",
    f"{MIRROR}refs/main": COMMIT,
    f"{MIRROR}snapshots/{COMMIT}/config.json": "{}",
    f"{MIRROR}snapshots/{'f' * 40}/config.json": "another revision's",
}
DATA = ["data/more/eval.jsonl", "data/train.jsonl"]


class BootLab(Lab):
    """Its image trains nothing; its instance runs the script of the launch template."""

    def push_image(self) -> str:
        context = self.scratch / "boot"
        context.mkdir()
        for name, text in {"__init__": "", "supervisor": SUPERVISOR, "train": TRAINER}.items():
            (context / f"{name}.py").write_text(text)
        (context / "Dockerfile").write_text(
            "FROM python:3.11-slim\nWORKDIR /app\nCOPY . training_image/\n"
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

    def boot(
        self,
        name: str,
        *,
        before: str = "",
        deadline: timedelta = timedelta(hours=1),
        base_model: str = "org/small",
        data: str = "s3://box-outputs/data/",
    ) -> Path:
        """A kept instance, once its run has ended; ``before`` runs in front of the script."""
        self.prepare(name, deadline=deadline, base_model=base_model, data=data)
        box = self.box(self.up(self.group(name, self.script(name, before))))
        log = box / "var/log/training-setup.log"
        wait_for("the run's end", lambda: log.exists() and "the instance stays for review" in log.read_text(), 180)
        wait_for("the setup's end", lambda: "setup done" in log.read_text(), 60)
        return box

    def prepare(
        self,
        name: str,
        *,
        deadline: timedelta = timedelta(hours=1),
        base_model: str = "org/small",
        data: str = "s3://box-outputs/data/",
    ) -> None:
        """What the script reads."""
        for key, body in OBJECTS.items():
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        run = {
            "group": name,
            "image": self.image,
            "gpus": 0,
            "auto_shutdown": False,
            "deadline": (datetime.now(UTC) + deadline).isoformat(timespec="seconds"),
            "data_uri": data,
            "training_bucket": self.bucket,
            "settings": {"seed": 7, "model": {"base_model": base_model, "revision": None}},
        }
        self.s3.put_object(Bucket=self.bucket, Key=f"runs/{name}-1/run.json", Body=json.dumps(run))
        pointer = json.dumps({"run_id": f"{name}-1"})
        self.s3.put_object(Bucket=self.bucket, Key=f"stacks/{name}/current.json", Body=pointer)
        self.s3.put_object(Bucket=self.bucket, Key="host.zip", Body=archive())

    def script(self, name: str, before: str = "", *, host_bucket: str | None = None) -> str:
        """User data as the launch template holds it, behind ``before``."""
        shebang, rest = render_user_data(
            outputs_bucket=self.bucket,
            stack_suffix=name,
            region="us-east-1",
            host_bucket=host_bucket or self.bucket,
            host_key="host.zip",
        ).split("\n", 1)
        return f"{shebang}\n{before}{rest}"


@pytest.fixture(scope="module")
def boots(tmp_path_factory: pytest.TempPathFactory):
    with LocalCloud(tmp_path_factory.mktemp("clone")) as cloud:
        yield BootLab(cloud, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def kept(boots: BootLab) -> Path:
    return boots.boot("kept")


def rerun(lab: BootLab, box: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As typed in a session on the instance."""
    path = f"{SHIMS}:{lab.cloud.state / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "DESTDIR": str(box), "AWS_ENDPOINT_URL": lab.cloud.endpoint, **variables}
    return subprocess.run(
        [box / "usr/local/bin/rerun-training"], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_kept_instance_trains_again_with_what_the_caller_exports(boots: BootLab, kept: Path) -> None:
    result = rerun(boots, kept, LLM_TRAINING__LEARNING_RATE="1e-5", LLM_LORA__R="4 8", OTHER="unseen")
    assert result.returncode == 0, result.stderr
    said = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert said["given"] == {"LLM_TRAINING__LEARNING_RATE": "1e-5", "LLM_LORA__R": "4 8"}
    assert said["run"]["seed"] == 7
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


def test_session_managers_user_has_the_sudo_that_its_agent_would_give_it(kept: Path) -> None:
    sudoers = kept / "etc/sudoers.d/ssm-agent-users"
    assert sudoers.read_text() == "ssm-user ALL=(ALL) NOPASSWD:ALL\n"
    assert sudoers.stat().st_mode & 0o777 == 0o440


def found(box: Path, folder: str = "opt/training") -> list[list[str]]:
    """The files that each container found in its work directory when it began."""
    log = (box / "var/log/training.log").read_text()
    assert f"work: {box}/{folder}\n" in log
    return [json.loads(line[7:].replace("'", '"')) for line in log.splitlines() if line.startswith("found: ")]


def test_data_and_the_mirrored_base_model_are_there_before_the_container_begins(kept: Path) -> None:
    model = f"huggingface/hub/models--org--small/snapshots/{COMMIT}/config.json"
    assert found(kept) == [["boot.jsonl", *DATA, model]]


def test_the_boot_leaves_a_timeline_of_its_own(kept: Path) -> None:
    phases = {phase: (began, ended) for phase, began, ended in host_phases(kept / "opt/training/boot.jsonl", 0.0)}
    assert set(phases) == {"instance_start", "setup", "image_pull", "prefetch"}
    assert all(began <= ended for began, ended in phases.values())
    assert phases["setup"][0] == phases["instance_start"][1]
    pull, prefetch = phases["image_pull"], phases["prefetch"]
    assert max(pull[0], prefetch[0]) < min(pull[1], prefetch[1]), "at the same time"


def test_the_instance_store_is_used_where_the_machine_image_has_mounted_it(boots: BootLab) -> None:
    """For scratch and for images; and what a stop of the instance has emptied is filled again."""
    box = boots.boot("nvme", before=MOUNTED, base_model=f"s3://{boots.bucket}/models/own")
    assert found(box, "opt/dlami/nvme/training") == [["boot.jsonl", *DATA, "model/config.json"]]
    assert not (box / "opt/training").exists()
    daemon = json.loads((box / "etc/docker/daemon.json").read_text())
    assert daemon == {
        **DAEMON,
        "data-root": f"{box}/opt/dlami/nvme/docker",
        "features": {"cdi": True, "containerd-snapshotter": False},
    }
    assert (box / "asked").read_text() == "restart docker.service\n"
    order = (box / "etc/systemd/system/docker.service.d/instance-store.conf").read_text()
    assert order == "[Unit]\nAfter=dlami-nvme.service\n"
    result = rerun(boots, box)
    assert result.returncode == 0, result.stderr
    assert '"given": {}' in result.stdout
    assert list((box / "opt/dlami/nvme/training/rerun").iterdir())

    for folder in ("opt/dlami/nvme/training", "var/lib/docker"):
        shutil.rmtree(box / folder)
    as_on(boots, box, "usr/local/lib/llm-tuning-lab/start")
    assert found(box, "opt/dlami/nvme/training")[1:] == [[]]


def as_on(lab: BootLab, box: Path, program: str) -> None:
    """Run what systemd would run on the instance."""
    subprocess.run(
        [box / program],
        env={"PATH": f"{SHIMS}:{lab.cloud.state / 'bin'}:{os.environ['PATH']}", "DESTDIR": str(box)}
        | {name: value for name, value in lab.cloud.environ().items() if name.startswith("AWS_")},
        check=False,
    )


def test_a_deadline_that_was_put_off_is_obeyed_by_the_boxs_own_timer(boots: BootLab) -> None:
    """A deploy has moved it while the instance ran: at the old one the timer looks again, and arms itself anew.

    An instance whose Docker refuses the instance store, and that may read neither data nor mirror beforehand, works
    too.
    """
    box = boots.boot(
        "put-off",
        before=f"REFUSED=data-root\n{MOUNTED}",
        deadline=timedelta(seconds=45),
        base_model="org/none",
        data=f"s3://{boots.other}/data/",
    )
    assert json.loads((box / "etc/docker/daemon.json").read_text()) == DAEMON
    assert (box / "asked").read_text().split("\n")[:3] == [
        "restart docker.service",
        "reset-failed docker.service",
        "restart docker.service",
    ]
    assert found(box, "opt/dlami/nvme/training") == [["boot.jsonl"]]
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
    as_on(boots, box, "usr/local/lib/llm-tuning-lab/expire")
    wait_for("the box is gone", lambda: boots.state(box.name) == "terminated", 60)


def test_an_instance_that_may_not_read_its_host_files_is_replaced_and_the_run_goes_on(boots: BootLab) -> None:
    """As one that boots while a redeploy changes files and permission; other failures: tests/unit/test_user_data.py."""
    boots.prepare("overtaken")
    boots.s3.put_object(Bucket=boots.other, Key="host.zip", Body=archive())
    script = boots.script("overtaken", "sleep() { :; }\n", host_bucket=boots.other)
    first = boots.up(boots.group("overtaken", script))
    log = f"runs/overtaken-1/boots/{first}/training-setup.log"
    wait_for("its log", lambda: boots.object(log), 120)
    assert "AccessDenied" in str(boots.object(log))
    wait_for("a replacement", lambda: any(m["InstanceId"] != first for m in boots.members("overtaken")), 120)
    assert boots.object("runs/overtaken-1/outcome.json") is None
    assert boots.describe("overtaken")["DesiredCapacity"] == 1
    boots.asg.update_auto_scaling_group(AutoScalingGroupName="overtaken", MinSize=0, MaxSize=0, DesiredCapacity=0)
