"""Entry point of the container: makes an attempt at a run and ends with its exit code (``contract.SupervisorExit``)."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from training_image.core.contract import HEARTBEAT_SECONDS, RunKeys, WorkDir
from training_image.core.store import Store, s3_client
from training_image.supervisor.attempt import Attempt, Events
from training_image.supervisor.decisions import CRASHED, Cause, Stop
from training_image.supervisor.preparation import clear
from training_image.supervisor.trainer_process import Tee

log = logging.getLogger("training_image.supervisor")  # __name__ is "__main__" here


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="supervisor", description="One attempt at a training run.")
    parser.add_argument("--bucket", required=True, help="outputs bucket")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--work-dir", required=True, type=Path, help="scratch of this attempt")
    parser.add_argument("--booted-at", type=float, default=time.time(), help="epoch seconds")
    parser.add_argument(
        "--interval", type=float, default=HEARTBEAT_SECONDS, help="seconds between heartbeats and between looks"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    events: Events = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: events.put(Stop(Cause.SIGNAL, f"{signal.Signals(got).name} received")))
    work = WorkDir(options.work_dir)
    clear(work)
    tee = Tee(work.root / "training.log")
    logging.basicConfig(stream=tee, format="%(asctime)s supervisor: %(message)s", level=logging.WARNING)
    logging.getLogger("training_image").setLevel(logging.INFO)
    try:
        store = Store(s3_client(), options.bucket)
        return Attempt(store, RunKeys(options.run_id), work, tee, events, options).run()
    except Exception:
        log.exception("The supervisor failed: the instance ends, the run does not")
        return CRASHED


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a transfer that is still under way must not hold the instance
