"""A trainer in miniature: keeps the whole contract of ``WorkDir`` and exit codes, learns nothing.

The first argument is the work directory, or ``instance``: that of the instance it runs on. A checkpoint at every
second step, or at every ``every``-th; ``pace=S``: a step takes S seconds. ``hold=N`` waits at step N until it is told
to stop; ``deaf`` does not listen. ``hold=PHASE`` stays in a phase without steps, which listens to nobody, until it is
killed; in ``saving``, until it is told to stop, and then finishes.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

HOLD_SECONDS = 300

work = Path(os.environ["WORK_DIR"])
options = dict(argument.split("=", 1) for argument in sys.argv[1:])
total = int(options.get("steps", 6))
every = int(options.get("every", 2))


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.rename(path)


def checkpoint(step: int) -> None:
    directory = work / "checkpoints" / f"checkpoint-{step}"
    write(directory / "state.json", {"step": step})
    (directory / "weights").mkdir(exist_ok=True)
    (directory / "weights" / "model.bin").write_bytes(bytes([step % 256]) * 100_000)
    shutil.copy(work / "metrics" / "steps.jsonl", directory)
    (directory / "COMPLETE").touch()


def status(phase: str, step: int) -> None:
    write(work / "status.json", {"phase": phase, "step": step, "total_steps": total, "loss": 1 / (step + 1)})


def phase(name: str, step: int) -> None:
    status(name, step)
    give_up = time.monotonic() + HOLD_SECONDS
    while options.get("hold") == name and time.monotonic() < give_up:
        if name == "saving" and (work / "stop").exists():
            return
        time.sleep(0.02)


if "bad_input" in options:
    (work / "error.txt").write_text(options["bad_input"])
    sys.exit(12)

resume = work / "resume" / "state.json"
first = json.loads(resume.read_text())["step"] if resume.exists() else 0
print(f"starting at step {first}, data {sorted(path.name for path in (work / 'data').rglob('*.jsonl'))}", flush=True)
if first:
    shutil.copy(work / "resume" / "steps.jsonl", work / "metrics")
phase("loading", first)
before = work / "metrics" / "eval_before.json"
phase("evaluating_before", first)
if not before.exists():
    write(before, {"loss": 4.0, "first_step": first})

for step in range(first + 1, total + 1):
    status("training", step)
    time.sleep(float(options.get("pace", 0)))
    with (work / "metrics" / "steps.jsonl").open("a") as steps:
        steps.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
    if step == int(options.get("crash", 0)):
        print("Traceback: something broke", flush=True)
        sys.exit(1)
    if step % every == 0:
        checkpoint(step)
    give_up = time.monotonic() + HOLD_SECONDS
    while str(step) == options.get("hold") and time.monotonic() < give_up:
        if (work / "stop").exists() and "deaf" not in options:
            break
        if (work / "save").exists():
            checkpoint(step)
            (work / "save").unlink()
        time.sleep(0.02)
    if (work / "stop").exists():
        checkpoint(step)
        sys.exit(10)

phase("evaluating_after", total)
phase("saving", total)
adapter = work / "adapter" / "adapter_model.safetensors"
adapter.parent.mkdir(exist_ok=True)
adapter.write_bytes(b"adapter" * 1000)
write(work / "metrics" / "eval_after.json", {"loss": 1.0})
if "no_marker" not in options:
    sha256 = hashlib.sha256(adapter.read_bytes()).hexdigest()
    if "wrong_adapter" in options:
        adapter.write_bytes(b"torn")
    write(work / "final.json", {"step": total, "train_examples": 7, "eval_examples": 2, "adapter_sha256": sha256})
