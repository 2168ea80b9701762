"""The boot script and killer 1, which work without a download: run as they are, with stubs of all that they call."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_constructs import compute
from tests.support.stub_host import ARCHIVE, ASSETS, BUCKET, INSTANCE, KEYS, StubHost, archive, run_json
from training_image.core import contract
from training_image.core.codec import UnreadableError
from training_image.core.records import Control, Outcome, Run, in_force, outcome_now

HOUR = timedelta(hours=1)
END_RUN = ["terminate-instance-in-auto-scaling-group", "complete-lifecycle-action"]
END_INSTANCE = ["complete-lifecycle-action", "poweroff"]
RENDERED = compute.render_user_data(
    outputs_bucket="b" * 63,
    stack_suffix="12345678",
    region="ap-southeast-2",
    host_bucket="cdk-hnb659fds-assets-123456789012-ap-southeast-2",
    host_key="0" * 64 + ".zip",
)


@pytest.fixture
def host(tmp_path: Path) -> StubHost:
    return StubHost(tmp_path)


def position(calls: list[str], start: str) -> int:
    return next(number for number, call in enumerate(calls) if call.startswith(start))


# --- the script -------------------------------------------------------------------------------------------------------
def test_a_third_of_what_ec2_accepts_is_free():
    assert len(RENDERED.encode()) * 3 <= compute.USER_DATA_LIMIT_BYTES * 2


def test_as_it_is_sent_it_passes_shellcheck(tmp_path):
    (tmp_path / "script").write_text(RENDERED)
    unused = "--exclude=SC2034"  # the directive that says why is a comment, which stays at home
    result = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--severity=warning", unused, tmp_path / "script"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_it_goes_on_with_the_files_that_it_fetches(host):
    assert host.boot() == 0, host.log
    assert "setup done" in host.log
    assert host.ending == []
    armed = position(host.calls, "systemctl enable --now training-deadline.timer")
    fetched = position(host.calls, f"aws s3api get-object --bucket {ASSETS} --key {ARCHIVE}")
    assert armed < fetched < position(host.calls, "systemctl enable --now training.service")
    unit = (host.root / "etc/systemd/system/training-deadline.service").read_text()
    assert f"ExecStart={host.lib}/expire\n" in unit


def test_a_fetch_that_fails_once_is_tried_again(host):
    host.fault("get-object", "Could not connect to the endpoint URL", once=True)
    assert host.boot() == 0
    assert "the host files did not come: Could not connect" in host.log


@pytest.mark.parametrize(
    "what",
    [
        "An error occurred (SlowDown) when calling the GetObject operation",
        "An error occurred (AccessDenied) when calling the GetObject operation: not authorized to perform: kms:Decrypt",
    ],
)
def test_without_the_files_the_spending_ends_and_says_why(host, what):
    host.fault("get-object", f"\n{what}\n")
    assert host.boot() == 1
    assert host.outcome()["detail"].startswith(
        f"Setup of the instance failed at the fetch of s3://{ASSETS}/{ARCHIVE} ("
    )
    assert what in host.outcome()["detail"]
    assert host.ending == END_RUN
    assert what in host.get(f"{KEYS.prefix}boots/{INSTANCE}/training-setup.log")


@pytest.mark.parametrize("damaged", [archive()[:-100], archive()[:200] + b"another byte" + archive()[212:], b""])
def test_an_archive_that_is_damaged_is_not_started(host, damaged):
    host.put(ASSETS, ARCHIVE, damaged)
    assert host.boot() == 1
    assert host.outcome()["reason"] == contract.Reason.FAILED
    assert re.search("BadZipFile|zlib.error", host.outcome()["detail"])
    assert host.ending == END_RUN
    assert not any(call.startswith("docker") for call in host.calls)


def test_an_instance_that_a_redeploy_has_overtaken_ends_alone(host):
    """Files, script and permission change together: its successor in the group has the new ones."""
    host.fault("get-object", "\nAn error occurred (AccessDenied) when calling the GetObject operation: Access Denied")
    assert host.boot() == 1
    assert host.outcome() is None
    assert host.ending == END_INSTANCE
    assert "AccessDenied" in host.get(f"{KEYS.prefix}boots/{INSTANCE}/training-setup.log")


def test_a_failure_of_the_fetched_setup_says_where(host):
    host.fault("pull", "no space left on device")
    assert host.boot() == 1
    outcome = host.outcome()
    assert (outcome["reason"], outcome["by"]) == (contract.Reason.FAILED, contract.Actor.INSTANCE)
    assert re.search(r"failed at line \d+ of setup \(\./pull\); see boots/", outcome["detail"])
    assert host.ending == END_RUN
    assert "no space left on device" in host.get(f"{KEYS.prefix}boots/{INSTANCE}/training-setup.log")


def test_a_setup_that_is_killed_is_a_failure_too(host, tmp_path):
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded/setup").write_text("kill -9 $$\n")
    host.put(ASSETS, ARCHIVE, archive(tmp_path / "downloaded"))
    assert host.boot() == 1
    assert host.outcome()["detail"].startswith("Setup of the instance failed at setup;")
    assert host.ending == END_RUN


def test_what_fails_before_the_run_is_known_ends_the_spending(host):
    host.fault("curl", "no route to host")
    host.fault("autoscaling", "Unable to locate credentials")
    assert host.boot() == 1
    assert host.ending == [*END_RUN[:1], "update-auto-scaling-group", "poweroff", "complete-lifecycle-action"]


def test_a_run_that_is_over_trains_no_more(host):
    host.put(BUCKET, KEYS.outcome, {"reason": "succeeded"})
    assert host.boot() == 0
    assert host.ending == END_RUN
    assert host.outcome() == {"reason": "succeeded"}
    assert not any("get-object" in call for call in host.calls)


def test_a_run_whose_deadline_has_passed_expires(host):
    host.put(BUCKET, KEYS.run, run_json(deadline=(datetime.now(UTC) - HOUR).isoformat()))
    assert host.boot() == 0
    assert host.outcome()["reason"] == contract.Reason.EXPIRED
    assert host.ending == END_RUN
    assert not any("get-object" in call for call in host.calls)


def test_the_outcome_is_the_contracts(host):
    host.fault("pull")
    host.boot()
    said = host.outcome()
    read = Outcome.read(said)
    made = outcome_now(read.reason, read.detail or "", contract.Actor.INSTANCE)
    assert read == replace(made, at=read.at)
    assert {name: made.to_json()[name] for name in said} == {**said, "at": made.to_json()["at"]}
    assert read.at is not None


def test_the_names_are_the_contracts():
    ending = (compute.HOST / "in_user_data/ending.sh").read_text()
    assert f"--lifecycle-hook-name {contract.DRAIN_HOOK_NAME} " in ending
    assert set(re.findall(r"runs/\$RUN_ID/([\w./-]+)", RENDERED)) == {
        Path(key).name for key in (KEYS.run, KEYS.control, KEYS.outcome)
    } | {"boots/"}
    assert "stacks/$STACK/current.json" in RENDERED
    assert contract.pointer_key("$STACK") == "stacks/$STACK/current.json"


# --- killer 1 ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def unfinished(host: StubHost) -> StubHost:
    """An instance whose fetch never ended: only what user data carries is there."""
    host.boot()
    for path in compute.DOWNLOADED.iterdir():
        (host.lib / path.name).unlink(missing_ok=True)
    host.forget()
    return host


def limits(host: StubHost, **values: Any) -> None:
    host.put(BUCKET, KEYS.control, {"limits": values})


def test_the_deadline_ends_the_run_without_any_fetched_file(unfinished):
    limits(unfinished, deadline=datetime.now(UTC).isoformat(), auto_shutdown=False)
    unfinished.run(unfinished.lib / "expire")
    assert unfinished.outcome()["reason"] == contract.Reason.EXPIRED
    assert unfinished.ending == END_RUN


def test_at_the_deadline_the_container_drains(unfinished):
    """Its unit then calls ``finish``."""
    limits(unfinished, deadline=datetime.now(UTC).isoformat())
    unfinished.set("active")
    unfinished.run(unfinished.lib / "expire")
    assert unfinished.calls[-1] == "systemctl stop training.service"
    assert (unfinished.lib / "expired").exists()
    assert unfinished.ending == []


def test_a_deadline_that_was_put_off_arms_the_timer_anew(unfinished):
    later = datetime.now(UTC).replace(microsecond=0) + 5 * HOUR
    limits(unfinished, deadline=later.isoformat())
    unfinished.run(unfinished.lib / "expire")
    assert unfinished.ending == []
    timer = (unfinished.root / "etc/systemd/system/training-deadline.timer").read_text()
    assert f"OnCalendar={later:%Y-%m-%d %H:%M:%S} UTC\nPersistent=true\n" in timer
    assert unfinished.calls[-1] == "systemctl enable --now training-deadline.timer"


def test_a_deadline_whose_limits_cannot_be_read_holds(unfinished):
    (unfinished.lib / "run.json").write_text("{")
    unfinished.run(unfinished.lib / "expire")
    assert unfinished.ending == END_RUN


# --- limits: the boot script's own reader against the contract --------------------------------------------------------
(FIELDS,) = re.findall(
    r"^cat >\"\$LIB/fields.py\" <<'END_OF_FILE'\n(.*?)^END_OF_FILE$", RENDERED, re.DOTALL | re.MULTILINE
)
TIMES = st.datetimes(min_value=datetime(2026, 1, 1), max_value=datetime(2027, 12, 31), timezones=st.just(UTC))
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "deadline": TIMES.map(lambda when: when.isoformat(timespec="seconds")),
        "auto_shutdown": st.booleans(),
        "max_runtime_hours": st.floats(0.1, 48),
    },
)
STOP = st.just({"reason": "stopped", "detail": "by the operator", "at": "2026-01-31T12:00:00+00:00"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


def fields(run: Any, control: bytes | None) -> dict[str, str]:
    """What the script assigns, as a shell reads it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        files = {"run.json": json.dumps(run).encode(), "control.json": control}
        patch.setattr(Path, "read_text", lambda path, encoding: _content(files, path, encoding))
        patch.setattr(sys, "argv", ["fields.py", "run.json", "control.json"])
        said = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        exec(compile(FIELDS, "fields.py", "exec"), {})  # noqa: S102 it is the script under test
    return dict(word.split("=", 1) for word in shlex.split(said.getvalue()))


def _content(files: dict[str, bytes | None], path: Path, encoding: str) -> str:
    body = files[path.name]
    if body is None:
        raise FileNotFoundError(path)
    return body.decode(encoding)


def expected(run: dict[str, Any], control: bytes | None) -> dict[str, str]:
    """As the records have it; what cannot be understood of control.json holds for nobody."""
    try:
        asked = None if control is None else Control.parse(control)
    except UnreadableError:
        asked = None
    held = in_force(Run.read(run), asked)
    deadline = held.deadline.astimezone(UTC)
    return {
        "GROUP": run["group"],
        "AUTO_SHUTDOWN": str(held.auto_shutdown).lower(),
        "DEADLINE": f"{deadline:%Y-%m-%d %H:%M:%S} UTC",
        "EXPIRED": str(deadline <= datetime.now(UTC)).lower(),
    }


@given(
    deadline=TIMES,
    auto_shutdown=st.booleans(),
    control=st.none() | st.fixed_dictionaries({}, optional={"limits": LIMITS, "stop": STOP}),
)
@settings(deadline=None)
def test_limits_are_the_contracts(deadline, auto_shutdown, control):
    run = run_json(deadline=deadline.isoformat(timespec="seconds"), auto_shutdown=auto_shutdown)
    body = None if control is None else json.dumps(control).encode()
    assert fields(run, body) == expected(run, body)


NO_LIMITS = JSON | st.fixed_dictionaries(
    {"deadline": JSON, "auto_shutdown": JSON.filter(lambda value: not isinstance(value, bool))}
)


@given(
    control=st.binary() | (JSON | st.fixed_dictionaries({"limits": NO_LIMITS})).map(lambda x: json.dumps(x).encode()),
    auto_shutdown=st.booleans(),
)
@settings(deadline=None)
def test_whatever_stands_in_control_json_the_limits_are_those_of_the_records(control, auto_shutdown):
    run = run_json(auto_shutdown=auto_shutdown)
    assert fields(run, control) == expected(run, control)


@pytest.mark.parametrize(
    "deadline", ["2027-01-01T00:00:00", "9999-12-31T23:59:59-01:00", "tomorrow", "", 5, None, [], {}]
)
def test_a_deadline_that_is_none_changes_nothing(deadline):
    run = run_json()
    control = {"limits": {"deadline": deadline, "auto_shutdown": False}}
    assert fields(run, json.dumps(control).encode()) == {**expected(run, None), "AUTO_SHUTDOWN": "false"}


def test_nothing_of_a_run_is_evaluated(host):
    """Neither by the shell that reads the facts nor on a command line."""
    nasty = "$(touch $STUBS/pwned) `touch $STUBS/pwned`; touch $STUBS/pwned\n'\" *"
    run = run_json(group=nasty, image=nasty, gpus=nasty, data_uri=nasty, training_bucket=nasty)
    run["settings"]["model"] = {"base_model": nasty, "revision": nasty}
    host.put(BUCKET, KEYS.run, run)
    assert host.boot() == 0, host.log
    for program in ("start", "finish", "expire", "rerun-training"):
        host.run(host.lib / program)
    assert not list(host.root.parent.rglob("pwned"))
    assert any(nasty.split("\n")[0] in call for call in host.calls if call.startswith("docker pull"))
