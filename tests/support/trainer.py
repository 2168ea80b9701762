"""A whole run of the real trainer, in this process, without a supervisor."""

import json

from tests.support.runs import run_json
from training_image.core.contract import WorkDir
from training_image.train.__main__ import main
from training_image.train.callbacks import RunCallback

STEPS = 8
SETTINGS = {
    "model": {"base_model": "s3://bucket/model/"},
    "data": {"eval_fraction": 0.1},
    "lora": {"r": 4, "lora_dropout": 0.2},
    "training": {
        "use_cpu": True,
        "max_steps": STEPS,
        "learning_rate": 0.02,
        "warmup_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_length": 128,
    },
    "evaluation": {"max_new_tokens": 4, "samples": 2},
}


def prepare(root, base, settings=SETTINGS):
    """A work directory as the supervisor leaves it: 18 of 20 examples are trained on, so that an epoch has 5 steps, the
    last one of half the size, and 8 steps of 4 examples go into the second one."""
    work = WorkDir(root)
    work.data.mkdir(parents=True)
    lines = [json.dumps({"prompt": f"Say {n}", "completion": "abcdefgh"[: n % 7 + 1]}) + "\n" for n in range(20)]
    (work.data / "train.jsonl").write_text("".join(lines))
    work.model.symlink_to(base)
    work.run.write_text(json.dumps(run_json(run_id="demo-main-1", run_name="demo", settings=settings)))
    return work


def run(work):
    return main(["--work-dir", str(work.root)])


def steps(work):
    return [json.loads(line) for line in (work.metrics / "steps.jsonl").read_text().splitlines()]


def stop_at(step, work, monkeypatch):
    original = RunCallback.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step - 1:
            work.stop.touch()
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_begin", on_step_begin)
