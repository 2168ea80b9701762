"""The emulator's process: patches, the Auto Scaling engine, the instances, then ministack's gateway in the foreground.

Started by ``local_cloud.cloud`` with a clean environment: ``python -m local_cloud.server STATE_DIRECTORY``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ministack import app

from local_cloud import autoscaling_api, cloudformation_patches, iam_patches, patches
from local_cloud.autoscaling import Engine
from local_cloud.faults import Faults
from local_cloud.runner import Runner


def main() -> None:
    for module in (patches, iam_patches, cloudformation_patches):
        module.apply()
    tls_everywhere()
    runner = Runner(Path(sys.argv[1]), f"http://127.0.0.1:{os.environ['GATEWAY_PORT']}")
    engine = Engine(runner)
    autoscaling_api.install(engine)
    app.app = Faults(engine, runner).around(app.app)
    engine.start()
    sys.argv[1:] = []  # ministack's main parses the command line
    try:
        app.main()
    finally:
        engine.stop()
        runner.kill_all()


def tls_everywhere() -> None:
    """Requests count as TLS (``aws:SecureTransport``), so that TLS-only bucket policies can be deployed on loopback."""
    pin = app.pin_request_origin
    app.pin_request_origin = lambda source_ip, secure_transport: pin(source_ip, True)


if __name__ == "__main__":
    main()
