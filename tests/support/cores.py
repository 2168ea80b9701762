"""One core for the instances of a test: a model of a few kilobytes trains no faster on two.

Torch takes a thread for each core, and these wait for each other at every operation: on a busy machine that cost
fifteen times the processor time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_core() -> Iterator[None]:
    """What is started in here stays on one core, another one for each worker."""
    before = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(before)[worker % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
