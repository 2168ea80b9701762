"""What checkpoints cost, and how soon one is safe: ``make bench-checkpoint``. Best on a quiet machine.

1. **Stall**: the real trainer on SmolLM2-135M on the CPU, saving at its own cadence while the product's publisher
   uploads beside it: the share of the training time that its checkpoints hold it up.
2. **Upload**: our publish against ``aws s3 cp --recursive`` of the same files, each a process of its own from start to
   end, by turns.
3. **Notice**: the real supervisor with a trainer that holds what an 8B model's adapter holds (r=16 on all linear
   layers, float32, Adam's two moments), behind a link of 100 MB/s: seconds from the metadata's notice to the manifest.

S3 is ``s3_on_disk``, no emulator: those take little more than 100 MB/s. Figures go to
``benchmarks/results/checkpoint.json`` with the machine's load, because a busy machine's figures are worth little.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from s3_on_disk import S3, environment, put_json

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("results") / "checkpoint.json"
MAX_STALL, MIN_UPLOAD_RATIO, MAX_NOTICE_SECONDS = 0.02, 1.0, 30.0
LINK_BYTES_PER_SECOND = 100e6
ADAPTER_8B = 41_943_040
"""Parameters of LoRA with r=16 on the seven linear layers of each of Llama-3-8B's 32 blocks."""
TOKENIZER_BYTES = 17_000_000
SETTINGS = {
    "model": {"base_model": "s3://bucket/model/"},
    "lora": {"r": 16},
    "training": {
        "use_cpu": True,
        "max_steps": 100_000,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_length": 128,
    },
    "evaluation": {"max_new_tokens": 1, "samples": 0},
    "data": {"max_eval_examples": 1},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure what checkpoints cost, and how soon one is safe.")
    parser.add_argument("--rounds", type=int, default=5, help="of uploads, at least 3 (default: 5)")
    parser.add_argument("--train-seconds", type=float, default=200.0, help="of training for the stall (default: 200)")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)  # this program as one of its own children
    options = parser.parse_args(arguments)
    if options.role:
        name, folder = options.role
        return ROLES[name](Path(folder))
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-") as name:
        scratch = Path(name)
        (scratch / "s3").mkdir()
        with S3(scratch / "s3") as server:
            result = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "notice": measure_notice(server, scratch / "notice"),
                "upload": measure_upload(server, scratch / "notice" / "template", max(3, options.rounds)),
                "stall": measure_stall(server, scratch / "stall", options.train_seconds),
                "cpus": os.cpu_count(),
                "load_before_and_after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
                "s3": "benchmarks/s3_on_disk.py on loopback: bodies to disk, checksums not looked at",
            }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


def child(role: str, folder: Path) -> list[str]:
    return [sys.executable, str(Path(__file__)), "--role", role, str(folder)]


def surroundings(server: S3) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(Path.home()), **environment(server)}


# --- 1. stall -----------------------------------------------------------------------------------------------------
def measure_stall(server: S3, folder: Path, seconds: float) -> dict[str, Any]:
    """The trainer trains for ``seconds``, then is stopped; the save of the stop is not one of the cadence's."""
    from lab.demo.base_model import ensure
    from training_image.contract import WorkDir

    work = WorkDir(folder)
    work.data.mkdir(parents=True)
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"{n} plus {n} is {2 * n}."} for n in range(200)]
    (work.data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    work.model.symlink_to(ensure(print))
    work.run.write_text(json.dumps({"run_id": "bench", "run_name": "bench", "settings": SETTINGS}))
    publisher = subprocess.Popen(child("publisher", folder), env=surroundings(server))
    trainer = subprocess.Popen(child("trainer", folder), env=surroundings(server), stdout=subprocess.DEVNULL)
    began = folder / "began"
    while not began.exists() and trainer.poll() is None:
        time.sleep(0.1)
    if trainer.poll() is None:
        time.sleep(seconds)
    work.stop.touch()
    trainer.wait()
    publisher.wait()
    if trainer.returncode != 10:
        raise SystemExit(f"the trainer ended with code {trainer.returncode}")
    seen = json.loads((folder / "seen.json").read_text())
    saves = seen["save_seconds"][:-1]
    result = {
        "model": "SmolLM2-135M, LoRA r=16 on all linear layers, float32, CPU",
        "training_seconds": round(seen["last_save_began"] - seen["began"], 1),
        "save_seconds": [round(value, 3) for value in saves],
        "stall_share": round(sum(saves) / (seen["last_save_began"] - seen["began"]), 5),
        "target": MAX_STALL,
        "steps": seen["steps"],
        "step_seconds_median": round(statistics.median(seen["step_seconds"]), 3),
        "published_bytes": sum(server.size(item) for item in server.objects if item.startswith("bench-stall/")),
    }
    print(f"stall: {100 * result['stall_share']:.2f} % by {len(saves)} checkpoints (target: below 2 %)", flush=True)
    return result


def trainer_role(folder: Path) -> None:
    """The product's trainer, with a clock at each end of its steps and saves."""
    from training_image import train
    from training_image.callbacks import RunCallback

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
    code = train.main(["--work-dir", str(folder)])
    (folder / "seen.json").write_text(json.dumps(times))
    sys.exit(code)


def publisher_role(folder: Path) -> None:
    """The product's publisher beside the trainer, until that was stopped."""
    from training_image.checkpoints import Resume
    from training_image.contract import RunKeys, WorkDir
    from training_image.publisher import Publisher
    from training_image.store import Store, s3_client

    work = WorkDir(folder)
    publisher = Publisher(
        Store(s3_client(), "bench-stall"),
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


# --- 2. upload ----------------------------------------------------------------------------------------------------
def measure_upload(server: S3, files: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each round; the order changes from round to round, the first is for the caches."""
    size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    aws = [str(ROOT / ".venv/bin/aws"), "s3", "cp", "--recursive", "--only-show-errors", str(files)]
    commands = {"ours": child("publish", files), "aws_s3_cp": [*aws, "s3://bench-aws/checkpoint/"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name in sorted(commands, reverse=bool(number % 2)):
            server.clear()
            began = time.monotonic()
            subprocess.run(commands[name], env=surroundings(server), check=True)
            took = time.monotonic() - began
            stored = sum(server.size(item) for item in server.objects)
            if stored < size:
                raise SystemExit(f"{name} uploaded {stored} of {size} bytes")
            print(f"{f'round {number}' if number else 'warm-up'}: {name} {took:.2f} s", flush=True)
            if number:
                taken[name].append(round(took, 3))
    medians = {name: round(size / 1e6 / statistics.median(values), 1) for name, values in taken.items()}
    ratio = round(medians["ours"] / medians["aws_s3_cp"], 2)
    print(f"upload: {medians['ours']} MB/s against {medians['aws_s3_cp']} MB/s: {ratio} times (target: at least 1)")
    return {
        "megabytes": round(size / 1e6, 1),
        "seconds": taken,
        "median_megabytes_per_second": medians,
        "ratio": ratio,
        "target": MIN_UPLOAD_RATIO,
    }


def publish_role(folder: Path) -> None:
    """One publish, as the supervisor does it."""
    from training_image import checkpoints
    from training_image.contract import RunKeys
    from training_image.store import Store, s3_client

    store = Store(s3_client(), "bench-ours")
    checkpoints.publish(store, RunKeys("bench"), folder, step=1, attempt=1, settings_sha256="s", previous=None)


# --- 3. notice ----------------------------------------------------------------------------------------------------
def measure_notice(server: S3, folder: Path) -> dict[str, Any]:
    """The supervisor's whole way, from the notice to the manifest; a step of training would come on top."""
    from training_image.contract import MANIFEST_NAME

    folder.mkdir()
    bucket, run_id = "bench-notice", "bench"
    run = {
        "run_id": run_id,
        "deadline": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        "max_attempts": 1,
        "gpus": 0,
        "data_uri": f"s3://{bucket}/data/",
        "settings": SETTINGS,
        "settings_sha256": "s",
        "training_command": child("holder", folder / "work"),
    }
    put_json(server, f"{bucket}/runs/{run_id}/run.json", run)
    put_json(server, f"{bucket}/data/train.jsonl", {"prompt": "a", "completion": "b"})
    put_json(server, "bucket/model/config.json", {})
    server.metadata = {"instance-id": "i-0", "autoscaling/target-lifecycle-state": "InService"}
    command = [sys.executable, "-m", "training_image.supervisor", "--bucket", bucket, "--run-id", run_id]
    with (folder / "console.log").open("wb") as console:
        box = subprocess.Popen(
            [*command, "--work-dir", str(folder / "work")],
            cwd=ROOT,
            env=surroundings(server),
            stdout=console,
            stderr=console,
        )
    ready = folder / "work" / "ready"
    while not ready.exists():
        if box.poll() is not None:
            raise SystemExit((folder / "console.log").read_text())
        time.sleep(0.1)

    def manifest() -> str | None:
        return next((name for name in server.objects if name.endswith(MANIFEST_NAME)), None)

    server.link.bytes_per_second = LINK_BYTES_PER_SECOND
    server.metadata["spot/instance-action"] = json.dumps({"action": "terminate", "time": "soon"})
    noticed = time.monotonic()
    with server.changed:
        if not server.changed.wait_for(manifest, timeout=110):
            raise SystemExit((folder / "console.log").read_text())
    took = time.monotonic() - noticed
    server.link.bytes_per_second = 0.0
    box.wait(60)
    saved = json.loads((folder / "work" / "saved.json").read_text())
    size = sum(server.size(name) for name in server.objects if "/step-" in f"/{name}")
    (folder / "work" / "kept").rename(folder / "template")
    result = {
        "seconds": round(took, 1),
        "of_which_until_the_trainer_saw_it": round(saved["began"] - noticed, 1),
        "of_which_saving": round(saved["ended"] - saved["began"], 1),
        "of_which_publishing": round(noticed + took - saved["ended"], 1),
        "megabytes": round(size / 1e6, 1),
        "link_megabytes_per_second": LINK_BYTES_PER_SECOND / 1e6,
        "target_seconds": MAX_NOTICE_SECONDS,
    }
    print(f"notice: durable after {took:.1f} s, {size / 1e6:.0f} MB (target: below 30 s)", flush=True)
    return result


def holder_role(folder: Path) -> None:
    """A trainer between two steps: it holds the state, and saves it as the real one does when it is told to stop."""
    import torch
    from safetensors.torch import save_file

    from training_image.contract import COMPLETE_MARKER, TrainerExit, WorkDir

    work = WorkDir(folder)
    weights = torch.nn.Parameter(torch.randn(ADAPTER_8B))
    optimizer = torch.optim.AdamW([weights])
    weights.grad = torch.randn_like(weights)
    optimizer.step()
    weights.grad = None
    (folder / "ready").touch()
    while not work.stop.exists():
        time.sleep(0.02)
    began = time.monotonic()  # of the machine: the same for every process
    checkpoint = work.checkpoints / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    save_file({"adapter": weights.detach()}, checkpoint / "adapter_model.safetensors")
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
    (checkpoint / "tokenizer.json").write_bytes(os.urandom(TOKENIZER_BYTES))
    ended = time.monotonic()
    kept = folder / "kept"
    kept.mkdir()
    for path in checkpoint.iterdir():  # the supervisor deletes its own copy; the upload's benchmark takes these
        os.link(path, kept / path.name)
    (folder / "saved.json").write_text(json.dumps({"began": began, "ended": ended}))
    (checkpoint / COMPLETE_MARKER).touch()
    sys.exit(TrainerExit.STOPPED)


ROLES = {"trainer": trainer_role, "publisher": publisher_role, "publish": publish_role, "holder": holder_role}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
