"""The run controller's edge, with S3 and Auto Scaling in memory: what is written, in what order, what is repeated."""

import io
import json
from datetime import UTC, datetime, timedelta

import edge
import index
import pytest
from botocore.exceptions import ClientError

from tests.support.controller import SPEC, Fakes, refused, serve
from training_image.core import contract
from training_image.core.errors import UserError
from training_image.core.records import Run, in_force, read_control
from training_image.core.store import Store


@pytest.fixture
def aws(monkeypatch):
    fakes = Fakes()
    monkeypatch.setattr(edge.boto3, "client", fakes.client)
    monkeypatch.setattr(edge, "POLL_SECONDS", 0)
    return fakes


def test_create_freezes_the_run_arms_killer_3_and_asks_for_one_instance(aws):
    run_id = serve()
    assert run_id == "run-1a2b3c4d-1"
    run = aws.s3.json(f"runs/{run_id}/run.json")
    assert run["image"] == "1.dkr.ecr.us-west-2.amazonaws.com/lab/images@sha256:abc"
    assert run["settings_sha256"] == contract.settings_digest(SPEC["settings"])
    deadline = datetime.fromisoformat(run["deadline"])
    assert deadline - datetime.fromisoformat(run["created_at"]) == timedelta(hours=2)
    (action,) = aws.autoscaling.actions
    assert action["StartTime"] - deadline == timedelta(minutes=10)
    assert (action["MinSize"], action["MaxSize"], action["DesiredCapacity"]) == (0, 0, 0)
    assert {key: aws.autoscaling.group[key] for key in ("MinSize", "MaxSize", "DesiredCapacity")} == {
        "MinSize": 0,
        "MaxSize": 1,
        "DesiredCapacity": 1,
    }
    assert aws.autoscaling.suspended == ["AZRebalance"]


def test_a_second_delivery_is_the_same_run(aws):
    assert serve() == serve()
    assert [key for key in aws.s3.objects if key.endswith("run.json")] == ["runs/run-1a2b3c4d-1/run.json"]


def test_a_second_delivery_finishes_what_a_failed_first_began(aws):
    aws.autoscaling.fails = True
    with pytest.raises(ClientError):
        serve()
    aws.autoscaling.fails = False
    assert serve() == "run-1a2b3c4d-1"
    assert aws.autoscaling.group["DesiredCapacity"] == 1
    assert "runs/run-1a2b3c4d-1/outcome.json" not in aws.s3.objects


def test_a_run_that_lost_its_capacity_is_closed_and_the_next_one_starts(aws):
    serve()
    aws.autoscaling.group.update(DesiredCapacity=0)
    other = {**SPEC, "settings": {"training": {"seed": 2}}}
    assert serve("Update", other, "request-2", old=SPEC) == "run-1a2b3c4d-2"
    outcome = aws.s3.json("runs/run-1a2b3c4d-1/outcome.json")
    assert (outcome["reason"], outcome["by"]) == ("failed", "controller")


def test_overdue_without_an_outcome_means_expired(aws):
    serve()
    run = aws.s3.json("runs/run-1a2b3c4d-1/run.json")
    run["deadline"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    aws.s3.objects["runs/run-1a2b3c4d-1/run.json"] = json.dumps(run).encode()
    aws.autoscaling.group.update(DesiredCapacity=0)
    serve("Update", {**SPEC, "settings": {}}, "request-2", old=SPEC)
    assert aws.s3.json("runs/run-1a2b3c4d-1/outcome.json")["reason"] == "expired"


def test_the_next_run_takes_the_place_of_an_instance_kept_for_review(aws):
    serve()
    aws.s3.objects["runs/run-1a2b3c4d-1/outcome.json"] = b'{"reason": "succeeded"}'
    aws.autoscaling.group["Instances"] = [{"InstanceId": "i-kept"}]
    serve("Update", {**SPEC, "settings": {}}, "request-2", old=SPEC)
    assert aws.autoscaling.group["Instances"] == []
    assert aws.autoscaling.group["DesiredCapacity"] == 1


def test_a_second_delivery_leaves_the_runs_own_instance_alone(aws):
    serve()
    aws.autoscaling.group["Instances"] = [{"InstanceId": "i-own"}]
    serve()
    assert aws.autoscaling.group["Instances"] == [{"InstanceId": "i-own"}]


def test_an_active_run_refuses_a_change_and_is_left_alone(aws):
    serve()
    before = aws.s3.runs()
    with pytest.raises(edge.Refused, match="is active and goes on unharmed"):
        serve("Update", {**SPEC, "settings": {}}, "request-2", old=SPEC)
    assert aws.s3.runs() == before
    assert aws.autoscaling.group["DesiredCapacity"] == 1


def test_new_limits_reach_the_run_and_killer_3_and_nothing_else(aws):
    run_id = serve()
    frozen = aws.s3.objects[f"runs/{run_id}/run.json"]
    longer = {**SPEC, "max_runtime_hours": 5, "auto_shutdown": False}
    assert serve("Update", longer, "request-2", old=SPEC) == run_id
    limits = aws.s3.json(f"runs/{run_id}/control.json")["limits"]
    deadline = datetime.fromisoformat(limits["deadline"])
    assert deadline - datetime.fromisoformat(json.loads(frozen)["created_at"]) == timedelta(hours=5)
    assert limits["auto_shutdown"] is False
    assert aws.autoscaling.actions[-1]["StartTime"] - deadline == timedelta(minutes=10)
    assert aws.s3.objects[f"runs/{run_id}/run.json"] == frozen
    assert aws.autoscaling.group["DesiredCapacity"] == 1
    held = in_force(Run.parse(frozen), read_control(Store(aws.s3, "out"), contract.RunKeys(run_id)))
    assert (held.deadline, held.auto_shutdown) == (deadline, False)
    # A stop that follows keeps them: the instance still needs its deadline.
    serve("Delete", longer, "request-3", remaining_ms=60_100)
    assert set(aws.s3.json(f"runs/{run_id}/control.json")) == {"limits", "schema", "stop"}


def test_a_deadline_moved_into_the_past_still_leaves_time_for_a_checkpoint(aws):
    run_id = serve()
    key = f"runs/{run_id}/run.json"
    old = aws.s3.json(key)
    old["created_at"] = (datetime.now(UTC) - timedelta(hours=1.5)).isoformat()
    aws.s3.objects[key] = json.dumps(old).encode()
    serve("Update", {**SPEC, "max_runtime_hours": 1}, "request-2", old=SPEC)
    left = aws.autoscaling.actions[-1]["StartTime"] - datetime.now(UTC)
    assert timedelta(minutes=9) < left <= timedelta(minutes=10)


def test_delete_asks_waits_within_its_time_and_takes_the_capacity_away(aws):
    serve()
    aws.autoscaling.group["Instances"] = [{"InstanceId": "i-1"}]  # never answers
    serve("Delete", request_id="request-2", remaining_ms=60_100)
    assert aws.s3.json("runs/run-1a2b3c4d-1/control.json")["stop"]["reason"] == "stopped"
    assert aws.autoscaling.group["DesiredCapacity"] == 0
    assert aws.s3.json("runs/run-1a2b3c4d-1/outcome.json")["reason"] == "stopped"


def test_start_and_stop_are_mailed_once_each(aws):
    serve()
    serve()
    aws.autoscaling.group["Instances"] = []
    serve("Delete", request_id="request-2")
    serve("Delete", request_id="request-3")
    assert aws.mails == [
        "TrainingStack: run run-1a2b3c4d-1 has started",
        "TrainingStack: run run-1a2b3c4d-1 was stopped",
    ]


def test_a_topic_that_is_gone_fails_no_request(aws, monkeypatch):
    monkeypatch.setattr(aws, "publish", lambda **_: (_ for _ in ()).throw(refused("NotFound")))
    assert serve() == "run-1a2b3c4d-1"


def test_delete_keeps_the_boxs_own_outcome(aws):
    serve()
    said = {"reason": "succeeded", "by": "box"}
    aws.s3.objects["runs/run-1a2b3c4d-1/outcome.json"] = json.dumps(said).encode()
    serve("Delete", request_id="request-2")
    assert aws.s3.json("runs/run-1a2b3c4d-1/outcome.json") == said


OWN_IMAGE = {**SPEC, "image": f"1.dkr.ecr.us-west-2.amazonaws.com/{contract.repository_name('default')}:v1"}


def test_the_image_is_tagged_while_its_run_is_the_stacks_current_one(aws):
    serve(spec=OWN_IMAGE)
    serve(spec=OWN_IMAGE)
    assert aws.tags == ["v1", "run-run-1a2b3c4d-1"]
    aws.s3.objects["runs/run-1a2b3c4d-1/outcome.json"] = b"{}"
    serve("Update", {**OWN_IMAGE, "new_run": "again"}, request_id="request-2", old=OWN_IMAGE)
    assert aws.tags == ["v1", "run-run-1a2b3c4d-2"], "the next run's, then no longer the ended one's"
    serve("Delete", OWN_IMAGE, request_id="request-3")
    serve("Delete", OWN_IMAGE, request_id="request-3")
    assert aws.tags == ["v1"]


def test_an_image_that_cannot_be_tagged_fails_no_request_and_the_mail_says_so(aws, capsys):
    aws.ecr_fails = True
    serve(spec=OWN_IMAGE)
    assert aws.autoscaling.group["DesiredCapacity"] == 1
    assert "Its image got no tag run-run-1a2b3c4d-1" in aws.bodies[0]
    aws.tags.append("run-run-1a2b3c4d-1")
    serve("Delete", OWN_IMAGE, request_id="request-2")
    log = capsys.readouterr().out
    assert "the image of run run-1a2b3c4d-1 is not held" in log
    assert "the image of run run-1a2b3c4d-1 stays held" in log


def test_a_repository_of_others_is_left_alone(aws):
    serve()
    assert aws.tags == ["v1"]
    assert "Its image" not in aws.bodies[0]


# --- runs that begin with what another has left ----------------------------------------------------------------------
FIRST = "run-1a2b3c4d-1"
KEYS = contract.RunKeys(FIRST)


def resume(run_id=FIRST, said=None, **changes):
    return {**SPEC, "resume": {"run_id": run_id, "said": said or {}}, **changes}


@pytest.fixture
def expired(aws):
    """A first run that has expired."""
    serve()
    aws.s3.objects[KEYS.outcome] = b'{"reason": "expired"}'
    return aws


@pytest.mark.parametrize("reason", [reason for reason in contract.Reason if reason is not contract.Reason.SUCCEEDED])
def test_a_resumed_run_has_the_old_ones_settings_and_this_deploys_limits(expired, reason):
    expired.s3.objects[KEYS.outcome] = outcome = json.dumps({"reason": reason}).encode()
    frozen = expired.s3.json(KEYS.run)
    changed = {"settings": {"training": {"seed": 2}}, "data_uri": "s3://in/other/", "training_command": ["x"]}
    wanted = resume(**changed, image=SPEC["image"].replace("v1", "v2"), max_runtime_hours=7, max_attempts=9, gpus=4)
    run_id = serve("Update", wanted, "request-2", old=SPEC)
    assert run_id == "run-1a2b3c4d-2"
    run = expired.s3.json(contract.RunKeys(run_id).run)
    assert run["resume"] == FIRST
    for name in ("settings", "settings_sha256", "data_uri", "image", "training_command"):
        assert run[name] == frozen[name], name
    assert (run["max_attempts"], run["gpus"]) == (9, 4)
    assert datetime.fromisoformat(run["deadline"]) - datetime.fromisoformat(run["created_at"]) == timedelta(hours=7)
    assert expired.s3.objects[KEYS.outcome] == outcome


def test_a_run_on_the_cpu_is_resumed_on_the_cpu(expired):
    expired.s3.objects[KEYS.run] = json.dumps({**expired.s3.json(KEYS.run), "gpus": 0}).encode()
    assert expired.s3.json(contract.RunKeys(serve("Update", resume(), "request-2", old=SPEC)).run)["gpus"] == 0


def test_a_second_delivery_of_a_resume_is_the_same_run(expired):
    assert serve("Update", resume(), "request-2", old=SPEC) == serve("Update", resume(), "request-2", old=SPEC)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (resume("run-1a2b3c4d-7"), f"There is no run run-1a2b3c4d-7 in this lab. There are: {FIRST}."),
        (resume(said={"training": {"seed": 5}}), r"LLM_TRAINING__SEED=5 \(the run has 1\)"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_nothing_starts(expired, wanted, sentence):
    before = expired.s3.runs()
    with pytest.raises(edge.Refused, match=sentence):
        serve("Update", wanted, "request-2", old=SPEC)
    assert expired.s3.runs() == before


def test_a_run_that_succeeded_or_goes_on_elsewhere_is_not_resumed(expired):
    expired.s3.objects[KEYS.outcome] = b'{"reason": "succeeded"}'
    with pytest.raises(edge.Refused, match=f"LLM_MODEL__ADAPTER={FIRST}"):
        serve("Update", resume(), "request-2", old=SPEC)
    other = contract.RunKeys("run-ffffffff-1")
    expired.s3.objects[other.run] = expired.s3.objects[KEYS.run]
    with pytest.raises(edge.Refused, match=r"run-ffffffff-1 has not ended.*lab stop"):
        serve("Update", resume("run-ffffffff-1"), "request-2", old=SPEC)


def test_a_run_whose_image_is_gone_is_not_resumed(expired):
    gone = {**expired.s3.json(KEYS.run), "image": "1.dkr.ecr.us-west-2.amazonaws.com/lab/images@sha256:gone"}
    expired.s3.objects[KEYS.run] = json.dumps(gone).encode()
    with pytest.raises(edge.Refused, match="is no longer in the repository"):
        serve("Update", resume(), "request-2", old=SPEC)


def adapter_settings(adapter, **lora):
    model = {"base_model": "org/model", "adapter": adapter}
    return {**SPEC, "settings": {"model": model, "lora": {"r": 8, "lora_alpha": 16, **lora}}}


ADAPTER_CONFIG = {"base_model_name_or_path": "org/model", "r": 8, "lora_alpha": 16, "peft_type": "LORA"}


def test_an_adapter_is_looked_at_before_anything_costs_money(aws):
    aws.s3.objects[KEYS.adapter + "adapter_config.json"] = json.dumps(ADAPTER_CONFIG).encode()
    with pytest.raises(edge.Refused, match="there is no such run, or it has left no adapter"):
        serve(spec=adapter_settings("run-1a2b3c4d-9"))
    with pytest.raises(edge.Refused, match="set LLM_LORA__R=8"):
        serve(spec=adapter_settings(FIRST, r=16))
    assert aws.autoscaling.group["DesiredCapacity"] == 0
    serve(spec=adapter_settings(FIRST))
    assert aws.autoscaling.group["DesiredCapacity"] == 1


def test_limits_and_a_stop_written_at_the_same_time_both_hold(aws, monkeypatch):
    run_id = serve()
    keys, put = contract.RunKeys(run_id), aws.s3.put_object

    def overtaken(Bucket, Key, Body, **conditions):
        if Key != keys.control:
            return put(Bucket, Key, Body, **conditions)
        monkeypatch.setattr(aws.s3, "put_object", put)
        put(Bucket, Key, json.dumps({"stop": {"reason": "stopped"}}).encode())  # `lab stop` comes first
        put(Bucket, Key, Body, **conditions)

    monkeypatch.setattr(aws.s3, "put_object", overtaken)
    serve("Update", {**SPEC, "max_runtime_hours": 5}, "request-2", old=SPEC)
    assert set(aws.s3.json(keys.control)) == {"limits", "schema", "stop"}


class Context:
    @staticmethod
    def get_remaining_time_in_millis():
        return 900_000


@pytest.mark.parametrize(("kind", "status"), [("Create", "FAILED"), ("Update", "FAILED"), ("Delete", "SUCCESS")])
def test_it_answers_even_if_its_own_code_cannot_be_imported(kind, status, monkeypatch):
    import sys

    answers = []
    monkeypatch.setitem(sys.modules, "edge", None)  # import raises
    monkeypatch.setattr(
        index.urllib.request,
        "urlopen",
        lambda request, timeout: answers.append(json.loads(request.data)) or io.BytesIO(),
    )
    event = {"RequestType": kind, "StackId": "s", "RequestId": "r", "LogicalResourceId": "l"}
    index.handler({**event, "ResponseURL": "https://answer.invalid/"}, Context)
    assert [(answer["Status"], answer["PhysicalResourceId"]) for answer in answers] == [(status, "training-run")]


def test_an_email_that_is_refused_once_is_sent_all_the_same_and_once(aws):
    aws.refused_mails = 1
    run_id = serve()
    assert aws.mails == [f"TrainingStack: run {run_id} has started"]
    assert aws.s3.json(contract.RunKeys(run_id).event("started"))["sent"] == "sent"


def test_an_email_that_stays_refused_fails_no_request_and_is_left_to_be_sent(aws):
    aws.refused_mails = 2
    run_id = serve()
    assert aws.mails == []
    assert aws.s3.json(contract.RunKeys(run_id).event("started"))["sent"] == "failed"


@pytest.mark.parametrize("body", [b"{", b'{"schema": 99}', b'{"run_id": 1}'])
def test_a_delete_ends_the_instance_of_a_run_whose_record_cannot_be_understood(aws, body):
    run_id = serve()
    aws.autoscaling.group["Instances"] = [{"InstanceId": "i-1"}]
    aws.s3.objects[contract.RunKeys(run_id).run] = body
    serve("Delete", request_id="request-2")
    assert (aws.autoscaling.group["DesiredCapacity"], aws.autoscaling.group["Instances"]) == (0, [])


def test_a_deploy_over_a_run_whose_record_cannot_be_understood_says_so(aws):
    run_id = serve()
    aws.s3.objects[contract.RunKeys(run_id).run] = b'{"schema": 99}'
    with pytest.raises(UserError, match=r"run\.json has schema 99.*use a newer version"):
        serve("Update", {**SPEC, "max_attempts": 3}, "request-2", old=SPEC)
