"""Publishing in the background: it survives a lost S3 and keeps what a next instance needs."""

import hashlib
import threading

import pytest

from tests.support.box import wait_for
from training_image.core.contract import RunKeys
from training_image.core.store import Store
from training_image.storage import checkpoints
from training_image.storage.checkpoints import CheckpointId, Resume, fetch_newest, published
from training_image.supervisor import publisher
from training_image.supervisor.publisher import Publisher


@pytest.fixture
def start(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(publisher, "_POLL_SECONDS", 0.02)

    def started(attempt=1, resume=None):
        resume = resume or Resume(None, frozenset())
        made = Publisher(lab.store, lab.keys, tmp_path, attempt=attempt, settings_sha256="s", resumed=resume)
        made.start()
        return made

    return started


def save(root, step, **files):
    directory = root / f"checkpoint-{step}"
    directory.mkdir()
    for name, content in {"state": str(step), **files}.items():
        (directory / name).write_text(content)
    (directory / "COMPLETE").touch()


def test_a_publish_that_fails_is_tried_again(lab, start, tmp_path, monkeypatch):
    real, failures = checkpoints.publish, iter([True, True])

    def flaky(*args, **kwargs):
        if next(failures, False):
            raise OSError("S3 is lost")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "publish", flaky)
    running = start()
    save(tmp_path, 1)
    wait_for(lambda: running.durable_step == 1, "the checkpoint")
    assert running.finish(5)
    assert published(lab.store, lab.keys) == [CheckpointId(1, 1)]


def test_finish_gives_up_in_time_when_s3_stays_lost(start, tmp_path, monkeypatch):
    def lost(*_, **__):
        raise OSError("S3 is lost")

    monkeypatch.setattr(checkpoints, "publish", lost)
    save(tmp_path, 1)
    running = start()
    assert not running.finish(0.2)
    assert running.durable_step is None
    running.abandon()


def test_two_stay_in_s3_and_none_on_disk(lab, start, tmp_path):
    running = start()
    for step in (1, 2, 3):
        save(tmp_path, step)
        wait_for(lambda step=step: running.durable_step == step, f"step {step}")
    assert running.finish(5)
    assert sorted(published(lab.store, lab.keys)) == [CheckpointId(2, 1), CheckpointId(3, 1)]
    assert not lab.store.list(lab.keys.checkpoint(1, 1))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_what_waits_is_superseded_but_never_what_is_being_uploaded(lab, start, tmp_path, monkeypatch):
    """Two lie on the disk at most beyond the one being saved, however slow S3 is."""
    real, begun, go_on = checkpoints.publish, threading.Event(), threading.Event()
    published_steps = []

    def slow(store, keys, directory, *, step, **rest):
        published_steps.append(step)
        begun.set()
        assert go_on.wait(30)
        assert (directory / "state").read_text() == str(step)
        return real(store, keys, directory, step=step, **rest)

    monkeypatch.setattr(checkpoints, "publish", slow)
    save(tmp_path, 1)
    running = start()
    assert begun.wait(30)
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert (tmp_path / "checkpoint-1" / "state").exists()
    go_on.set()
    assert running.finish(30)
    assert published_steps == [1, 3]
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_lost_s3_leaves_only_the_newest_on_disk(start, tmp_path, monkeypatch):
    def lost(*_, **__):
        raise OSError("S3 is lost")

    monkeypatch.setattr(checkpoints, "publish", lost)
    for step in (1, 2, 3):
        save(tmp_path, step)
    running = start()
    wait_for(lambda: [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"], "the others to go")
    assert running.durable_step is None
    running.abandon()


def test_what_does_not_change_is_uploaded_once_a_run(lab, start, tmp_path, monkeypatch):
    """In the second checkpoint it is known not to change; from the third on, in other attempts too, it is there."""
    uploads = []
    real = Store.upload

    def upload(self, files):
        found = list(files)
        uploads.append(found)
        real(self, found)

    monkeypatch.setattr(Store, "upload", upload)
    first = start()
    for step in (1, 2, 3):
        save(tmp_path, step, tokenizer="the same")
        wait_for(lambda step=step: first.durable_step == step, f"step {step}")
    assert first.finish(5)
    resumed = fetch_newest(lab.store, lab.keys, "s", tmp_path / "resume")
    second = start(attempt=2, resume=resumed)
    save(tmp_path, 4, tokenizer="the same")
    wait_for(lambda: second.durable_step == 4, "step 4")
    assert second.finish(5)
    holding = [[key for key, _ in files if key.endswith("tokenizer")] for files in uploads]
    sha256 = hashlib.sha256(b"the same").hexdigest()
    assert holding == [
        [lab.keys.checkpoint(1, 1) + "tokenizer"],
        [lab.keys.shared(sha256, "tokenizer")],
        [],
        [],
    ]
    again = fetch_newest(lab.store, lab.keys, "s", tmp_path / "again")
    assert again.manifest.step == 4
    assert (tmp_path / "again" / "tokenizer").read_text() == "the same"


def test_a_run_that_continues_another_keeps_files_of_its_own(lab, start, tmp_path):
    older = RunKeys("older")
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer").write_text("the same")
    manifest = None
    for step in (1, 2):
        manifest = checkpoints.publish(
            lab.store, older, source, step=step, attempt=1, settings_sha256="s", previous=manifest
        )
    running = start(resume=Resume(manifest, frozenset()))
    save(tmp_path, 3, tokenizer="the same")
    wait_for(lambda: running.durable_step == 3, "step 3")
    assert running.finish(5)
    lab.store.delete([item.key for item in lab.store.list(older.checkpoints)])
    assert fetch_newest(lab.store, lab.keys, "s", tmp_path / "got").manifest.step == 3


def test_a_refused_checkpoint_does_not_count_as_one_of_the_two(lab, start, tmp_path):
    first = start()
    save(tmp_path, 1)
    wait_for(lambda: first.durable_step == 1, "step 1")
    assert first.finish(5)
    lab.store.put(lab.keys.checkpoint(9, 1) + "MANIFEST.json", b"torn")
    second = start(attempt=2, resume=Resume(None, frozenset({CheckpointId(9, 1)})))
    save(tmp_path, 2)
    wait_for(lambda: second.durable_step == 2, "step 2")
    assert second.finish(5)
    assert {CheckpointId(1, 1), CheckpointId(2, 2)} <= set(published(lab.store, lab.keys))
