"""Doing a fault to a running box, from outside: through the local cloud, the API, or a signal to a process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from lab.chaos.plan import Kind
from lab.local_cloud import processes
from lab.local_cloud.cloud import LocalCloud
from training_image import checkpoints
from training_image.contract import RunKeys
from training_image.store import Store

NOTICE_SECONDS = 60.0
OUTAGE_SECONDS = 5.0
SECOND_BOX_SECONDS = 120.0


class Striker:
    """Does faults to the boxes of one run at a time."""

    def __init__(self, cloud: LocalCloud, store: Store, group: str) -> None:
        self._cloud, self._store, self._group = cloud, store, group
        self._autoscaling = cloud.client("autoscaling")

    def strike(self, kind: Kind, instance: str, keys: RunKeys) -> None:
        """Returns when the fault is over, or has been handed to the cloud."""
        match kind:
            case Kind.NOTICE:
                self._cloud.fault("interrupt", instance=instance, seconds=NOTICE_SECONDS)
            case Kind.KILL_MACHINE:
                self._cloud.fault("kill", instance=instance)
            case Kind.KILL_TRAINER:
                self._kill(instance, "training_image.train")
            case Kind.KILL_SUPERVISOR:
                self._kill(instance, "training_image.supervisor")
            case Kind.S3_REFUSES:
                self._outage(refuse=True)
            case Kind.S3_DROPS:
                self._outage(drop_uploads=True)
            case Kind.S3_SLOW:
                self._outage(bytes_per_second=50_000.0, latency_seconds=0.5)
            case Kind.TWO_BOXES:
                self._second_box(instance)
            case Kind.CORRUPT:
                self._corrupt(keys)
                self._cloud.fault("kill", instance=instance)
            case Kind.DISK_FULL:
                self._fill_disk()
            case _:
                raise ValueError(f"{kind} cannot be done here: plan() must not be given it")

    def _outage(self, **settings: Any) -> None:
        self._cloud.fault("s3", settings=settings)
        try:
            time.sleep(OUTAGE_SECONDS)
        finally:
            self._cloud.fault("s3", settings={})

    def _kill(self, instance: str, module: str) -> None:
        """SIGKILL to the process of the box that runs ``module``; a box that has none yet or any more is left alone."""
        for process in processes.marked("DESTDIR", str(self._cloud.state / "boxes" / instance)):
            with contextlib.suppress(psutil.Error):
                if module in process.cmdline():
                    process.send_signal(signal.SIGKILL)

    def _second_box(self, instance: str) -> None:
        """Another box beside a live one, as after a network partition: only one of them may go on."""
        group = {"AutoScalingGroupName": self._group, "ScalingProcesses": ["Launch"]}
        self._size(2)
        try:
            wait_for(lambda: len(self._members()) > 1, SECOND_BOX_SECONDS)
            self._autoscaling.suspend_processes(**group)  # or a third box would take the place of the one that leaves
            wait_for(lambda: instance not in self._members(), SECOND_BOX_SECONDS)
        finally:
            self._size(1)
            self._autoscaling.resume_processes(**group)

    def _size(self, boxes: int) -> None:
        self._autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=self._group, MinSize=0, MaxSize=boxes, DesiredCapacity=boxes
        )

    def _members(self) -> list[str]:
        found = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        return [member["InstanceId"] for group in found["AutoScalingGroups"] for member in group["Instances"]]

    def _corrupt(self, keys: RunKeys) -> None:
        """Another byte in the middle of the largest file of the newest checkpoint."""
        newest = max(checkpoints.published(self._store, keys), default=None)
        if newest is None:
            return
        files = self._store.list(keys.checkpoint(newest.step, newest.attempt))
        victim = max(files, key=lambda item: item.size)
        body = bytearray(self._store.read(victim.key) or b"")
        body[len(body) // 2] ^= 0xFF
        self._store.put(victim.key, bytes(body))

    def _fill_disk(self) -> None:
        filler = self._cloud.state / "boxes" / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(2**20)):  # until there is no room
                    pass
            time.sleep(OUTAGE_SECONDS)
        finally:
            filler.unlink(missing_ok=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came to hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def small_disk(directory: Path, size: int) -> str | None:
    """Mount a file system of ``size`` bytes on ``directory``; why that cannot be done, or None."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return "a small file system can only be mounted by root"
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"no small file system: {result.stderr.strip()}"


def remove_small_disk(directory: Path) -> None:
    subprocess.run(["umount", "--lazy", str(directory)], capture_output=True, check=False)
