"""DEMO_FAULT: when it strikes, and what it refuses."""

import pytest

from lab.chaos.plan import Kind
from lab.demo import fault
from lab.demo.environment import InputError
from lab.demo.fault import DemoFault, Saboteur
from lab.operator.follow import Place
from training_image.core.contract import Phase, RunKeys
from training_image.core.records import Heartbeat
from training_image.core.store import Store

PLACE = Place(Store(None, "bucket"), RunKeys("run-1"), "group")


class Cloud:
    def __init__(self):
        self.faults = []

    def fault(self, name, **details):
        self.faults.append((name, details))

    def client(self, name):
        return None


@pytest.fixture
def strikes(monkeypatch):
    found = []

    class Striker:
        def __init__(self, cloud, store, group):
            pass

        def strike(self, kind, instance, keys):
            found.append((kind, instance))

    monkeypatch.setattr(fault, "Striker", Striker)
    return found


def test_an_unknown_fault_is_refused_before_anything_starts():
    with pytest.raises(InputError, match="must be one of: silent-exit-0, no-upload, kill-supervisor, kill-machine"):
        fault.from_shell({"DEMO_FAULT": "earthquake"})
    assert fault.from_shell({}) is None
    assert fault.from_shell({"DEMO_FAULT": "no-upload"}) is DemoFault.NO_UPLOAD


def test_a_kill_waits_for_work_that_a_durable_checkpoint_does_not_hold(strikes):
    saboteur = Saboteur(DemoFault.KILL_MACHINE, Cloud())
    saboteur.before_the_run()
    for beat in (
        Heartbeat(),
        Heartbeat(phase=Phase.TRAINING, step=3, instance_id="i-1"),
        Heartbeat(phase=Phase.TRAINING, step=3, durable_step=3, instance_id="i-1"),
        Heartbeat(phase=Phase.EVALUATING_AFTER, step=9, durable_step=3, instance_id="i-1"),
    ):
        saboteur.at(PLACE, beat)
    assert strikes == []
    assert not saboteur.struck
    for step in (4, 5):
        saboteur.at(PLACE, Heartbeat(phase=Phase.TRAINING, step=step, durable_step=3, instance_id="i-1"))
    assert strikes == [(Kind.KILL_MACHINE, "i-1")], "once"
    assert saboteur.struck


def test_a_silent_exit_and_a_refused_adapter_are_there_from_the_start(strikes):
    cloud = Cloud()
    silent, upload, none = (Saboteur(kind, cloud) for kind in (DemoFault.SILENT_EXIT_0, DemoFault.NO_UPLOAD, None))
    for saboteur in (silent, upload, none):
        saboteur.before_the_run()
        assert saboteur.struck
    assert "training_command=python -c pass" in silent.options
    assert cloud.faults == [("s3", {"settings": {"refuse": True, "only_keys_with": "/adapter/"}})]
    assert none.options == ()
