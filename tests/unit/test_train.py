"""The real trainer on a base model of a few kilobytes: whole runs, stopped runs, and runs that cannot start."""

import hashlib
import json
import shutil

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import tiny_model
from tests.support.trainer import SETTINGS, STEPS, prepare, run, steps, stop_at
from training_image.config.run_settings import RunSettings
from training_image.core.contract import COMPLETE_MARKER, TrainerExit
from training_image.data.split import load
from training_image.train import evaluation, sft
from training_image.train.callbacks import MAX_WAITING, RunCallback, save_is_due
from training_image.train.model import dtype_for, load_for_evaluation, supervised_nll


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model.save_model(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base):
    """One whole run that nobody interrupts."""
    work = prepare(tmp_path_factory.mktemp("whole"), base)
    assert run(work) == TrainerExit.DONE
    return work


def test_a_whole_run_leaves_adapter_metrics_and_marker(finished):
    final = json.loads(finished.final.read_text())
    adapter = (finished.adapter / "adapter_model.safetensors").read_bytes()
    assert final["adapter_sha256"] == hashlib.sha256(adapter).hexdigest()
    assert (final["step"], final["total_steps"]) == (STEPS, STEPS)
    assert (final["train_examples"], final["eval_examples"]) == (18, 2)
    assert final["eval_after"]["loss"] < final["eval_before"]["loss"]
    assert final["eval_after"] == json.loads((finished.metrics / "eval_after.json").read_text())
    assert len(final["eval_after"]["samples"]) == 2
    assert [line["step"] for line in steps(finished)] == list(range(1, STEPS + 1))
    assert all(line["tokens_per_second"] > 0 for line in steps(finished))
    assert json.loads(finished.status.read_text())["phase"] == "saving"
    assert (finished.checkpoints / f"checkpoint-{STEPS}" / COMPLETE_MARKER).exists()


def test_the_adapter_names_no_path_of_the_instance(finished):
    config = json.loads((finished.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://bucket/model/"
    card = (finished.adapter / "README.md").read_text()
    assert "demo-main-1" in card
    assert str(finished.root) not in card


def test_the_adapter_loaded_afresh_gives_the_same_evaluation(finished):
    settings = RunSettings.load(SETTINGS)
    model, tokenizer = load_for_evaluation(finished.model, finished.adapter, settings)
    held_out = load(finished.data, settings.data).held_out
    again = evaluation.evaluate(model, tokenizer, held_out, settings)
    assert again.as_json() == json.loads((finished.metrics / "eval_after.json").read_text())


@pytest.mark.parametrize("step", [3, 5, STEPS])  # in the warm-up, at an epoch's end, at the end within an epoch
def test_a_stopped_run_resumes_to_the_same_adapter_bit_for_bit(step, tmp_path, base, finished, monkeypatch):
    work = prepare(tmp_path, base)
    with monkeypatch.context() as patched:
        stop_at(step, work, patched)
        assert run(work) == TrainerExit.STOPPED
    checkpoint = work.checkpoints / f"checkpoint-{step}"
    assert (checkpoint / COMPLETE_MARKER).exists()
    assert not work.final.exists()
    before = (work.metrics / "eval_before.json").read_bytes()
    first_attempt = steps(work)
    work.stop.unlink()
    shutil.move(checkpoint, work.resume)
    (work.metrics / "steps.jsonl").unlink()  # another instance: what the lost one logged is where its checkpoint is

    assert run(work) == TrainerExit.DONE
    final, whole = (json.loads(item.final.read_text()) for item in (work, finished))
    assert final["adapter_sha256"] == whole["adapter_sha256"]
    assert [(line["step"], line["loss"]) for line in steps(work)] == [
        (line["step"], line["loss"]) for line in steps(finished)
    ]
    assert (work.metrics / "eval_before.json").read_bytes() == before
    # Training anew from step 0 would give the same adapter too: the first attempt's own lines must have stayed.
    assert steps(work)[:step] == first_attempt


def test_a_checkpoint_asked_for_is_saved_and_changes_nothing(tmp_path, base, finished, monkeypatch):
    work = prepare(tmp_path, base)
    original = RunCallback.on_step_begin

    def ask(self, args, state, control, **kwargs):
        if state.global_step == 2:
            work.save.touch()
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunCallback, "on_step_begin", ask)
    assert run(work) == TrainerExit.DONE
    assert (work.checkpoints / "checkpoint-3" / COMPLETE_MARKER).exists()
    assert not work.save.exists()
    final, whole = (json.loads(item.final.read_text()) for item in (work, finished))
    assert final["adapter_sha256"] == whole["adapter_sha256"]


def from_adapter(root, base, adapter, **lora):
    model = {**SETTINGS["model"], "adapter": "s3://bucket/adapter/"}
    work = prepare(root, base, {**SETTINGS, "model": model, "lora": {**SETTINGS["lora"], **lora}})
    shutil.copytree(adapter, work.initial_adapter)
    return work


def test_a_run_from_an_adapter_begins_where_that_one_ended(tmp_path, base, finished):
    work = from_adapter(tmp_path, base, finished.adapter)
    assert run(work) == TrainerExit.DONE
    final, first = (json.loads(item.final.read_text()) for item in (work, finished))
    assert final["eval_before"] == first["eval_after"]
    assert final["adapter_sha256"] != first["adapter_sha256"]
    assert steps(work)[0]["learning_rate"] == steps(finished)[0]["learning_rate"], "the optimizer starts afresh"


def test_an_adapter_of_other_modules_is_a_sentence(tmp_path, base, finished):
    work = from_adapter(tmp_path, base, finished.adapter, target_modules=["q_proj"])
    assert run(work) == TrainerExit.BAD_INPUT
    assert "adapts other modules than LLM_LORA__TARGET_MODULES=['q_proj'] does: set it to [" in work.error.read_text()


def test_a_stop_during_the_first_evaluation_ends_it(tmp_path, base):
    work = prepare(tmp_path, base)
    work.stop.touch()
    assert run(work) == TrainerExit.STOPPED
    assert not work.checkpoints.exists()


def test_bad_input_is_a_sentence(tmp_path, base):
    work = prepare(tmp_path / "data", base)
    (work.data / "train.jsonl").write_text('{"prompt": "a"}\n')
    assert run(work) == TrainerExit.BAD_INPUT
    assert "train.jsonl, line 1" in work.error.read_text()

    work = prepare(tmp_path / "model", tmp_path)
    assert run(work) == TrainerExit.BAD_INPUT
    assert "s3://bucket/model/ holds no config.json" in work.error.read_text()

    work = prepare(tmp_path / "setting", base, {**SETTINGS, "training": {"lr": 1}})
    assert run(work) == TrainerExit.BAD_INPUT
    assert "LLM_TRAINING__LR" in work.error.read_text()

    work = prepare(tmp_path / "target", base, {**SETTINGS, "lora": {"target_modules": ["nothing"]}})
    assert run(work) == TrainerExit.BAD_INPUT
    assert "LLM_LORA__TARGET_MODULES" in work.error.read_text()


def test_a_base_model_that_is_not_on_the_hub_is_a_sentence(tmp_path, base, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no network in a unit test
    work = prepare(tmp_path, base, {**SETTINGS, "model": {"base_model": "nobody/no-such-model"}})
    assert run(work) == TrainerExit.BAD_INPUT
    assert "Base model nobody/no-such-model could not be loaded" in work.error.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the missing GPU is what is tested")
def test_a_missing_gpu_ends_the_run(tmp_path, base):
    work = prepare(tmp_path, base, {**SETTINGS, "training": {**SETTINGS["training"], "use_cpu": False}})
    assert run(work) == TrainerExit.BAD_INPUT
    assert "LLM_TRAINING__USE_CPU=true" in work.error.read_text()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("[enforce] can't allocate memory"),
    ],
)
def test_out_of_memory_has_its_own_exit_code(error, tmp_path, base, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(sft, "supervised_nll", fail)
    work = prepare(tmp_path, base)
    assert run(work) == TrainerExit.OUT_OF_MEMORY
    assert "LLM_TRAINING__PER_DEVICE_TRAIN_BATCH_SIZE" in work.error.read_text()


def test_any_other_error_is_a_crash(tmp_path, base, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(sft, "supervised_nll", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(prepare(tmp_path, base))


def test_the_loss_at_supervised_positions_is_the_models_own(base):
    model, _ = load_for_evaluation(base, None, RunSettings.load(SETTINGS))
    torch.manual_seed(1)
    input_ids = torch.randint(0, 200, (3, 12))
    labels = torch.where(torch.rand(3, 12) < 0.4, input_ids, -100)
    labels[1, 7:] = -100
    labels[:, 0] = -100
    with torch.no_grad():
        expected = model(input_ids=input_ids, labels=labels).loss
        actual = supervised_nll(model, input_ids, labels) / (labels != -100).sum()
    torch.testing.assert_close(actual, expected)


def test_the_batch_size_does_not_change_an_evaluation(base):
    conversations = [
        [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": "y" * (n % 3 + 1)}] for n in range(1, 8)
    ]
    results = []
    for size in (1, 7):
        values = {**SETTINGS, "training": {**SETTINGS["training"], "per_device_eval_batch_size": size}}
        settings = RunSettings.load(values)
        model, tokenizer = load_for_evaluation(base, None, settings)
        results.append(evaluation.evaluate(model, tokenizer, conversations, settings))
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[0].samples == results[1].samples


def test_an_exact_match_is_the_stripped_answer(base, monkeypatch):
    answers = ["yes", "yes.", "no"]
    monkeypatch.setattr(evaluation, "generate_answers", lambda *args: answers)
    conversations = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": " yes\n"}]] * 3
    settings = RunSettings.load(SETTINGS)
    model, tokenizer = load_for_evaluation(base, None, settings)
    assert evaluation.evaluate(model, tokenizer, conversations, settings).exact_match == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("since_save", "step", "save", "due"),
    [
        (20, 1, None, False),  # before the first save: at half a minute
        (29.5, 1, None, False),
        (30, 1, None, True),
        (40, 1, 1.0, False),  # one second's save may come every 50 s
        (49.5, 1, 1.0, False),
        (50, 1, 1.0, True),
        (30, 1, 0.01, True),  # never more often than every 30 s
        (40, 280, 1.0, True),  # another step would pass the 300 s
        (280, 10, 60.0, False),  # never less often than every 300 s, whatever a save takes
        (295, 10, 60.0, True),
    ],
)
def test_checkpoint_cadence(since_save, step, save, due):
    assert save_is_due(since_save, step, save, uploading=False) is due


@given(step=st.floats(1, 290), save=st.floats(0.01, 60), upload=st.floats(0, 900))
@example(step=7.5, save=31.85781188517705, upload=0.0)  # sums that are 300 and a rounding error
def test_a_cadence_keeps_to_both_bounds_whatever_steps_saves_and_uploads_take(step, save, upload):
    """An hour, step by step: what a save takes is at most 2 % of what passes before it, unless five minutes would."""
    now, saved, uploaded, last, gaps = 0.0, 0.0, 0.0, None, []
    while now < 3600:
        now += step
        if save_is_due(now - saved, step, last, uploading=now < uploaded):
            gaps.append(now - saved)
            now, last = now + save, save
            saved, uploaded = now, now + upload
    rounding = 1e-6
    assert max(gaps) <= 300 + rounding
    assert all(gap >= 30 - rounding or gap + step > 300 - rounding for gap in gaps)
    assert all(gap >= max(save / 0.02, upload) - rounding or gap + step > 300 - rounding for gap in gaps[1:])


def test_while_the_last_checkpoint_is_uploaded_only_the_maximum_counts():
    assert not save_is_due(280, 10, 0.1, uploading=True)
    assert save_is_due(295, 10, 0.1, uploading=True)


@pytest.mark.parametrize("waiting", range(MAX_WAITING + 1))
def test_with_too_many_checkpoints_on_the_disk_none_is_added(waiting, tmp_path, base, finished):
    work = prepare(tmp_path, base, {**SETTINGS, "training": {**SETTINGS["training"], "save_steps": 3}})
    for number in range(waiting):
        left = work.checkpoints / f"checkpoint-{100 + number}"
        left.mkdir(parents=True)
        (left / COMPLETE_MARKER).touch()
    assert run(work) == TrainerExit.DONE
    saved = {step for step in (3, 6, STEPS) if (work.checkpoints / f"checkpoint-{step}" / COMPLETE_MARKER).exists()}
    # The last step is saved whatever waits.
    assert saved == [{3, 6, STEPS}, {3, STEPS}, {STEPS}][waiting]


def test_weights_on_a_cpu_are_float32_unless_told():
    cpu = torch.device("cpu")
    assert dtype_for("auto", cpu) is torch.float32
    assert dtype_for("bfloat16", cpu) is torch.bfloat16
