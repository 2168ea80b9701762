"""One attempt's figures and log in CloudWatch, for people who watch. S3 keeps the durable copy of both.

Runs in one thread of the supervisor, so that a trainer that hangs is still seen. Nothing here can disturb a run: what
CloudWatch does not take is said once in the log, and tried again.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from training_image.core.contract import METRIC_NAMESPACE, Phase, WorkDir
from training_image.core.records import Run, Status
from training_image.supervisor.reporter import read_status

log = logging.getLogger(__name__)

UNITS = {
    "Loss": "None",
    "TokensPerSecond": "Count/Second",
    "Step": "Count",
    "DurableStep": "Count",
    "Attempt": "Count",
    "GpuUtilization": "Percent",
    "GpuMemoryUsed": "Percent",
}
"""Every metric, with its unit. Their one dimension is the stack, not the run: AWS bills 0.30 USD a month for each
custom metric, for the hours in which it gets values. These seven make 0.3 cents an hour."""

TICKS_PER_METRICS = 12
"""Log lines leave at every tick (5 s), figures at every twelfth: once a minute."""
CLOSE_SECONDS = 10.0
"""Bound of the last words: the two minutes of an interruption belong to the checkpoint."""
_CHUNK_BYTES = 64 * 1024
"""Read at a time. It keeps an event below AWS's 256 KiB and a request, with 26 bytes more for each event, below 1
MiB."""
_MAX_EVENTS = 10_000
"""AWS's own, of a request."""
_GPU_QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]


def training_figures(status: Status, durable_step: int | None, attempt: int) -> dict[str, float]:
    """What ``status.json`` tells. Loss and speed only while it trains: later they would be repeated, not measured."""
    found: dict[str, float | None] = {"Step": status.step, "DurableStep": durable_step, "Attempt": attempt}
    if status.phase is Phase.TRAINING:
        found |= {"Loss": status.loss, "TokensPerSecond": status.tokens_per_second}
    return {name: float(value) for name, value in found.items() if value is not None}


def gpu_figures(listing: str) -> dict[str, float]:
    """From nvidia-smi's lines (percent, MiB, MiB), one for each GPU: the mean utilization, and the memory of the
    fullest one in percent, because that one runs out first. Empty where a driver answers ``[N/A]``."""
    try:
        rows = [[float(field) for field in line.split(",")] for line in listing.splitlines() if line.strip()]
        utilization = [busy for busy, _, _ in rows]
        return {
            "GpuUtilization": sum(utilization) / len(utilization),
            "GpuMemoryUsed": max(100 * used / total for _, used, total in rows),
        }
    except (ValueError, ZeroDivisionError):
        return {}


def log_events(text: bytes, now_ms: int, *, last: bool) -> tuple[list[dict[str, Any]], int]:
    """Events of the whole lines at the start of ``text``, as many as one request takes, and the bytes they took.

    Of a progress bar, which overwrites its line, the last state is kept. ``last``: a line without an end counts too.
    """
    *lines, rest = text.split(b"\n")
    found = [line + b"\n" for line in lines] + ([rest] if last and rest else [])
    events: list[dict[str, Any]] = []
    for line in found[:_MAX_EVENTS]:
        message = line.strip(b"\r\n").rsplit(b"\r", 1)[-1].decode(errors="replace").rstrip()
        if message:
            events.append({"timestamp": now_ms, "message": message})
    return events, sum(len(line) for line in found[:_MAX_EVENTS])


@contextmanager
def published(
    run: Run,
    work: WorkDir,
    *,
    attempt: int,
    log_file: Path,
    durable_step: Callable[[], int | None],
    interval: float,
) -> Iterator[None]:
    """Publish an attempt while the block runs, if ``run.json`` names a log group. ``interval``: seconds of a tick."""
    if run.log_group is None:
        yield
        return
    publisher = CloudWatch(
        stack_name=run.stack_name,
        log_group=run.log_group,
        log_stream=f"{run.run_id}/{attempt}",
        figures=lambda: training_figures(read_status(work), durable_step(), attempt) | ask_gpus(),
        log_file=log_file,
        interval=interval,
    )
    publisher.start()
    try:
        yield
    finally:
        publisher.close()


class CloudWatch:
    """Sends a growing log, and figures asked for once a minute, from a thread of its own.

    Args:
        stack_name: value of the metrics' one dimension.
        log_group: exists already; only a stream is made in it.
        interval: seconds between two looks at the log.
    """

    def __init__(
        self,
        *,
        stack_name: str,
        log_group: str,
        log_stream: str,
        figures: Callable[[], dict[str, float]],
        log_file: Path,
        interval: float,
    ) -> None:
        self._dimensions = [{"Name": "Stack", "Value": stack_name}]
        self._stream = {"logGroupName": log_group, "logStreamName": log_stream}
        self._figures = figures
        self._log_file = log_file
        self._interval = interval
        self._sent = 0  # bytes of the log
        self._has_stream = False
        self._failing: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cloudwatch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send what is left, within ``CLOSE_SECONDS``."""
        self._ended.set()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        ticks = 0
        while not self._ended.wait(self._interval):
            self._safely("log", lambda: self._send_log(last=False))
            if ticks % TICKS_PER_METRICS == 0:
                self._safely("metrics", self._send_metrics)
            ticks += 1
        self._safely("metrics", self._send_metrics)
        self._safely("log", lambda: self._send_log(last=True))

    def _safely(self, what: str, send: Callable[[], None]) -> None:
        try:
            send()
            self._failing.discard(what)
        except Exception as error:  # whatever it is, it must not cost a training
            if what not in self._failing:
                log.warning("CloudWatch did not take the %s (the run goes on): %s", what, error)
            self._failing.add(what)

    def _send_metrics(self) -> None:
        _client("cloudwatch").put_metric_data(
            Namespace=METRIC_NAMESPACE,
            MetricData=[
                {"MetricName": name, "Value": value, "Unit": UNITS[name], "Dimensions": self._dimensions}
                for name, value in self._figures().items()
            ],
        )

    def _send_log(self, *, last: bool) -> None:
        if not self._has_stream:
            self._make_stream()
        with self._log_file.open("rb") as file:
            while True:
                file.seek(self._sent)
                text = file.read(_CHUNK_BYTES)
                full = len(text) == _CHUNK_BYTES
                events, taken = log_events(text, int(time.time() * 1000), last=b"\n" not in text if full else last)
                if not taken:
                    return
                if events:
                    _client("logs").put_log_events(**self._stream, logEvents=events)
                self._sent += taken

    def _make_stream(self) -> None:
        try:
            _client("logs").create_log_stream(**self._stream)
        except ClientError as error:  # made by a request whose answer was lost
            if error.response["Error"]["Code"] != "ResourceAlreadyExistsException":
                raise
        self._has_stream = True


@cache
def _client(service: str) -> Any:
    config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
    return boto3.client(service, config=config)


def ask_gpus() -> dict[str, float]:
    """``gpu_figures`` of this moment; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return {}
    answer = subprocess.run(_GPU_QUERY, capture_output=True, text=True, check=False, timeout=10)
    return gpu_figures(answer.stdout)
