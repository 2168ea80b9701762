"""How soon a checkpoint is safe: part of ``make bench-checkpoint``. Best on a quiet machine.

1. **Notice**: the real supervisor with a trainer that holds what an 8B model's adapter holds (r=16 on all linear
   layers, float32, Adam's two moments), behind a link of 100 MB/s: seconds from the metadata's notice to the manifest.
   S3 is ``s3_on_disk``, because the emulator takes little more than that.
2. **Upload**: our publish against ``aws s3 cp --recursive`` of the same files, each a process of its own from start to
   end, by turns: to the local cloud's emulator (the target), and to ``s3_on_disk``, where two processors are the limit.

Figures go to ``benchmarks/results/checkpoint.json``. How long checkpoints hold training up: ``bench_stall.py``.
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

from runs import run_json
from s3_on_disk import S3, environment, put_json

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("results") / "checkpoint.json"
MIN_UPLOAD_RATIO, MAX_NOTICE_SECONDS = 1.0, 30.0
LINK_BYTES_PER_SECOND = 100e6
ADAPTER_8B = 41_943_040
"""Parameters of LoRA with r=16 on the seven linear layers of each of Llama-3-8B's 32 blocks."""
TOKENIZER_BYTES = 17_000_000
UPLOAD_BUCKETS = {"ours": "bench-ours", "aws_s3_cp": "bench-aws"}
SETTINGS = {"model": {"base_model": "s3://bucket/model/"}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure how soon a checkpoint is safe.")
    parser.add_argument("--rounds", type=int, default=9, help="of uploads, at least 3 (default: 9)")
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
                "upload": measure_uploads(server, scratch, max(3, options.rounds)),
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


# --- upload ---------------------------------------------------------------------------------------------------------
def measure_uploads(server: S3, scratch: Path, rounds: int) -> dict[str, Any]:
    from local_cloud.cloud import LocalCloud

    files = scratch / "notice" / "template"
    found = {"no_limit": measure_upload(files, rounds, surroundings(server))}
    (scratch / "cloud").mkdir()
    with LocalCloud(scratch / "cloud") as cloud:
        for bucket in UPLOAD_BUCKETS.values():
            cloud.client("s3").create_bucket(Bucket=bucket)
        emulator = {"PYTHONPATH": str(ROOT), "HOME": str(Path.home()), **cloud.environ()}
        found["emulator"] = measure_upload(files, rounds, emulator)
    return found


def measure_upload(files: Path, rounds: int, variables: dict[str, str]) -> dict[str, Any]:
    """Seconds of each round; the order changes from round to round, the first is for the caches."""
    import boto3

    from training_image.core.store import Store

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], **keys)
    size = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    aws = [str(ROOT / ".venv/bin/aws"), "s3", "cp", "--recursive", "--only-show-errors", str(files)]
    commands = {"ours": child("publish", files), "aws_s3_cp": [*aws, f"s3://{UPLOAD_BUCKETS['aws_s3_cp']}/checkpoint/"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name in sorted(commands, reverse=bool(number % 2)):
            store = Store(client, UPLOAD_BUCKETS[name])
            store.delete([item.key for item in store.list("")])
            began = time.monotonic()
            subprocess.run(commands[name], env=variables, check=True)
            took = time.monotonic() - began
            stored = sum(item.size for item in store.list(""))
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
    from training_image.core.contract import RunKeys
    from training_image.core.store import Store, s3_client
    from training_image.storage import checkpoints

    store = Store(s3_client(), UPLOAD_BUCKETS["ours"])
    checkpoints.publish(store, RunKeys("bench"), folder, step=1, attempt=1, settings_sha256="s", previous=None)


# --- notice ---------------------------------------------------------------------------------------------------------
def measure_notice(server: S3, folder: Path) -> dict[str, Any]:
    """The supervisor's whole way, from the notice to the manifest; a step of training would come on top."""
    from training_image.core.contract import MANIFEST_NAME

    folder.mkdir()
    bucket, run_id = "bench-notice", "bench"
    holder = tuple(child("holder", folder / "work"))
    run = run_json(SETTINGS, run_id=run_id, data_uri=f"s3://{bucket}/data/", training_command=holder)
    put_json(server, f"{bucket}/runs/{run_id}/run.json", run)
    put_json(server, f"{bucket}/data/train.jsonl", {"prompt": "a", "completion": "b"})
    put_json(server, "bucket/model/config.json", {})
    server.metadata = {"instance-id": "i-0", "autoscaling/target-lifecycle-state": "InService"}
    command = [sys.executable, "-m", "training_image.supervisor", "--bucket", bucket, "--run-id", run_id]
    with (folder / "console.log").open("wb") as console:
        instance = subprocess.Popen(
            [*command, "--work-dir", str(folder / "work")],
            cwd=ROOT,
            env=surroundings(server),
            stdout=console,
            stderr=console,
        )
    ready = folder / "work" / "ready"
    while not ready.exists():
        if instance.poll() is not None:
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
    instance.wait(60)
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

    from training_image.core.contract import COMPLETE_MARKER, TrainerExit, WorkDir

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


ROLES = {"publish": publish_role, "holder": holder_role}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
