"""The files that user data fetches, each where it lies: run with a boot's own facts, and stubs of what they call."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab_constructs import compute
from tests.support.stub_host import BUCKET, INSTANCE, KEYS, LAUNCHED, RUN_ID, StubHost, readable, run_json
from training_image.core import contract
from training_image.supervisor.reporter import host_phases

FILES = [
    path
    for folder in ("in_user_data", "downloaded")
    for path in sorted((compute.HOST / folder).iterdir())
    if path.is_file()
]
SHELL = [path for path in FILES if path.suffix == ".sh" or path.read_text().startswith("#!/bin/bash\n")]
PYTHON = [path for path in FILES if path.suffix == ".py"]
UNITS = [path for path in FILES if path.suffix == ".service"]
END_RUN = ["terminate-instance-in-auto-scaling-group", "complete-lifecycle-action"]
END_INSTANCE = ["complete-lifecycle-action", "poweroff"]
STORE = "opt/dlami/nvme"


@pytest.fixture
def host(tmp_path: Path) -> StubHost:
    """Booted; its container runs."""
    host = StubHost(tmp_path)
    assert host.boot() == 0, host.log
    return host


def named(path: Path) -> str:
    return path.name


# --- as they lie ------------------------------------------------------------------------------------------------------
def test_every_file_is_of_a_known_kind_and_has_a_name_of_its_own():
    assert {*SHELL, *PYTHON, *UNITS} == set(FILES)
    assert len({path.name for path in FILES}) == len(FILES), "all of them go to one folder"


@pytest.mark.parametrize("path", SHELL, ids=named)
def test_scripts_pass_shellcheck_in_strict_mode(path):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([shellcheck, "--severity=warning", path], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    if path.suffix != ".sh":  # those are read by others, in their mode
        ending = "Without `set -e`" in path.read_text()
        assert ("\nset -uo pipefail\n" if ending else "\nset -Eeuo pipefail\n") in path.read_text()


@pytest.mark.parametrize("path", PYTHON, ids=named)
def test_python_is_what_the_machine_image_has(path):
    """Python 3.8 and its standard library."""
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            assert node.module in sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_filled_in(path):
    assert not re.search("@[A-Z_]{3,}@", path.read_text())


def test_a_stop_leaves_time_for_a_checkpoint():
    unit = (compute.DOWNLOADED / "training.service").read_text()
    assert f"ExecStop=docker stop -t {contract.DRAIN_SECONDS} training\n" in unit
    assert int(re.findall("TimeoutStopSec=([0-9]+)", unit)[0]) > contract.DRAIN_SECONDS


# --- setup ------------------------------------------------------------------------------------------------------------
def test_the_units_run_what_was_installed(host):
    unit = (host.root / "etc/systemd/system/training.service").read_text()
    for name in re.findall(r"^Exec\w+=(/.*)$", unit, re.MULTILINE):
        assert Path(name).stat().st_mode & 0o111, "systemd runs no other file"
        assert Path(name).parent == host.lib


def test_the_boots_timeline_is_what_the_supervisor_reads(host):
    phases = {name: (began, ended) for name, began, ended in host_phases(host.root / "opt/training/boot.jsonl", 0.0)}
    assert set(phases) == {"instance_start", "setup", "image_pull", "prefetch"}
    assert phases["instance_start"][0] == LAUNCHED.timestamp()


def test_a_timeline_without_the_launchs_time_begins_with_the_script(host):
    (host.lib / "identity.json").write_text("")
    boot = host.root / "opt/training/boot.jsonl"
    boot.unlink()
    assert host.run(host.lib / "setup").returncode == 0
    phases = {name: (began, ended) for name, began, ended in host_phases(boot, 0.0)}
    assert phases["instance_start"][0] == phases["instance_start"][1]


def test_what_comes_after_the_container_has_started_fails_alone(tmp_path):
    host = StubHost(tmp_path)
    host.fault("runuser", "no such user")
    assert host.boot() == 0
    assert "no viewer on this instance" in host.log
    assert host.ending == []


def test_session_managers_user_can_read_what_the_viewer_and_a_rerun_need(host):
    for name in ("environment", "run.json", "run.sh", "container.sh"):
        assert readable(host.lib / name)
    assert readable(host.root / "var/log/training.log")


def test_an_image_is_tried_three_times(host):
    host.forget()
    host.fault("pull", "toomanyrequests")
    assert host.run(host.lib / "pull").returncode == 1
    assert len([call for call in host.calls if call.startswith("docker pull")]) == 3


def test_a_pull_that_fails_once_is_tried_again(host):
    host.fault("login", "i/o timeout", once=True)
    assert host.run(host.lib / "pull").returncode == 0


# --- Docker on the instance store -------------------------------------------------------------------------------------
def daemon_json(folder: Path, before: str | None) -> dict:
    path = folder / "daemon.json"
    if before is not None:
        path.write_text(before)
    subprocess.run([sys.executable, compute.DOWNLOADED / "daemon_json.py", path, "/nvme/docker"], check=True)
    return json.loads(path.read_text())


OURS = {"data-root": "/nvme/docker", "features": {"containerd-snapshotter": False}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, OURS),
        ("{}", OURS),
        ('{"runtimes": {"nvidia": {}}}', {**OURS, "runtimes": {"nvidia": {}}}),
        ('{"features": {"cdi": true}}', {**OURS, "features": {"cdi": True, "containerd-snapshotter": False}}),
        ('{"data-root": "/var/lib/docker"}', OURS),
    ],
)
def test_dockers_own_settings_stay(tmp_path, before, after):
    assert daemon_json(tmp_path, before) == after


def test_the_instance_store_takes_scratch_and_images(tmp_path):
    host = StubHost(tmp_path)
    host.set("mounted")
    assert host.boot() == 0, host.log
    daemon = json.loads((host.root / "etc/docker/daemon.json").read_text())
    assert daemon["data-root"] == str(host.root / STORE / "docker")
    assert (host.root / STORE / "training/boot.jsonl").exists()
    assert not (host.root / "opt/training").exists()


def test_docker_that_does_not_start_there_goes_back_and_the_run_goes_on(tmp_path):
    host = StubHost(tmp_path)
    host.set("mounted")
    host.fault("docker.service", "Job for docker.service failed", once=True)
    assert host.boot() == 0, host.log
    assert json.loads((host.root / "etc/docker/daemon.json").read_text()) == {}
    asked = [call for call in host.calls if "docker.service" in call]
    assert [call.split()[1] for call in asked] == ["restart", "reset-failed", "restart"]


# --- the container ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("gpus", "option"), [(0, ""), (1, "--gpus all "), (4, "--gpus all ")])
def test_the_container_gets_the_gpus_that_the_run_needs(host, gpus, option):
    host.put(BUCKET, KEYS.run, run_json(gpus=gpus))
    assert host.boot() == 0
    host.forget()
    assert host.run(host.lib / "start").returncode == 0
    (call,) = [call for call in host.calls if call.startswith("docker run")]
    work = host.root / "opt/training"
    assert call.startswith(f"docker run --rm --name training --ipc=host {option}--read-only --tmpfs /tmp:rw,")
    assert f" -v {work}:{work} -e HF_HOME={work}/huggingface -e AWS_DEFAULT_REGION=us-east-1 " in call
    assert re.search(rf"--bucket {BUCKET} --run-id {RUN_ID} --work-dir {work} --booted-at [0-9]+$", call)


def test_a_start_without_the_image_pulls_it(host):
    """After a stop of the instance its store is empty."""
    host.forget()
    host.fault("inspect")
    (host.root / "opt/training/boot.jsonl").unlink()
    assert host.run(host.lib / "start").returncode == 0
    assert [call.split()[1] for call in host.calls if call.startswith("docker")] == ["inspect", "login", "pull", "run"]


# --- finish: what the container's end means ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "status", "expired", "kept", "ending", "reason"),
    [
        ("exited", contract.SupervisorExit.RUN_ENDED, False, False, END_RUN, None),
        ("exited", contract.SupervisorExit.RUN_ENDED, False, True, [], None),
        ("exited", contract.SupervisorExit.INSTANCE_LEAVING, False, False, END_INSTANCE, None),
        ("exited", contract.SupervisorExit.INSTANCE_LEAVING, False, True, END_INSTANCE, None),
        ("exited", 1, False, False, END_INSTANCE, None),
        ("exited", 125, False, True, END_INSTANCE, None),
        ("killed", "KILL", False, False, END_INSTANCE, None),
        ("", "", False, False, END_INSTANCE, None),
        ("killed", 0, False, False, END_INSTANCE, None),
        ("exited", contract.SupervisorExit.RUN_ENDED, True, False, END_RUN, "expired"),
        ("exited", contract.SupervisorExit.RUN_ENDED, True, True, END_RUN, "expired"),
        ("killed", "TERM", True, True, END_RUN, "expired"),
    ],
)
def test_the_containers_end_decides_on_run_or_instance(host, code, status, expired, kept, ending, reason):
    host.put(BUCKET, KEYS.control, {"limits": {"auto_shutdown": not kept}})
    host.forget()
    if expired:
        (host.lib / "expired").touch()
    status = str(int(status)) if isinstance(status, int) else status
    host.run(host.lib / "finish", SERVICE_RESULT="result", EXIT_CODE=code, EXIT_STATUS=status)
    assert host.ending == ending
    assert (host.outcome() or {}).get("reason") == reason
    assert f"the container ended: result {code or '?'} {status or '?'}" in host.log
    assert host.get(f"{KEYS.prefix}boots/{INSTANCE}/training-setup.log"), "whatever it was, the log says"


def test_an_outcome_stands(host):
    host.put(BUCKET, KEYS.outcome, {"reason": "stopped"})
    (host.lib / "expired").touch()
    host.run(host.lib / "finish", EXIT_CODE="exited", EXIT_STATUS="0")
    assert host.outcome() == {"reason": "stopped"}


def test_who_stops_a_run_has_reviewed_it(host):
    host.put(BUCKET, KEYS.control, {"limits": {"auto_shutdown": False}, "stop": {"reason": "stopped"}})
    host.run(host.lib / "finish", EXIT_CODE="exited", EXIT_STATUS="0")
    assert host.ending == END_RUN


def test_an_end_that_auto_scaling_refuses_is_tried_otherwise(host):
    host.fault("terminate-instance-in-auto-scaling-group", "ValidationError")
    host.run(host.lib / "finish", EXIT_CODE="exited", EXIT_STATUS="0")
    assert host.ending == [END_RUN[0], "update-auto-scaling-group", END_RUN[1]]
    assert any("--auto-scaling-group-name the-group --min-size 0 --desired-capacity 0" in call for call in host.calls)


def test_logs_that_cannot_be_uploaded_end_it_all_the_same(host):
    host.fault("cp", "no route to host")
    host.run(host.lib / "finish", EXIT_CODE="exited", EXIT_STATUS="0")
    assert host.ending == END_RUN


# --- rerun-training ---------------------------------------------------------------------------------------------------
def test_a_rerun_takes_over_what_the_caller_exports(host):
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=5)
    host.put(BUCKET, KEYS.control, {"limits": {"deadline": later.isoformat(), "auto_shutdown": False}})
    host.run(host.lib / "finish", EXIT_CODE="exited", EXIT_STATUS="0")
    host.forget()
    (host.root / "opt/training/data").mkdir()
    result = host.run(host.root / "usr/local/bin/rerun-training", LLM_LORA__R="4 8", OTHER="unseen")
    assert result.returncode == 0, result.stderr
    assert f"with: LLM_LORA__R . The instance stays until {later:%Y-%m-%d %H:%M:%S} UTC at most." in result.stdout
    (call,) = [call for call in host.calls if call.startswith("docker")]
    assert "--name rerun --entrypoint python --ipc=host --gpus all " in call
    (work,) = (host.root / "opt/training/rerun").iterdir()
    assert re.search(rf" -e LLM_LORA__R 123456789012\S+ -m training_image.train --work-dir {work}$", call)
    assert (work / "data").resolve() == host.root / "opt/training/data"
    assert json.loads((work / "run.json").read_text())["group"] == "the-group"
    assert f"s3://{BUCKET}/runs/{RUN_ID}/rerun/{work.name}/" in result.stdout


def test_no_rerun_beside_the_run(host):
    host.set("active")
    host.forget()
    result = host.run(host.root / "usr/local/bin/rerun-training")
    assert result.returncode == 1
    assert "tmux attach -t training" in result.stderr
    assert not any(call.startswith("docker") for call in host.calls)


def test_a_rerun_that_fails_is_a_command_that_fails(host):
    host.fault("rerun", "CUDA out of memory")
    result = host.run(host.root / "usr/local/bin/rerun-training")
    assert result.returncode != 0
    assert "Results:" not in result.stdout
