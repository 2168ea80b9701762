"""How a fault is done, with cloud and S3 in memory: when it strikes, what it leaves behind, when it counts as done."""

from types import SimpleNamespace

import pytest

from lab.chaos import strike
from lab.chaos.plan import Kind
from lab.chaos.strike import JUMPS, Striker
from local_cloud.faults import UnknownFaultError
from training_image.core.contract import MANIFEST_NAME, RunKeys

KEYS = RunKeys("run-1")


class Cloud:
    """One instance, ``i-1``, until it is killed."""

    def __init__(self, tmp_path):
        self.state = tmp_path
        self.asked = []
        self.alive = True

    def client(self, name):
        return self

    def describe_auto_scaling_groups(self, AutoScalingGroupNames):
        return {"AutoScalingGroups": [{"Instances": [{"InstanceId": "i-1"}] if self.alive else []}]}

    def fault(self, name, **details):
        if "instance" in details and not self.alive:
            raise UnknownFaultError("There is no running instance.")
        self.asked.append((name, details))
        self.alive = self.alive and name != "kill"

    @property
    def s3_settings(self):
        return [details["settings"] for name, details in self.asked if name == "s3"]


class Store:
    """``later`` appears when it has been looked at twice."""

    def __init__(self, *keys, later=()):
        self.objects = dict.fromkeys(keys, b"0123456789")
        self.later, self.looks = later, 0

    def list(self, prefix):
        self.looks += 1
        if self.looks > 2:
            self.objects |= dict.fromkeys(self.later, b"0123456789")
        return [
            SimpleNamespace(key=key, size=len(body)) for key, body in self.objects.items() if key.startswith(prefix)
        ]

    def read(self, key):
        return self.objects[key]

    def put(self, key, body):
        self.objects[key] = body


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    monkeypatch.setattr(strike, "OUTAGE_SECONDS", 0.0)
    return Cloud(tmp_path)


def test_the_machine_goes_when_the_first_object_of_a_checkpoint_is_there(cloud):
    old, new = KEYS.checkpoint(8, 1), KEYS.checkpoint(16, 1)
    store = Store(old + MANIFEST_NAME, later=[new + "optimizer.pt"])
    assert Striker(cloud, store, "group").strike(Kind.KILL_UPLOADING, "i-1", KEYS)
    assert [name for name, _ in cloud.asked] == ["s3", "kill", "s3"], "before the slow upload can end"
    assert cloud.s3_settings[0]["only_keys_with"] in "/bucket/" + new
    assert cloud.s3_settings[-1] == {}


def test_without_an_upload_nobody_is_killed(cloud, monkeypatch):
    monkeypatch.setattr(strike, "CHECKPOINT_SECONDS", 0.0)
    assert not Striker(cloud, Store(), "group").strike(Kind.KILL_UPLOADING, "i-1", KEYS)
    assert cloud.alive
    assert cloud.s3_settings[-1] == {}


@pytest.mark.parametrize(
    "kind", [Kind.NOTICE, Kind.KILL_MACHINE, Kind.KILL_UPLOADING, Kind.KILL_TRAINER, Kind.CLOCK_JUMP]
)
def test_an_instance_that_is_gone_was_not_struck(cloud, kind):
    cloud.alive = False
    assert not Striker(cloud, Store(), "group").strike(kind, "i-1", KEYS)


def test_one_byte_of_the_newest_checkpoint_changes_and_the_machine_goes(cloud):
    old, new = (KEYS.checkpoint(step, 1) + name for step in (8, 16) for name in (MANIFEST_NAME,))
    store = Store(old, new)
    assert Striker(cloud, store, "group").strike(Kind.CORRUPT, "i-1", KEYS)
    assert store.objects[old] == b"0123456789"
    assert sum(a != b for a, b in zip(store.objects[new], b"0123456789", strict=True)) == 1
    assert not cloud.alive


def test_without_a_checkpoint_there_is_nothing_to_corrupt(cloud):
    assert not Striker(cloud, Store(), "group").strike(Kind.CORRUPT, "i-1", KEYS)
    assert cloud.alive


def test_a_clock_that_jumped_is_right_again_in_the_end(cloud):
    striker = Striker(cloud, Store(), "group")
    assert striker.strike(Kind.CLOCK_JUMP, "i-1", KEYS)
    striker.end_lasting(at_once=False)
    assert [details["seconds"] for _, details in cloud.asked] == list(JUMPS)
    assert JUMPS[-1] == 0
    assert max(map(abs, JUMPS)) < 300, "AWS refuses signatures that are further off"


FOR_EVER = 3600.0


def test_a_fault_that_lasts_does_not_hold_up_the_next_ones_moment(cloud, monkeypatch):
    """A supervisor that was to be killed at step 9 was killed at step 50, when a clock had finished jumping."""
    monkeypatch.setattr(strike, "OUTAGE_SECONDS", FOR_EVER)
    striker = Striker(cloud, Store(), "group")
    assert striker.strike(Kind.CLOCK_JUMP, "i-1", KEYS)
    assert [details["seconds"] for _, details in cloud.asked] == [JUMPS[0]], "it has begun, and nobody waits"
    assert striker.strike(Kind.KILL_MACHINE, "i-1", KEYS)
    assert [details.get("seconds", name) for name, details in cloud.asked] == [JUMPS[0], JUMPS[-1], "kill"]


@pytest.mark.parametrize("kind", [Kind.S3_REFUSES, Kind.S3_DROPS, Kind.S3_SLOW])
def test_an_outage_is_over_when_the_next_fault_strikes(cloud, monkeypatch, kind):
    monkeypatch.setattr(strike, "OUTAGE_SECONDS", FOR_EVER)
    striker = Striker(cloud, Store(), "group")
    assert striker.strike(kind, "i-1", KEYS)
    (during,) = cloud.s3_settings
    assert during
    assert striker.strike(Kind.NOTICE, "i-1", KEYS)
    assert cloud.s3_settings == [during, {}]
    striker.end_lasting()
    assert cloud.s3_settings == [during, {}], "once"


def test_an_outage_that_nothing_follows_lasts_its_time(cloud):
    striker = Striker(cloud, Store(), "group")
    assert striker.strike(Kind.S3_REFUSES, "i-1", KEYS)
    striker.end_lasting(at_once=False)
    assert cloud.s3_settings[-1] == {}


def test_a_full_disk_has_room_again_when_the_next_fault_strikes(cloud, monkeypatch):
    monkeypatch.setattr(strike, "OUTAGE_SECONDS", FOR_EVER)
    boxes = cloud.state / "boxes"
    boxes.mkdir()

    class Full:
        def __enter__(self):
            (boxes / "filler").touch()
            return self

        def __exit__(self, *_):
            return None

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", lambda self, *_, **__: Full())
    striker = Striker(cloud, Store(), "group")
    assert striker.strike(Kind.DISK_FULL, "i-1", KEYS)
    assert (boxes / "filler").exists()
    striker.end_lasting()
    assert not (boxes / "filler").exists()
