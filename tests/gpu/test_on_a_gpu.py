"""The trainer on a real GPU: reduced precision, and a resumed run that equals the one nobody interrupted."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lab.chaos.sample import save_model
from tests.support.trainer import SETTINGS, prepare, run, steps, stop_at
from training_image.core.contract import COMPLETE_MARKER, TrainerExit

pytestmark = pytest.mark.gpu
STOPPED_AT = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough for the kernels that large models take (heads of 64, grouped queries), and made in a second."""
    folder = tmp_path_factory.mktemp("base")
    save_model(
        folder,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
    )
    return folder


def prepared(root, base, dtype, **training):
    training = {**SETTINGS["training"], "use_cpu": False, "max_length": 512, "learning_rate": 1e-3, **training}
    settings = {**SETTINGS, "model": {**SETTINGS["model"], "torch_dtype": dtype}, "training": training}
    work = prepare(root, base, settings)
    rows = [{"prompt": f"Say {n} " * (1 + 3 * n), "completion": "abcdefgh" * (1 + n)} for n in range(20)]
    (work.data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return work


def resumed(work, monkeypatch):
    """Run ``work``, stopped once and gone on with from its checkpoint, whose names are returned."""
    with monkeypatch.context() as patched:
        stop_at(STOPPED_AT, work, patched)
        assert run(work) == TrainerExit.STOPPED
    checkpoint = work.checkpoints / f"checkpoint-{STOPPED_AT}"
    names = {path.name for path in checkpoint.iterdir()}
    work.stop.unlink()
    shutil.move(checkpoint, work.resume)
    assert run(work) == TrainerExit.DONE
    return names


def losses(work):
    return [line["loss"] for line in steps(work)]


@pytest.fixture
def default_kernels():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("default_kernels")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_with_deterministic_kernels_a_resumed_run_is_the_same_bit_for_bit(dtype, tmp_path, base, monkeypatch):
    whole, work = (prepared(tmp_path / name, base, dtype, full_determinism=True) for name in ("whole", "stopped"))
    assert run(whole) == TrainerExit.DONE
    names = resumed(work, monkeypatch)
    assert COMPLETE_MARKER in names
    assert ("scaler.pt" in names) == (dtype == "float16")
    assert losses(work) == losses(whole)
    final, expected = (json.loads(item.final.read_text()) for item in (work, whole))
    assert final["adapter_sha256"] == expected["adapter_sha256"]
    assert final["eval_after"] == expected["eval_after"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2.5e-3), ("float16", 5e-4)])
def test_with_the_fastest_kernels_a_resumed_run_is_the_same_but_for_rounding(
    dtype, tolerance, tmp_path, base, monkeypatch
):
    """On an H100 up to 1e-3 and 2e-4, as between two runs that nobody interrupted; 3.5e-3 if dropout begins anew."""
    whole, work = (prepared(tmp_path / name, base, dtype) for name in ("whole", "stopped"))
    assert run(whole) == TrainerExit.DONE
    resumed(work, monkeypatch)
    assert losses(work) == pytest.approx(losses(whole), rel=0, abs=tolerance)


def test_the_adapter_is_float32_whatever_the_base_is(tmp_path, base):
    work = prepared(tmp_path, base, "bfloat16")
    assert run(work) == TrainerExit.DONE
    weights = load_file(work.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    final = json.loads(work.final.read_text())
    assert final["eval_after"]["loss"] < final["eval_before"]["loss"]
