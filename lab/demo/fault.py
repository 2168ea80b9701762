"""``DEMO_FAULT``: one thing goes wrong in the demo, done from outside. What the run makes of it is the point."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from lab.chaos.plan import Kind
from lab.chaos.strike import Striker
from lab.demo.environment import InputError
from lab.operator.follow import Place
from local_cloud.cloud import LocalCloud
from training_image.core.contract import Phase
from training_image.core.records import Heartbeat

FEW_ATTEMPTS = ("-c", "max_attempts=2")


class DemoFault(StrEnum):
    SILENT_EXIT_0 = "silent-exit-0"  # a trainer that exits with 0 and has done nothing
    NO_UPLOAD = "no-upload"  # S3 takes everything but the adapter
    KILL_SUPERVISOR = "kill-supervisor"
    KILL_MACHINE = "kill-machine"


_KILLS = {DemoFault.KILL_SUPERVISOR: Kind.KILL_SUPERVISOR, DemoFault.KILL_MACHINE: Kind.KILL_MACHINE}


def from_shell(shell: Mapping[str, str]) -> DemoFault | None:
    """Raises: InputError: there is no such fault."""
    text = shell.get("DEMO_FAULT", "").strip()
    if not text:
        return None
    if text not in set(DemoFault):
        raise InputError(f"DEMO_FAULT is {text!r}; it must be one of: {', '.join(DemoFault)}.")
    return DemoFault(text)


class Saboteur:
    """Does the demo's fault, or nothing. ``struck``: it has been done."""

    def __init__(self, fault: DemoFault | None, cloud: LocalCloud) -> None:
        self._fault, self._cloud = fault, cloud
        self.struck = fault is None
        self.options: tuple[str, ...] = ()
        """For ``cdk deploy TrainingStack``."""
        if fault is DemoFault.SILENT_EXIT_0:
            self.options = ("-c", "training_command=python -c pass", *FEW_ATTEMPTS)
        elif fault is DemoFault.NO_UPLOAD:
            self.options = FEW_ATTEMPTS

    def before_the_run(self) -> None:
        if self._fault is DemoFault.NO_UPLOAD:
            self._cloud.fault("s3", settings={"refuse": True, "only_keys_with": "/adapter/"})
        self.struck = self.struck or self._fault not in _KILLS

    def at(self, place: Place, heartbeat: Heartbeat) -> None:
        """Strike once the first instance trains beyond a durable checkpoint, so that there is something to resume
        from."""
        if self.struck or self._fault is None or heartbeat.phase is not Phase.TRAINING:
            return
        durable, instance = heartbeat.durable_step or 0, heartbeat.instance_id
        if durable and instance and (heartbeat.step or 0) > durable:
            Striker(self._cloud, place.store, place.group).strike(_KILLS[self._fault], instance, place.keys)
            self.struck = True
