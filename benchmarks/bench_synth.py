"""How long `cdk synth` takes here, beside an app of two resources: ``make bench-synth``.

Both by the real CLI, in the same Python environment, alternating so that a busy machine slows both; one round for the
caches first. What counts is the ratio of the medians; the target is at most 2. Figures go to
``benchmarks/results/synth.json`` with the machine's load, because a busy machine's figures are worth little.
(Processor seconds would suffer less from neighbours, but jsii leaves its Node process behind when that takes long to
end, and nobody counts it.)
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
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("results") / "synth.json"
TARGET = 2.0
YARDSTICK = """
import aws_cdk as cdk
from aws_cdk import aws_s3 as s3, aws_sns as sns

app = cdk.App()
stack = cdk.Stack(app, "Two")
s3.Bucket(stack, "Bucket")
sns.Topic(stack, "Topic")
app.synth()
"""


def make_yardstick(folder: Path) -> None:
    """A CDK app of two resources with our feature flags and CLI options."""
    (folder / "app.py").write_text(YARDSTICK)
    ours = json.loads((ROOT / "cdk.json").read_text())
    (folder / "cdk.json").write_text(json.dumps({**ours, "app": f"{sys.executable} app.py"}))


def synthesise(folder: Path, output: Path) -> float:
    """Seconds of one synthesis of the app in ``folder``, from the CLI's start to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "AWS_", "CDK_"))}
    environment = {
        **clean,
        "AWS_EC2_METADATA_DISABLED": "true",  # no wait for credentials that synthesis does not need
        "AWS_REGION": "us-east-1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
    }
    command = [str(ROOT / "node_modules/.bin/cdk"), "synth", "--quiet", "--no-notices", "--output", str(output)]
    began = time.monotonic()
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    took = time.monotonic() - began
    if result.returncode != 0:
        raise SystemExit(result.stdout + result.stderr)
    return took


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by app."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_yardstick(scratch)
        apps = {"lab": ROOT, "two_resources": scratch}
        taken: dict[str, list[float]] = {app: [] for app in apps}
        for number in range(rounds + 1):
            for app, folder in apps.items():
                took = synthesise(folder, scratch / f"cdk.out-{app}")
                print(f"{f'round {number}' if number else 'warm-up'}: {app} {took:.1f} s", flush=True)
                if number:
                    taken[app].append(round(took, 2))
    return taken


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time cdk synth of both stacks against an app of two resources.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds, at least 3 (default: 3)")
    rounds = max(3, parser.parse_args(arguments).rounds)
    load_before = os.getloadavg()[0]
    taken = measure(rounds)
    medians = {app: statistics.median(values) for app, values in taken.items()}
    ratio = round(medians["lab"] / medians["two_resources"], 2)
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": taken,
        "median_seconds": medians,
        "ratio": ratio,
        "target_ratio": TARGET,
        "aws_cdk_lib": version("aws-cdk-lib"),
        "cpus": os.cpu_count(),
        "load_before_and_after": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{medians['lab']:.1f} s against {medians['two_resources']:.1f} s: {ratio} times (target: {TARGET:g})")


if __name__ == "__main__":
    main()
