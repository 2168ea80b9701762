"""The ``run.json`` that a benchmark's supervisor or trainer reads."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from training_image.core.contract import settings_digest
from training_image.core.records import Run, now


def run_json(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run of one attempt that begins now and has an hour."""
    run = {
        "run_id": "bench-1",
        "run_name": "bench",
        "created_at": now(),
        "deadline": now() + timedelta(hours=1),
        "max_attempts": 1,
        "image": "none",
        "data_uri": "s3://bench/data/",
        "settings": settings,
        "settings_sha256": settings_digest(settings),
    }
    return Run(**{**run, **changes}).to_json()
