"""The emulator's process: patches, the Auto Scaling engine, the boxes, then ministack's gateway in the foreground.

Started by ``local_cloud.cloud`` with a clean environment: ``python -m local_cloud.server STATE_DIRECTORY``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from local_cloud import patches
from local_cloud.autoscaling import Engine
from local_cloud.autoscaling_api import install
from local_cloud.faults import Faults
from local_cloud.hooks import IncompatibleEmulatorError, Module
from local_cloud.runner import Runner


def main() -> int:
    state = Path(sys.argv[1])
    endpoint = f"http://127.0.0.1:{os.environ['GATEWAY_PORT']}"
    try:
        patches.apply()
        runner = Runner(state, endpoint)
        engine = Engine(runner)
        install(engine)
        Faults(engine, runner).install()
        serve = Module("ministack.app").get("main")
    except IncompatibleEmulatorError as error:
        print(f"INCOMPATIBLE: {error}", flush=True)
        return 3
    engine.start()
    sys.argv[1:] = []  # ministack's main parses the command line
    try:
        serve()
    finally:
        engine.stop()
        runner.kill_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
