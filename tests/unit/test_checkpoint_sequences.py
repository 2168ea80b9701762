"""Checkpoints through any sequence of publish, crash, outage, damage and claim, several attempts at once.

S3 is a model of itself; everything else is the product's. After every single object written or deleted the newest
checkpoint that was ever whole must still be there to resume from (or the one before, while the newest is damaged).
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.examples import examples
from training_image.core.contract import COMPLETE_MARKER, MANIFEST_NAME, RunKeys
from training_image.core.store import MissingObject
from training_image.storage import checkpoints
from training_image.storage.checkpoints import CheckpointId, Manifest
from training_image.supervisor.publisher import Publisher

KEYS = RunKeys("run")
SETTINGS = "s"


class Crash(BaseException):
    """The instance is gone: nothing of it runs any more, no handler either."""


class ModelStore:
    """S3 as a dictionary, changed one object at a time; after ``fail_at`` more changes comes ``failure``."""

    def __init__(self):
        self.objects = {}
        self.fail_at, self.failure = None, None
        self.after_change = lambda: None

    def _change(self, key, body):
        if self.fail_at == 0:
            raise self.failure
        if self.fail_at is not None:
            self.fail_at -= 1
        if body is None:
            self.objects.pop(key, None)
        else:
            assert self.objects.get(key, body) == body, f"{key} was written twice, with different contents"
            self.objects[key] = body
        self.after_change()

    def put(self, key, body):
        self._change(key, body)

    def upload(self, files):
        for key, path in files.items():
            self._change(key, path.read_bytes())

    def delete(self, keys):
        for key in keys:
            self._change(key, None)

    def read(self, key):
        return self.objects.get(key)

    def list(self, prefix):
        return [SimpleNamespace(key=key) for key in self.objects if key.startswith(prefix)]

    def download(self, files):
        for key, path in files.items():
            if key not in self.objects:
                raise MissingObject(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.objects[key])


class Attempts(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = ModelStore()
        self.store.after_change = self.nothing_is_lost
        self.finished: set[CheckpointId] = set()  # ever published in full
        self.damaged: set[CheckpointId] = set()
        self.attempts = {}  # number: [publisher, step]
        self.number = 0
        self.claim()

    def teardown(self):
        shutil.rmtree(self.folder)

    # --- what happens ---------------------------------------------------------------------------------------------
    @rule()
    def claim(self):
        """Another instance begins; those before may not know yet."""
        self.number += 1
        resume = self.folder / f"resume-{self.number}"
        found = checkpoints.fetch_newest(self.store, KEYS, SETTINGS, resume)
        usable = self.usable()
        assert (found.manifest.id if found.manifest else None) == max(usable, default=None)
        if found.manifest:
            assert (resume / "weights").read_text() == str(found.manifest.step)
        publisher = Publisher(
            self.store,
            KEYS,
            self.folder / str(self.number),
            attempt=self.number,
            settings_sha256=SETTINGS,
            resumed=found,
        )
        self.attempts[self.number] = [publisher, found.manifest.step if found.manifest else 0]

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        steps=st.integers(1, 3),
        saved=st.integers(1, 2),
        fail_at=st.none() | st.integers(0, 12),
        failure=st.sampled_from([Crash, OSError]),
    )
    def publish(self, data, steps, saved, fail_at, failure):
        """An attempt trains on and publishes; S3 is lost on the way, or the instance."""
        number = data.draw(st.sampled_from(sorted(self.attempts)))
        publisher, step = self.attempts[number]
        for _ in range(saved):
            step += steps
            self.save(number, step)
        self.attempts[number][1] = step
        waiting = checkpoints.complete_checkpoints(self.folder / str(number))
        self.store.fail_at, self.store.failure = fail_at, failure
        try:
            done = publisher._publish(waiting)
        except Crash:
            del self.attempts[number]
            return
        finally:
            self.store.fail_at = None
        left = checkpoints.complete_checkpoints(self.folder / str(number))
        if done:
            assert publisher.durable_step == step
            assert CheckpointId(step, number) in self.finished
            assert not left
        else:
            assert set(left) == {step}

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def fence(self, data):
        """An attempt has seen a newer claim, or its instance is lost between two uploads."""
        del self.attempts[data.draw(st.sampled_from(sorted(self.attempts)))]

    @precondition(lambda self: len(self.newest_two() - self.damaged) == 2)
    @rule(data=st.data(), how=st.sampled_from(["flip", "lose", "manifest"]))
    def damage(self, data, how):
        """One of the two newest becomes unusable, whichever."""
        victim = data.draw(st.sampled_from(sorted(self.newest_two())))
        prefix = KEYS.checkpoint(victim.step, victim.attempt)
        if how == "flip":
            self.store.objects[prefix + "weights"] = b"?"
        else:
            del self.store.objects[prefix + (MANIFEST_NAME if how == "manifest" else "weights")]
        self.damaged.add(victim)

    # --- what holds -----------------------------------------------------------------------------------------------
    @invariant()
    def nothing_is_lost(self):
        usable = self.usable()
        self.finished |= usable
        whole = self.newest_two() - self.damaged
        assert not whole or max(whole) in usable
        assert set(checkpoints.published(self.store, KEYS)) <= usable | self.damaged, "a manifest without its files"

    @invariant()
    def what_is_stored_is_bounded(self):
        # Two for each attempt, one that its crash left half deleted, and those that were damaged.
        with_manifest = [key for key in self.store.objects if key.endswith(MANIFEST_NAME)]
        assert len(with_manifest) <= 3 * self.number + len(self.damaged)
        assert len({key for key in self.store.objects if "/shared/" in key}) <= 2  # tokenizer, and the marker

    def newest_two(self):
        return set(sorted(self.finished)[-2:])

    def usable(self):
        """The checkpoints whose every byte is there, by a look at S3 that shares no code with the product."""
        found = set()
        for key, body in self.store.objects.items():
            if key.endswith(MANIFEST_NAME):
                value = json.loads(body)
                manifest = Manifest.model_validate(value)
                contents = [(self.store.objects.get(manifest.key(entry)), entry.sha256) for entry in manifest.files]
                if all(content is not None and hashlib.sha256(content).hexdigest() == sha for content, sha in contents):
                    found.add(manifest.id)
        return found

    def save(self, number, step):
        directory = self.folder / str(number) / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        (directory / "weights").write_text(str(step))
        (directory / "tokenizer").write_text("the same")
        (directory / COMPLETE_MARKER).touch()


TestSequences = Attempts.TestCase
TestSequences.settings = settings(max_examples=examples(40), stateful_step_count=25)
