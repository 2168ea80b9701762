"""How long an attempt takes from its container's start to its first optimizer step: ``make bench-first-step``.

The demo's model with its weights already on the instance, the real supervisor and trainer in processes of their own,
S3 by ``benchmarks/s3_on_disk.py``. What the container engine needs is not in it. The target is 15 s on a quiet
machine; most of it is imports, so the trainer's are timed apart. Figures go to ``benchmarks/results/first_step.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks.runs import run_json  # noqa: E402
from benchmarks.s3_on_disk import S3, environment, put_json  # noqa: E402
from lab.demo import base_model  # noqa: E402
from training_image.core.contract import RunKeys, WorkDir  # noqa: E402

RESULT = Path(__file__).with_name("results") / "first_step.json"
TARGET_SECONDS = 15.0
BUCKET = "bench"
KEYS = RunKeys("bench-1")
GIVE_UP_SECONDS = 300.0
SETTINGS = {
    "model": {"base_model": f"s3://{BUCKET}/model/"},
    "data": {"max_eval_examples": 1},
    "training": {"use_cpu": True, "max_steps": 1, "max_length": 128, "gradient_accumulation_steps": 1},
    "evaluation": {"max_new_tokens": 1, "samples": 0},
}


def fill(server: S3, model: Path) -> None:
    """A run of one step, as the controller would have written it."""
    for path in model.iterdir():
        server.store(f"{BUCKET}/model/{path.name}", [path])
    data = server.folder / "train.jsonl"
    data.write_text("".join(f'{{"prompt": "Say {number}", "completion": "{number}"}}\n' for number in range(32)))
    server.store(f"{BUCKET}/data/train.jsonl", [data])
    server.metadata["instance-id"] = "i-0123"
    put_json(server, f"{BUCKET}/{KEYS.run}", run_json(SETTINGS, run_id=KEYS.run_id))


def first_step(model: Path) -> dict[str, float]:
    """Seconds from the supervisor's start to the first step, and of the phases on the way there."""
    with tempfile.TemporaryDirectory() as name:
        work = WorkDir(Path(name) / "work")
        objects = Path(name) / "objects"
        objects.mkdir()
        with S3(objects) as server:
            fill(server, model)
            work.model.mkdir(parents=True)
            for path in model.iterdir():
                shutil.copy(path, work.model)
                os.utime(work.model / path.name, times=(time.time() + 3600,) * 2)  # this S3's objects are always new
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "AWS_", "HF_"))}
            command = [sys.executable, "-m", "training_image.supervisor", "--bucket", BUCKET, "--run-id", KEYS.run_id]
            began = time.time()
            process = subprocess.Popen(
                [*command, "--work-dir", str(work.root), "--booted-at", str(began), "--interval", "0.2"],
                cwd=ROOT, env=clean | environment(server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                steps = work.metrics / "steps.jsonl"
                while not steps.exists() and process.poll() is None and time.time() < began + GIVE_UP_SECONDS:
                    time.sleep(0.02)
                ended = time.time()
                if not steps.exists():
                    raise SystemExit((work.root / "training.log").read_text())
                process.wait(GIVE_UP_SECONDS)
            finally:
                process.kill()
                process.wait()
            (timeline,) = server.objects[f"{BUCKET}/{KEYS.attempt(1)}timeline.json"]
            entered = json.loads(timeline.read_text())["phases"]
    before = [phase for phase in entered if phase["started_at"] < ended]
    # A single step is so short that the phase after it may have been entered when this program looks.
    phases = {phase["phase"]: phase["seconds"] for phase in before if phase["phase"] != "training"}
    return {"total": round(ended - began, 1), "starting": round(before[0]["started_at"] - began, 1), **phases}


def imports(module: str) -> float:
    """Seconds of a process that imports ``module`` and nothing else."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
    return round(time.monotonic() - began, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time an attempt's way to its first step.")
    parser.add_argument("--rounds", type=int, default=3, help="after one for the caches (default: 3)")
    rounds = parser.parse_args(arguments).rounds
    load_before = os.getloadavg()[0]
    model = base_model.ensure(print)
    first_step(model)
    taken = []
    for _ in range(rounds):
        taken.append({**first_step(model), "trainer_imports": imports("training_image.train")})
        print(taken[-1], flush=True)
    medians = {phase: statistics.median(figures[phase] for figures in taken) for phase in taken[0]}
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": base_model.NAME,
        "seconds": taken,
        "median_seconds": medians,
        "target_seconds": TARGET_SECONDS,
        "cpus": os.cpu_count(),
        "load_before_and_after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{medians['total']:.1f} s to the first step (target: {TARGET_SECONDS:g} s)")


if __name__ == "__main__":
    main()
