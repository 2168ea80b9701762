"""The supervisor of a run that begins with what another run has left: its checkpoint, or its adapter."""

import pytest

from tests.support.box import MODELS, SETTINGS, flip, wait_for
from training_image.core.contract import RunKeys, SupervisorExit
from training_image.storage.checkpoints import published


# --- a run that continues another -------------------------------------------------------------------------------------
def next_run(lab, *trainer, **changes):
    """The same lab with a new run that continues its last one."""
    before = lab.keys
    lab.keys = RunKeys(before.run_id + "x")
    lab.start_run(*trainer, resume=before.run_id, **changes)
    return before


def stopped_at_3(lab):
    """A run with checkpoints of steps 2 and 3."""
    lab.start_run("hold=3")
    box = lab.holding(3)
    wait_for(lambda: lab.heartbeat()["durable_step"] == 2, "the checkpoint of step 2")
    lab.stop_by_control()
    lab.ended(box)


def test_a_resumed_run_goes_on_from_its_predecessors_newest_checkpoint(lab):
    stopped_at_3(lab)
    outcome = lab.outcome()
    before = next_run(lab, "crash=5")
    assert lab.run_box() not in set(SupervisorExit)
    assert "starting at step 3" in lab.log()
    lab.start_run(resume=before.run_id)
    assert lab.run_box() == SupervisorExit.RUN_ENDED, "its own checkpoint comes first"
    assert "starting at step 4" in lab.log(2)
    assert (lab.outcome()["reason"], lab.outcome()["resumed_from_step"]) == ("succeeded", 4)
    assert lab.logged_steps() == [1, 2, 3, 4, 5, 6]
    assert lab.store.read_json(lab.keys.metrics + "eval_before.json")["first_step"] == 0, "before the whole training"
    assert lab.store.read_json(before.outcome) == outcome
    assert [item.step for item in published(lab.store, before)][-1] == 3, "retention is each run's own"


def test_a_resumed_run_falls_back_like_any_other_and_passes_by_a_run_that_published_nothing(lab):
    stopped_at_3(lab)
    before = next_run(lab)  # got no instance
    next_run(lab)
    flip(lab, RunKeys(before.run_id).checkpoint(3, 1))
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], lab.outcome()["resumed_from_step"]) == ("succeeded", 2)
    assert "refused" in lab.log()


def test_a_resumed_run_without_any_checkpoint_begins_at_the_beginning(lab):
    lab.start_run()
    next_run(lab)
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], lab.outcome()["resumed_from_step"]) == ("succeeded", None)


def test_a_base_models_commit_is_taken_over(lab):
    lab.store.put_json(lab.keys.base_model, {"sha": "abc"})
    lab.start_run()
    next_run(lab)
    lab.run_box()
    assert lab.store.read_json(lab.keys.base_model) == {"sha": "abc"}


# --- a run that trains on from an adapter -----------------------------------------------------------------------------
BASE = f"s3://{MODELS}/tiny/"


def train_on(lab, config=None, adapter="run-12345678-1"):
    config = {"base_model_name_or_path": BASE, "r": 8, "lora_alpha": 16, **(config or {})}
    keys = RunKeys("run-12345678-1")
    lab.store.put_json(keys.adapter + "adapter_config.json", config)
    lab.store.put(keys.adapter + "adapter_model.safetensors", b"weights")
    model = {"base_model": BASE, "adapter": adapter}
    lab.start_run(settings={**SETTINGS, "model": model, "lora": {"r": 8, "lora_alpha": 16}})
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    return lab.outcome()


def test_an_adapter_is_fetched_by_its_runs_id_or_by_its_address(lab):
    assert train_on(lab)["reason"] == "succeeded"
    assert (lab.work.initial_adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    lab.keys = RunKeys(lab.keys.run_id + "x")
    assert train_on(lab, adapter=f"s3://{lab.store.bucket}/runs/run-12345678-1/adapter/")["reason"] == "succeeded"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"base_model_name_or_path": "other/model"}, "set LLM_MODEL__BASE_MODEL=other/model"),
        ({"r": 4, "lora_alpha": 4}, "set LLM_LORA__R=4 LLM_LORA__LORA_ALPHA=4"),
        ({"use_dora": True}, "is no plain LoRA adapter (use_dora=True)"),
    ],
)
def test_an_adapter_that_does_not_fit_fails_the_run_with_what_to_set(lab, config, sentence):
    outcome = train_on(lab, config)
    assert outcome["reason"] == "failed"
    assert sentence in outcome["detail"]


def test_an_adapter_that_is_not_there_fails_the_run(lab):
    uri = f"s3://{lab.store.bucket}/runs/none/adapter/"
    outcome = train_on(lab, adapter=uri)
    assert outcome["reason"] == "failed"
    assert f"no adapter_config.json and adapter_model.safetensors at {uri}" in outcome["detail"]
