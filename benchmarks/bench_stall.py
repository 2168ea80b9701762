"""How long checkpoints hold training up: part of ``make bench-checkpoint``. Best on a quiet machine.

The real trainer saves at its own cadence while the product's publisher uploads beside it to ``s3_on_disk``. The target
is 2 % of the training time. On the CPU the model is SmolLM2-135M; with ``--gpu`` (on a machine with one, with a Python
that has the image's packages) it has Llama-3-8B's shape and random weights, in bfloat16. Figures go to
``benchmarks/results/stall_<device>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks.runs import run_json  # noqa: E402
from benchmarks.s3_on_disk import S3, environment  # noqa: E402
from training_image.core.contract import RunKeys, TrainerExit, WorkDir  # noqa: E402

MAX_STALL = 0.02
ON_CPU = {"use_cpu": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_length": 128}
ON_GPU = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_length": 1024}
EXAMPLES = 200


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure how long checkpoints hold training up.")
    parser.add_argument("--train-seconds", type=float, default=200.0, help="of training (default: 200)")
    parser.add_argument("--gpu", action="store_true", help="an 8B model on this machine's GPU")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)  # this program as one of its own children
    options = parser.parse_args(arguments)
    if options.role:
        name, folder = options.role
        return ROLES[name](Path(folder))
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-stall-") as name:
        scratch = Path(name)
        (scratch / "s3").mkdir()
        with S3(scratch / "s3") as server:
            result = measure(server, scratch / "run", options.train_seconds, gpu=options.gpu)
    result |= {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "load_before_and_after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }
    path = Path(__file__).with_name("results") / f"stall_{'gpu' if options.gpu else 'cpu'}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def measure(server: S3, folder: Path, seconds: float, *, gpu: bool) -> dict[str, Any]:
    """The trainer trains for ``seconds``, then is stopped; the save of the stop is not one of the cadence's."""
    work = WorkDir(folder)
    work.data.mkdir(parents=True)
    rows = [{"prompt": f"{n}+{n}? " * (100 if gpu else 5), "completion": f"It is {2 * n}."} for n in range(EXAMPLES)]
    (work.data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": {"base_model": "s3://bucket/model/"},
        "lora": {"r": 16},
        "training": {"max_steps": 100_000, **(ON_GPU if gpu else ON_CPU)},
        "evaluation": {"max_new_tokens": 1, "samples": 0},
        "data": {"max_eval_examples": 1},
    }
    work.run.write_text(json.dumps(run_json(settings)))
    variables = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), **environment(server)}
    variables |= {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}

    def child(role: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--role", role, str(folder)], cwd=ROOT, env=variables)

    if gpu:
        if child("model").wait():
            raise SystemExit("the model could not be made")
    else:
        from lab.demo.base_model import ensure

        work.model.symlink_to(ensure(print))
    publisher, trainer = child("publisher"), child("trainer")
    while not (folder / "began").exists() and trainer.poll() is None:
        time.sleep(0.1)
    if trainer.poll() is None:
        time.sleep(seconds)
    work.stop.touch()
    trainer.wait()
    publisher.wait()
    if trainer.returncode != TrainerExit.STOPPED:
        raise SystemExit(f"the trainer ended with code {trainer.returncode}")
    seen = json.loads((folder / "seen.json").read_text())
    saves = seen["save_seconds"][:-1]
    trained = seen["last_save_began"] - seen["began"]
    result = {
        "device": seen["device"],
        "model": "Llama-3-8B's shape, bfloat16" if gpu else "SmolLM2-135M, float32",
        "lora": "r=16 on all linear layers, float32",
        "training_seconds": round(trained, 1),
        "save_seconds": [round(value, 3) for value in saves],
        "stall_share": round(sum(saves) / trained, 5),
        "target": MAX_STALL,
        "steps": seen["steps"],
        "step_seconds_median": round(statistics.median(seen["step_seconds"]), 3),
        "tokens_per_second_median": statistics.median(seen["tokens_per_second"]),
        "gpu_memory_peak_gigabytes": seen["gpu_memory_peak_gigabytes"],
        "published_bytes": sum(server.size(item) for item in server.objects),
    }
    print(f"stall: {100 * result['stall_share']:.2f} % by {len(saves)} checkpoints (target: below 2 %)", flush=True)
    return result


def model_role(folder: Path) -> None:
    """Random weights of Llama-3-8B's shape: 16 GB, made on the GPU, because a CPU takes minutes for them."""
    import torch

    from lab.chaos.sample import save_model

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        save_model(
            WorkDir(folder).model,
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
        )


def trainer_role(folder: Path) -> None:
    """The product's trainer, with a clock at each end of its steps and saves."""
    import torch

    from training_image.train.__main__ import main
    from training_image.train.callbacks import RunCallback

    times: dict[str, Any] = {"save_seconds": [], "step_seconds": [], "steps": 0}
    on_train_begin, on_step_begin = RunCallback.on_train_begin, RunCallback.on_step_begin
    on_step_end, on_save = RunCallback.on_step_end, RunCallback.on_save

    def train_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        times["began"] = time.monotonic()
        (folder / "began").touch()
        on_train_begin(self, *args, **kwargs)

    def step_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        times["step_began"] = time.monotonic()
        on_step_begin(self, *args, **kwargs)

    def step_end(self: Any, *args: Any, **kwargs: Any) -> None:
        times["last_save_began"] = time.monotonic()
        times["step_seconds"].append(times["last_save_began"] - times["step_began"])
        times["steps"] += 1
        on_step_end(self, *args, **kwargs)

    def save(self: Any, *args: Any, **kwargs: Any) -> None:
        on_save(self, *args, **kwargs)
        times["save_seconds"].append(time.monotonic() - times["last_save_began"])

    # Timed from outside, so that the product needs no hook for it; mypy rightly asks about assigned methods.
    RunCallback.on_train_begin, RunCallback.on_step_begin = train_begin, step_begin  # type: ignore[method-assign]
    RunCallback.on_step_end, RunCallback.on_save = step_end, save  # type: ignore[method-assign]
    work = WorkDir(folder)
    code = main(["--work-dir", str(folder)])
    lines = (work.metrics / "steps.jsonl").read_text().splitlines()
    times["tokens_per_second"] = [json.loads(line)["tokens_per_second"] for line in lines]
    on_gpu = torch.cuda.is_available()
    times["device"] = torch.cuda.get_device_name() if on_gpu else "cpu"
    times["gpu_memory_peak_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None
    (folder / "seen.json").write_text(json.dumps(times))
    sys.exit(code)


def publisher_role(folder: Path) -> None:
    """The product's publisher beside the trainer, until that has ended."""
    from training_image.core.store import Store, s3_client
    from training_image.storage.checkpoints import Resume
    from training_image.supervisor.publisher import Publisher

    work = WorkDir(folder)
    publisher = Publisher(
        Store(s3_client(), "bench"),
        RunKeys("bench"),
        work.checkpoints,
        attempt=1,
        settings_sha256="s",
        resumed=Resume(None, frozenset()),
    )
    publisher.start()
    while not (folder / "seen.json").exists() and not work.error.exists():
        time.sleep(0.2)
    publisher.finish(60)


ROLES = {"model": model_role, "trainer": trainer_role, "publisher": publisher_role}


if __name__ == "__main__":
    main()
