"""Doing a fault to a running instance, from outside: through the local cloud, the API, or a signal to a process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from lab.chaos.plan import Kind
from local_cloud import processes
from local_cloud.cloud import LocalCloud
from local_cloud.faults import UnknownFaultError
from training_image.core.contract import RunKeys
from training_image.core.store import Store
from training_image.storage import checkpoints

NOTICE_SECONDS = 60.0
OUTAGE_SECONDS = 5.0
SECOND_BOX_SECONDS = 120.0
CHECKPOINT_SECONDS = 300.0
JUMPS = (240.0, -240.0, 0.0)
"""Seconds that the clock is off, one after the other: AWS takes no signature that is off by more than five minutes."""


class Striker:
    """Does faults to the instances of one run at a time.

    A fault that lasts (an outage, a full disk, a clock) goes on while the run does, and is over when the next one
    strikes: that one's moment would otherwise pass unseen.
    """

    def __init__(self, cloud: LocalCloud, store: Store, group: str) -> None:
        self._cloud, self._store, self._group = cloud, store, group
        self._autoscaling = cloud.client("autoscaling")
        self._cut_short = threading.Event()
        self._lasting: threading.Thread | None = None

    def strike(self, kind: Kind, instance: str, keys: RunKeys) -> bool:
        """Returns when the fault is done or has begun; False: there was nothing to do it to."""
        self.end_lasting()
        match kind:
            case Kind.NOTICE:
                return self._ask("interrupt", instance=instance, seconds=NOTICE_SECONDS)
            case Kind.KILL_MACHINE:
                return self._ask("kill", instance=instance)
            case Kind.KILL_UPLOADING:
                return self._kill_uploading(instance, keys)
            case Kind.KILL_TRAINER:
                return self._kill(instance, "training_image.train")
            case Kind.KILL_SUPERVISOR:
                return self._kill(instance, "training_image.supervisor")
            case Kind.S3_REFUSES:
                return self._outage(refuse=True)
            case Kind.S3_DROPS:
                return self._outage(drop_uploads=True)
            case Kind.S3_SLOW:
                return self._outage(bytes_per_second=50_000.0, latency_seconds=0.5)
            case Kind.TWO_BOXES:
                return self._second_box(instance)
            case Kind.CORRUPT:
                return self._corrupt(keys) and self._ask("kill", instance=instance)
            case Kind.DISK_FULL:
                return self._fill_disk()
            case Kind.CLOCK_JUMP:
                return self._jump(instance)

    def _ask(self, fault: str, **details: Any) -> bool:
        """Whether the instance was still there for it."""
        try:
            self._cloud.fault(fault, **details)
        except UnknownFaultError:
            return False
        return True

    def end_lasting(self, *, at_once: bool = True) -> None:
        """Returns when a fault that lasts is over: now, or in its own time."""
        if self._lasting is None:
            return
        if at_once:
            self._cut_short.set()
        self._lasting.join()
        self._lasting = None

    def _go_on(self, *moves: Callable[[], object]) -> None:
        """Do ``moves``, each ``OUTAGE_SECONDS`` after the one before; the last one, which ends the fault, always."""

        def go() -> None:
            try:
                for move in moves[:-1]:
                    if self._cut_short.wait(OUTAGE_SECONDS):
                        return
                    move()
                self._cut_short.wait(OUTAGE_SECONDS)
            finally:
                moves[-1]()

        self._cut_short.clear()
        self._lasting = threading.Thread(target=go, name="lasting-fault", daemon=True)
        self._lasting.start()

    def _outage(self, **settings: Any) -> bool:
        self._cloud.fault("s3", settings=settings)
        self._go_on(lambda: self._cloud.fault("s3", settings={}))
        return True

    @contextlib.contextmanager
    def _disturbed(self, **settings: Any) -> Iterator[None]:
        self._cloud.fault("s3", settings=settings)
        try:
            yield
        finally:
            self._cloud.fault("s3", settings={})

    def _kill(self, instance: str, module: str) -> bool:
        """SIGKILL to the process of the instance that runs ``module``; an instance that has none yet or any more is
        left alone."""
        killed = False
        for process in processes.marked("DESTDIR", str(self._cloud.state / "boxes" / instance)):
            with contextlib.suppress(psutil.Error):
                if module in process.cmdline():
                    process.send_signal(signal.SIGKILL)
                    killed = True
        return killed

    def _kill_uploading(self, instance: str, keys: RunKeys) -> bool:
        """The next checkpoint's upload takes long; the machine goes when the first of its objects is there."""
        before = self._checkpoint_objects(keys)
        with self._disturbed(latency_seconds=1.0, bytes_per_second=50_000.0, only_keys_with=f"/{keys.checkpoints}"):
            return wait_for(
                lambda: bool(self._checkpoint_objects(keys) - before) or instance not in self._members(),
                CHECKPOINT_SECONDS,
            ) and self._ask("kill", instance=instance)

    def _checkpoint_objects(self, keys: RunKeys) -> set[str]:
        return {item.key for item in self._store.list(keys.checkpoints)}

    def _second_box(self, instance: str) -> bool:
        """Another instance beside a live one, as after a network partition: only one of them may go on."""
        group = {"AutoScalingGroupName": self._group, "ScalingProcesses": ["Launch"]}
        self._size(2)
        try:
            came = wait_for(lambda: len(self._members()) > 1, SECOND_BOX_SECONDS)
            # Or a third instance would take the place of the one that leaves.
            self._autoscaling.suspend_processes(**group)
            wait_for(lambda: instance not in self._members(), SECOND_BOX_SECONDS)
        finally:
            self._size(1)
            self._autoscaling.resume_processes(**group)
        return came

    def _size(self, boxes: int) -> None:
        self._autoscaling.update_auto_scaling_group(
            AutoScalingGroupName=self._group, MinSize=0, MaxSize=boxes, DesiredCapacity=boxes
        )

    def _members(self) -> list[str]:
        found = self._autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self._group])
        return [member["InstanceId"] for group in found["AutoScalingGroups"] for member in group["Instances"]]

    def _corrupt(self, keys: RunKeys) -> bool:
        """Another byte in the middle of the largest file of the newest checkpoint."""
        newest = max(checkpoints.published(self._store, keys), default=None)
        if newest is None:
            return False
        files = self._store.list(keys.checkpoint(newest.step, newest.attempt))
        victim = max(files, key=lambda item: item.size)
        body = bytearray(self._store.read(victim.key) or b"")
        body[len(body) // 2] ^= 0xFF
        self._store.put(victim.key, bytes(body))
        return True

    def _jump(self, instance: str) -> bool:
        first, *others = (partial(self._ask, "clock", instance=instance, seconds=seconds) for seconds in JUMPS)
        if not first():
            return False
        self._go_on(*others)
        return True

    def _fill_disk(self) -> bool:
        filler = self._cloud.state / "boxes" / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(2**20)):  # until there is no room
                pass
        self._go_on(lambda: filler.unlink(missing_ok=True))
        return True


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
