"""`lab stop` and `lab resume`: what is asked for, what is said, and what is refused before anything is deployed."""

import json
import os
import sys
from threading import Thread

import boto3
import pytest
from typer.testing import CliRunner

from lab import cli
from lab import stop as stopping
from lab.operator.deployed import OutputError, load
from tests.support.account import DATA, TRAINING, deploy
from tests.support.box import wait_for
from tests.support.runs import run_json
from training_image.config.run_settings import RunSettings
from training_image.core.contract import Reason, RunKeys
from training_image.core.store import Store
from training_image.storage import checkpoints

RUN, NEXT = "run-12345678-1", "run-12345678-2"
KEYS = RunKeys(RUN)


def invoke(*words):
    result = CliRunner().invoke(cli.app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*words):
    result = invoke(*words)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1, "one line"
    return result.stderr


@pytest.fixture
def store(shell, monkeypatch):
    """A deployed lab whose run is active, and its outputs bucket."""
    for name in [name for name in os.environ if name.startswith("LLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(stopping, "POLL_SECONDS", 0.05)
    deploy(f"{shell}-DataStack", {**DATA, "OutputsBucket": f"out-{shell}"})
    deploy(f"{shell}-TrainingStack", TRAINING)
    client = boto3.client("s3")
    client.create_bucket(Bucket=f"out-{shell}")
    store = Store(client, f"out-{shell}")
    put_run(store, RUN)
    return store


def put_run(store, run_id, **changes):
    settings = RunSettings.model_construct().model_dump(mode="json")
    settings["training"]["max_steps"] = 100
    run = {"run_id": run_id, "settings": settings, "data_uri": "s3://in-1/data/", **changes}
    store.put_json(RunKeys(run_id).run, run_json(**run))


def end(store, reason, run_id=RUN):
    detail = "the run's deadline is here; the checkpoint of step 7 is durable"
    store.put_json(RunKeys(run_id).outcome, {"reason": reason, "detail": detail})


def publish(store, tmp_path, run_id, step):
    folder = tmp_path / f"{run_id}-{step}"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    checkpoints.publish(store, RunKeys(run_id), folder, step=step, attempt=1, settings_sha256="x", previous=None)


# --- stop -------------------------------------------------------------------------------------------------------------
def test_stop_asks_keeps_the_limits_waits_and_says_what_is_durable(store, shell):
    limits = {"deadline": "2026-01-01T00:00:00+00:00"}
    store.put_json(KEYS.control, {"limits": limits})
    store.put_json(KEYS.heartbeat, {"phase": "training", "step": 6})

    def box():
        wait_for(lambda: "stop" in store.read_json(KEYS.control), "the request")
        end(store, Reason.STOPPED)

    thread = Thread(target=box)
    thread.start()
    said = invoke("stop").stdout
    thread.join()
    control = store.read_json(KEYS.control)
    assert (control["limits"], control["stop"]["reason"]) == (limits, "stopped")
    assert "training, step 6" in said
    assert "ended as stopped" in said
    assert "the checkpoint of step 7 is durable" in said
    assert f"lab resume {RUN} -c lab={shell}" in said
    assert f"cdk destroy TrainingStack -c lab={shell}" in said


def test_stop_does_not_wait_for_ever_and_the_first_request_stands(store, shell, tmp_path):
    outputs, _, _ = load(tmp_path, {})
    for _ in range(2):
        with pytest.raises(OutputError, match="has not ended yet; the request stands"):
            stopping.stop(outputs, print, wait_seconds=0.1)
        first = store.read_json(KEYS.control)
    assert store.read_json(KEYS.control) == first


def test_ctrl_c_leaves_the_request(store, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stopping.time, "sleep", interrupted)
    result = invoke("stop")
    assert result.exit_code == 130
    assert "The request stands" in result.stderr
    assert "stop" in store.read_json(KEYS.control)


def test_stop_without_a_run_that_is_active_says_why(store, shell):
    end(store, Reason.EXPIRED)
    assert f"{RUN} ended as expired" in refused("stop")
    assert "There is no run to stop" in refused("stop")
    assert f"cdk deploy TrainingStack -c lab={shell} -c run=other" in refused("stop", "-c", "run=other")
    deploy(f"{shell}-TrainingStack-off", {**TRAINING, "RunId": "none"})
    assert "none was started" in refused("stop", "-c", "run=off")
    assert store.read_json(KEYS.control) is None


def test_stop_without_credentials_says_what_to_do(shell, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "Unable to locate credentials" in refused("stop")
    assert "Unable to locate credentials" in refused("resume", RUN)


# --- resume -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def cdk(tmp_path):
    """What ``cdk`` was called with, once it has been."""
    program, called = tmp_path / "node_modules/.bin/cdk", tmp_path / "called.json"
    program.parent.mkdir(parents=True)
    body = f"import json, sys\njson.dump(sys.argv[1:], open('{called}', 'w'))\nsys.exit(3)\n"
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o755)
    return lambda: json.loads(called.read_text()) if called.exists() else None


def test_resume_shows_what_goes_on_and_deploys_it_with_further_context(store, cdk, tmp_path):
    end(store, Reason.EXPIRED)
    publish(store, tmp_path, RUN, 5)
    publish(store, tmp_path, RUN, 7)
    result = invoke("resume", RUN, "-c", "max_runtime_hours=3")
    assert result.exit_code == 3, "the deploy's own"
    assert cdk() == ["deploy", "TrainingStack", "-c", f"resume={RUN}", "-c", "max_runtime_hours=3"]
    assert "ended as expired" in result.stdout
    assert "It goes on from step 7" in result.stdout
    assert "LLM_TRAINING__MAX_STEPS=100" in result.stdout


def test_resume_looks_for_the_checkpoint_where_the_instance_will(store, cdk, tmp_path):
    end(store, Reason.STOPPED)
    publish(store, tmp_path, RUN, 5)
    put_run(store, NEXT, resume=RUN)
    end(store, Reason.NO_CAPACITY, NEXT)
    assert "It goes on from step 5" in invoke("resume", NEXT).stdout
    store.delete([item.key for item in store.list("checkpoints/")])
    assert "it begins at the beginning" in invoke("resume", NEXT).stdout


def test_what_cannot_be_resumed_is_refused_before_the_deploy(store, shell, cdk, monkeypatch):
    assert "has not ended" in refused("resume", RUN)
    assert f"There is no run run-1 in this lab. There are: {RUN}." in refused("resume", "run-1")
    end(store, Reason.SUCCEEDED)
    assert f"LLM_MODEL__ADAPTER={RUN}" in refused("resume", RUN)
    end(store, Reason.STOPPED)
    assert "add -c create_instance=true" in refused("resume", RUN, "-c", "create_instance=false")
    monkeypatch.setenv("LLM_TRAINING__MAX_STEPS", "200")
    assert "LLM_TRAINING__MAX_STEPS=200 (the run has 100)" in refused("resume", RUN)
    monkeypatch.setenv("LLM_TRAINING__MAX_STEPS", "100")
    deploy(f"{shell}-TrainingStack-b", {**TRAINING, "RunId": NEXT})
    put_run(store, NEXT, resume=RUN)
    assert f"Run {NEXT} of this stack is active" in refused("resume", RUN, "-c", "run=b")
    end(store, Reason.EXPIRED, NEXT)
    assert f"lab resume {NEXT} -c lab={shell} -c run=b" in refused("resume", RUN, "-c", "run=b")
    assert cdk() is None


def test_a_clone_without_cdk_says_so(store):
    end(store, Reason.STOPPED)
    assert "make setup" in refused("resume", RUN)
