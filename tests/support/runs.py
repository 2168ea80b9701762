"""Records of a run as its programs write them, complete, with what a test wants otherwise."""

from datetime import timedelta
from typing import Any

from training_image.core.contract import settings_digest
from training_image.core.records import Run, now

SETTINGS = {"model": {"base_model": "s3://models/tiny/", "revision": None}}


def run_json(**changes: Any) -> dict[str, Any]:
    """``run.json`` of a run that began a minute ago and has an hour; ``changes`` as JSON has them."""
    began = now() - timedelta(minutes=1)
    settings = changes.get("settings", SETTINGS)
    run = {
        "schema": 2,
        "run_id": "run-1a2b3c4d-1",
        "run_name": "run",
        "created_at": began.isoformat(),
        "deadline": (began + timedelta(hours=1)).isoformat(),
        "stack_name": "TrainingStack",
        "outputs_bucket": "out",
        "max_attempts": 5,
        "auto_shutdown": True,
        "image": "registry/images@sha256:abc",
        "gpus": 0,
        "data_uri": "s3://in/data/",
        "settings": settings,
        "settings_sha256": settings_digest(settings),
        "instance_types": ["g5.xlarge"],
        "spec": {
            "use_spot": True,
            "usd_per_hour": 1.006,
            "deploy_command": "cdk deploy TrainingStack",
            "destroy_command": "cdk destroy TrainingStack",
        },
    }
    return {**run, **changes}


def a_run(**changes: Any) -> Run:
    """The same as a record."""
    return Run.read(run_json(**changes))
