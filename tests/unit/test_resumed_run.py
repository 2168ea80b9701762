"""A run that is stopped and then continued by another run: real supervisor, real trainer, S3 on loopback."""

import sys

import pytest

from tests.support import tiny_model
from tests.support.box import MODELS
from training_image.core.contract import RunKeys, SupervisorExit
from training_image.core.store import Store

STEPS = 6
HOLDING = """
import sys, time
from training_image.train.__main__ import main
from training_image.train.callbacks import RunCallback
begin = RunCallback.on_step_begin
def hold(self, args, state, control, **kwargs):
    while state.global_step == 3 and not self._work.stop.exists():
        time.sleep(0.02)
    begin(self, args, state, control, **kwargs)
RunCallback.on_step_begin = hold
sys.exit(main())
"""
"""The trainer, which waits in step 4 until it is told to stop."""
SETTINGS = {
    "model": {"base_model": f"s3://{MODELS}/real/"},
    "data": {"eval_fraction": 0.2},
    "lora": {"r": 4, "lora_dropout": 0.2},
    "training": {
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_length": 64,
    },
    "evaluation": {"max_new_tokens": 2},
}


@pytest.fixture
def start(lab, tmp_path):
    """Starts a run of the real trainer, the same each time, under a name of its own."""
    tiny_model.save_model(tmp_path / "model")
    models = Store(lab.client, MODELS)
    for path in (tmp_path / "model").iterdir():
        models.put(f"real/{path.name}", path.read_bytes())
    rows = "".join(f'{{"prompt": "Say {n}", "completion": "{"abcdefgh"[: n % 7 + 1]}"}}\n' for n in range(20))
    lab.training.put("data/train.jsonl", rows.encode())

    def start(name, **changes):
        lab.keys = RunKeys(name)
        lab.start_run(settings=SETTINGS, run_name="run", **{"training_command": None, **changes})

    return start


def test_the_adapter_is_that_of_the_run_that_was_never_stopped(lab, start):
    start("whole")
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    whole, before = lab.outcome(), lab.store.read_json(lab.keys.metrics + "eval_before.json")
    assert whole["reason"] == "succeeded"

    start("stopped", training_command=[sys.executable, "-c", HOLDING, "--work-dir", str(lab.work.root)])
    box = lab.holding(3)
    lab.stop_by_control()
    assert lab.ended(box) == SupervisorExit.RUN_ENDED
    assert (lab.outcome()["reason"], lab.outcome()["step"]) == ("stopped", 4)

    start("continued", resume="stopped")
    assert lab.run_box() == SupervisorExit.RUN_ENDED
    outcome = lab.outcome()
    assert (outcome["reason"], outcome["resumed_from_step"]) == ("succeeded", 4)
    assert outcome["adapter_sha256"] == whole["adapter_sha256"]
    assert lab.logged_steps() == list(range(1, STEPS + 1))
    assert lab.store.read_json(lab.keys.metrics + "eval_before.json") == before
