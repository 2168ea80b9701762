"""How long an instance's downloads take, beside ``aws s3 sync`` of the same objects: ``make bench-transfer``.

Ours is ``Store.list`` and ``Store.sync``, a whole process each time as the CLI's is; s5cmd is timed too where PATH has
it. The server is ``benchmarks/s3_on_disk.py``, because the emulator's S3 is slower than any of the clients. It runs on
the same processors and answers at once: a real S3 is farther away. Processor seconds of the client are kept beside the
time, because they do not depend on the server. Figures go to ``benchmarks/results/transfer.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks.s3_on_disk import S3, environment  # noqa: E402

RESULT = Path(__file__).with_name("results") / "transfer.json"
TARGET = 1.0
BUCKET = "bench"
SMALL_BYTES = 4096
OURS = """
import sys
from pathlib import Path
from training_image.core.store import Store, s3_client

store, prefix, folder = Store(s3_client(), sys.argv[1]), sys.argv[2], Path(sys.argv[3])
store.sync({item: folder / item.key.removeprefix(prefix) for item in store.list(prefix)})
"""


def commands(prefix: str, folder: Path) -> dict[str, list[str] | None]:
    """What downloads ``prefix`` to ``folder``, by client; None: not on this machine."""
    source = f"s3://{BUCKET}/{prefix}"
    aws = Path(sys.executable).with_name("aws")
    return {
        "ours": [sys.executable, "-c", OURS, BUCKET, prefix, str(folder)],
        "aws s3 sync": [str(aws), "s3", "sync", "--only-show-errors", source, str(folder)],
        "s5cmd": ["s5cmd", "--log", "error", "sync", f"{source}*", f"{folder}/"] if shutil.which("s5cmd") else None,
    }


def fill(server: S3, small_files: int, large_mb: int) -> dict[str, tuple[int, int]]:
    """Objects of random bytes; (files, bytes) by prefix. All of a kind share a file: the disk is not measured."""
    small, large = server.folder / "small", server.folder / "large"
    small.write_bytes(os.urandom(SMALL_BYTES))
    with large.open("wb") as file:
        for _ in range(large_mb):
            file.write(os.urandom(1_000_000))
    for number in range(small_files):
        server.store(f"{BUCKET}/small/{number // 100:03d}/{number:05d}.jsonl", [small])
    for number in range(2):
        server.store(f"{BUCKET}/large/model-{number + 1:05d}-of-00002.safetensors", [large])
    return {"small/": (small_files, small_files * SMALL_BYTES), "large/": (2, 2 * large_mb * 1_000_000)}


def fetch(command: list[str], folder: Path, server: S3, expected: tuple[int, int]) -> dict[str, float]:
    """Seconds, and processor seconds of the client, of one download into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    variables = {**kept, **environment(server), "S3_ENDPOINT_URL": server.endpoint, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, env=variables, cwd=server.folder, check=True)
    took = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    if (len(sizes), sum(sizes)) != expected:
        raise SystemExit(f"{command[0]} left {len(sizes)} files of {sum(sizes)} bytes instead of {expected}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(took, 2), "processor_seconds": round(used, 2)}


def measure(rounds: int, small_files: int, large_mb: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Each round by prefix and client, the clients taking turns so that a busy machine slows all of them."""
    with tempfile.TemporaryDirectory() as name:
        objects, folder = Path(name) / "objects", Path(name) / "downloaded"
        objects.mkdir()
        with S3(objects) as server:
            kinds = fill(server, small_files, large_mb)
            taken: dict[str, dict[str, list[dict[str, float]]]] = {kind: {} for kind in kinds}
            for number in range(1, rounds + 1):
                for kind, expected in kinds.items():
                    for client, command in commands(kind, folder).items():
                        if command is not None:
                            figures = fetch(command, folder, server, expected)
                            print(f"round {number}: {kind} {client} {figures}", flush=True)
                            taken[kind].setdefault(client, []).append(figures)
            return taken


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time the downloads of an instance against aws s3 sync.")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--small-files", type=int, default=10_000, help=f"of {SMALL_BYTES} bytes (default: 10000)")
    parser.add_argument("--large-mb", type=int, default=2000, help="of each of two large files (default: 2000)")
    options = parser.parse_args(arguments)
    load_before = os.getloadavg()[0]
    taken = measure(options.rounds, options.small_files, options.large_mb)
    medians = {
        kind: {
            client: {name: statistics.median(figures[name] for figures in found) for name in found[0]}
            for client, found in clients.items()
        }
        for kind, clients in taken.items()
    }
    ratios = {
        kind: {name: round(found["ours"][name] / found["aws s3 sync"][name], 2) for name in found["ours"]}
        for kind, found in medians.items()
    }
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": "benchmarks/s3_on_disk.py, on the same machine",
        "small_files": options.small_files,
        "large_mb": options.large_mb,
        "rounds": taken,
        "medians": medians,
        "ours_to_aws_s3_sync": ratios,
        "target_ratio": TARGET,
        "s5cmd": "measured" if shutil.which("s5cmd") else "not available",
        "awscli": version("awscli"),
        "boto3": version("boto3"),
        "cpus": os.cpu_count(),
        "load_before_and_after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for kind, ratio in ratios.items():
        print(f"{kind}: {ratio['seconds']} times the seconds of aws s3 sync (target: {TARGET:g}), "
              f"{ratio['processor_seconds']} times its processor seconds")  # fmt: skip


if __name__ == "__main__":
    main()
