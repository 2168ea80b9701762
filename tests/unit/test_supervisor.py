"""The supervisor as a real process against a real S3: every way in which an attempt ends."""

import os
import signal
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.box import SETTINGS, flip, wait_for
from training_image.core.contract import DEADLINE_MARGIN_SECONDS, MANIFEST_NAME, SupervisorExit, settings_digest
from training_image.storage.checkpoints import fetch_newest, published


def verified_step(lab):
    """The step of the checkpoint that a next instance would resume from."""
    resume = fetch_newest(lab.store, lab.keys, settings_digest(SETTINGS), lab.folder / "verified")
    return resume.manifest.step if resume.manifest else None


def test_success(lab):
    lab.start_run("steps=8")
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    outcome = lab.outcome()
    assert (outcome["reason"], outcome["by"], outcome["attempts"], outcome["step"]) == ("succeeded", "instance", 1, 8)
    assert (outcome["train_examples"], outcome["eval_examples"], outcome["resumed_from_step"]) == (7, 2, None)
    assert lab.store.read(lab.keys.adapter + "adapter_model.safetensors") == b"adapter" * 1000
    assert lab.logged_steps() == list(range(1, 9))
    assert lab.store.read_json(lab.keys.metrics + "eval_after.json") == {"loss": 1.0}
    beat = lab.heartbeat()
    assert (beat["state"], beat["phase"], beat["durable_step"], beat["instance_id"]) == ("ended", "ended", 8, "i-0123")
    timeline = lab.store.read_json(lab.keys.attempt(1) + "timeline.json")
    names = [phase["phase"] for phase in timeline["phases"]]
    assert names[:2] == ["downloading", "loading"]
    assert names[-1] == "ended"
    assert lab.store.read_json(lab.keys.attempt(1) + "claim.json")["instance_id"] == "i-0123"
    assert "starting at step 0, data ['train.jsonl']" in lab.log()


@pytest.mark.parametrize("option", ["no_marker=1", "wrong_adapter=1"])
def test_exit_code_0_without_a_marker_that_holds_is_no_success(lab, option):
    lab.start_run(option)
    assert lab.run_box() not in set(SupervisorExit)
    assert lab.outcome() is None
    assert "The trainer exited with 0 and left no valid result" in lab.log()


def test_after_a_crash_the_next_attempt_resumes_from_the_newest_checkpoint(lab):
    lab.start_run("crash=5")
    assert lab.run_box() not in set(SupervisorExit)
    assert lab.outcome() is None
    assert lab.heartbeat()["state"] == "waiting"
    assert lab.logged_steps() == [1, 2, 3, 4, 5]
    lab.start_run()
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    outcome = lab.outcome()
    assert (outcome["reason"], outcome["attempts"], outcome["resumed_from_step"]) == ("succeeded", 2, 4)
    assert "starting at step 4" in lab.log(2)
    assert lab.logged_steps() == [1, 2, 3, 4, 5, 6], "one line a step, also of those done twice"
    assert lab.store.read_json(lab.keys.metrics + "eval_before.json")["first_step"] == 0
    assert len(published(lab.store, lab.keys)) == 2


def test_a_crash_in_the_last_attempt_fails_the_run_with_the_last_lines(lab):
    lab.start_run("crash=1", max_attempts=2)
    assert lab.run_box() not in set(SupervisorExit)
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    outcome = lab.outcome()
    assert (outcome["reason"], outcome["attempts"]) == ("failed", 2)
    assert "attempt 2 of 2" in outcome["detail"]
    assert "Traceback: something broke" in outcome["detail"]


def test_no_attempt_left_fails_the_run(lab):
    lab.start_run(max_attempts=1)
    lab.store.put_json(lab.keys.attempt(1) + "claim.json", {})
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "failed"
    assert "attempts" in lab.outcome()["detail"]


def test_sigterm_leaves_a_verified_checkpoint_and_no_outcome(lab):
    lab.start_run("hold=3")
    box = lab.holding(3)
    box.send_signal(signal.SIGTERM)
    assert lab.ended(box) == SupervisorExit.INSTANCE_LEAVING
    assert lab.outcome() is None
    assert verified_step(lab) == 3
    assert (lab.heartbeat()["state"], lab.heartbeat()["durable_step"]) == ("waiting", 3)


def test_a_trainer_that_does_not_stop_is_killed_and_the_published_checkpoint_stands(lab):
    lab.start_run("hold=3", "deaf=1")
    box = lab.holding(3, patch="attempt.DRAIN_SECONDS = attempt.UPLOAD_RESERVE_SECONDS + 0.5")
    wait_for(lambda: lab.heartbeat()["durable_step"] == 2, "the checkpoint of step 2")
    box.send_signal(signal.SIGTERM)
    assert lab.ended(box) == SupervisorExit.INSTANCE_LEAVING
    assert verified_step(lab) == 2
    assert "is killed" in lab.log()


def test_sigterm_while_downloading_leaves_at_once(lab):
    lab.start_run()
    box = lab.boot(patch="attempt.prepare = lambda *_: attempt.threading.Event().wait()")
    wait_for(lambda: (lab.heartbeat() or {}).get("phase") == "downloading", "the download")
    box.send_signal(signal.SIGTERM)
    assert lab.ended(box) == SupervisorExit.INSTANCE_LEAVING
    assert lab.outcome() is None


@pytest.mark.parametrize(
    ("phase", "durable"), [("loading", None), ("evaluating_before", None), ("evaluating_after", 6)]
)
@pytest.mark.parametrize("asked", ["sigterm", "control"])
def test_a_stop_where_nothing_is_unsaved_ends_the_trainer_at_once(lab, phase, durable, asked):
    lab.start_run(f"hold={phase}")
    box = lab.boot()
    wait_for(lambda: (lab.heartbeat() or {}).get("phase") == phase, phase)
    if asked == "sigterm":
        box.send_signal(signal.SIGTERM)
    else:
        lab.stop_by_control()
    assert lab.ended(box) == (SupervisorExit.INSTANCE_LEAVING if asked == "sigterm" else SupervisorExit.RUN_ENDED)
    assert (lab.outcome() or {}).get("reason") == (None if asked == "sigterm" else "stopped")
    assert verified_step(lab) == durable


def test_a_stop_while_the_result_is_being_saved_lets_it_be_finished(lab):
    lab.start_run("hold=saving")
    box = lab.boot()
    wait_for(lambda: (lab.heartbeat() or {}).get("phase") == "saving", "saving")
    box.send_signal(signal.SIGTERM)
    assert lab.ended(box) == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "succeeded"


UPLOAD_WAITS = """
upload = attempt.ending.upload_results
def wait(*arguments):
    (arguments[2].root / "uploading").touch()
    while not (arguments[2].root / "go").exists():
        attempt.time.sleep(0.02)
    upload(*arguments)
attempt.ending.upload_results = wait
"""


def test_a_stop_while_the_result_is_being_uploaded_lets_it_be_finished(lab):
    lab.start_run()
    box = lab.boot(UPLOAD_WAITS)
    wait_for((lab.work.root / "uploading").exists, "the upload")
    box.send_signal(signal.SIGTERM)
    (lab.work.root / "go").touch()
    assert lab.ended(box) == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "succeeded"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spot/instance-action", '{"action": "terminate", "time": "2026-11-24T17:00:00Z"}'),
        ("autoscaling/target-lifecycle-state", "Terminated"),
    ],
)
def test_an_instance_that_is_taken_away_leaves_a_verified_checkpoint(lab, path, value):
    lab.start_run("hold=3")
    box = lab.holding(3)
    lab.imds.metadata[path] = value
    assert lab.ended(box) == SupervisorExit.INSTANCE_LEAVING
    assert lab.outcome() is None
    assert verified_step(lab) == 3


def test_a_stop_request_ends_the_run_with_a_checkpoint(lab):
    lab.start_run("hold=3")
    box = lab.holding(3)
    lab.stop_by_control()
    assert lab.ended(box) == SupervisorExit.RUN_ENDED
    outcome = lab.outcome()
    assert (outcome["reason"], outcome["step"]) == ("stopped", 3)
    assert "the stack is deleted; the checkpoint of step 3 is durable" in outcome["detail"]
    assert verified_step(lab) == 3


BLIND_TO_CONTROL = """
start = attempt.watch.Poller.start
attempt.watch.Poller.start = lambda self: None if self._name == "run" else start(self)
"""


def test_a_scale_in_that_comes_with_a_stop_request_ends_the_run(lab):
    lab.start_run("hold=3")
    box = lab.holding(3, BLIND_TO_CONTROL)  # only the last look before leaving can see the request
    lab.stop_by_control()
    box.send_signal(signal.SIGTERM)
    assert lab.ended(box) == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "stopped"
    assert verified_step(lab) == 3


def test_a_stop_request_before_the_instance_began_claims_nothing(lab):
    lab.start_run()
    lab.stop_by_control()
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], lab.outcome()["attempts"]) == ("stopped", 0)
    assert not lab.store.list(lab.keys.prefix + "attempts/")


UPLOAD_FAILS = """
def refuse(*_):
    raise OSError('S3 takes no adapter')
attempt.ending.upload_results = refuse
"""


def test_a_result_that_cannot_be_uploaded_is_no_success(lab):
    lab.start_run(max_attempts=2)
    assert lab.ended(lab.boot(UPLOAD_FAILS)) not in set(SupervisorExit), "another box may do better"
    assert lab.outcome() is None
    assert lab.ended(lab.boot(UPLOAD_FAILS)) == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "failed"
    assert "could not be uploaded (S3 takes no adapter)" in lab.outcome()["detail"]


def test_a_rebalance_recommendation_saves_a_checkpoint_and_training_goes_on(lab):
    lab.start_run("hold=3")
    box = lab.holding(3)
    assert lab.heartbeat()["durable_step"] in (None, 2)
    lab.imds.metadata["events/recommendations/rebalance"] = '{"noticeTime": "2026-01-01T00:00:00Z"}'
    wait_for(lambda: lab.heartbeat()["durable_step"] == 3, "the checkpoint of step 3")
    assert box.poll() is None
    lab.stop_by_control()
    assert lab.ended(box) == SupervisorExit.RUN_ENDED


def test_a_deadline_that_has_passed_ends_the_run_at_once(lab):
    lab.start_run(deadline=datetime.now(UTC).isoformat())
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "expired"
    assert not lab.store.list(lab.keys.prefix + "attempts/")


def test_a_deadline_during_training_leaves_a_verified_checkpoint(lab):
    margin = timedelta(seconds=DEADLINE_MARGIN_SECONDS + 6)
    lab.start_run("hold=3", deadline=(datetime.now(UTC) + margin).isoformat())
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "expired"
    assert verified_step(lab) == 3


def test_a_deadline_brought_forward_while_it_trains_is_obeyed(lab):
    lab.start_run("hold=3")
    box = lab.holding(3)
    lab.store.put_json(lab.keys.control, {"limits": {"deadline": datetime.now(UTC).isoformat()}})
    assert lab.ended(box) == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "expired"
    assert verified_step(lab) == 3


def test_a_deadline_put_off_before_this_instance_began_is_obeyed(lab):
    lab.start_run(deadline=datetime.now(UTC).isoformat())
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    lab.store.put_json(lab.keys.control, {"limits": {"deadline": later}})
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "succeeded"


def test_a_run_that_has_ended_is_left_alone(lab):
    lab.start_run()
    lab.store.put_json(lab.keys.outcome, {"reason": "stopped"})
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome() == {"reason": "stopped"}
    assert not lab.store.list(lab.keys.prefix + "attempts/")


def test_an_attempt_that_sees_a_newer_claim_stops_and_writes_nothing_more(lab):
    lab.start_run("hold=3")
    box = lab.holding(3)
    wait_for(lambda: lab.heartbeat()["durable_step"] == 2, "the checkpoint of step 2")
    lab.store.put_json(lab.keys.attempt(2) + "claim.json", {})
    assert lab.ended(box) == SupervisorExit.INSTANCE_LEAVING
    assert lab.outcome() is None
    assert lab.heartbeat()["state"] == "running", "the newer attempt's heartbeat is not overwritten"
    assert [item.step for item in published(lab.store, lab.keys)] == [2]


# --- a newest checkpoint that is damaged ------------------------------------------------------------------------------
def _lose_manifest(lab, prefix):
    lab.store.delete([prefix + MANIFEST_NAME])


@pytest.mark.parametrize("damage", [flip, _lose_manifest])  # every other kind: test_restore
def test_a_newest_checkpoint_that_does_not_verify_gives_way_to_the_one_before(lab, damage):
    lab.start_run("hold=3")
    box = lab.holding(3)
    wait_for(lambda: lab.heartbeat()["durable_step"] == 2, "the checkpoint of step 2")
    box.send_signal(signal.SIGTERM)
    lab.ended(box)
    damage(lab, lab.keys.checkpoint(3, 1))
    lab.start_run()
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], lab.outcome()["resumed_from_step"]) == ("succeeded", 2)
    assert "Checkpoint of step 3, attempt 1 is refused" in lab.log(2)


def test_missing_data_fails_the_run_with_the_command_to_type(lab):
    lab.training.delete(["data/train.jsonl"])
    lab.start_run()
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "failed"
    assert lab.outcome()["detail"].endswith(f"aws s3 sync ./data {lab.data_uri}")


def test_a_bucket_that_does_not_exist_fails_the_run(lab):
    lab.start_run(data_uri="s3://no-such-bucket-here/data/")
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert "NoSuchBucket" in lab.outcome()["detail"]


def test_a_missing_base_model_fails_the_run(lab):
    uri = f"s3://{lab.training.bucket}/models/none/"
    lab.start_run(settings={"model": {"base_model": uri}})
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert f"There is no base model at {uri}" in lab.outcome()["detail"]


def test_a_base_model_in_s3_is_downloaded(lab):
    lab.training.put("models/tiny/config.json", b"{}")
    lab.start_run(settings={"model": {"base_model": f"s3://{lab.training.bucket}/models/tiny/"}})
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "succeeded"
    assert (lab.work.model / "config.json").read_bytes() == b"{}"


def test_a_missing_gpu_fails_the_run_before_training(lab):
    lab.start_run(gpus=4096)
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert lab.outcome()["reason"] == "failed"
    assert "LLM_TRAINING__USE_CPU=true" in lab.outcome()["detail"]


def test_bad_input_fails_the_run_with_the_trainers_sentence(lab):
    lab.start_run("bad_input=train.jsonl, line 3: no completion")
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], lab.outcome()["detail"]) == ("failed", "train.jsonl, line 3: no completion")


def test_no_trainer_outlives_its_supervisor(lab):
    lab.start_run("hold=3")
    box = lab.holding(3)
    lab.store.put_json(lab.keys.attempt(2) + "claim.json", {})  # the one way to leave without waiting for it
    lab.ended(box)
    processes = os.popen("ps -eo args").read()  # noqa: S605
    assert str(lab.work.root) not in processes
