"""Publishing in the background: it survives a lost S3 and keeps what a next box needs."""

import shutil

import pytest
from box_support import wait_for

from training_image import checkpoints, publisher
from training_image.checkpoints import CheckpointId, Resume, published
from training_image.publisher import Publisher


@pytest.fixture
def start(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(publisher, "_POLL_SECONDS", 0.02)

    def started(attempt=1, resume=None):
        resume = resume or Resume(None, frozenset())
        made = Publisher(lab.store, lab.keys, tmp_path, attempt=attempt, settings_sha256="s", resumed=resume)
        made.start()
        return made

    return started


def save(root, step):
    directory = root / f"checkpoint-{step}"
    directory.mkdir()
    (directory / "state").write_text(str(step))
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


def test_two_stay_in_s3_and_one_on_disk(lab, start, tmp_path):
    running = start()
    for step in (1, 2, 3):
        save(tmp_path, step)
        wait_for(lambda step=step: running.durable_step == step, f"step {step}")
    assert running.finish(5)
    assert sorted(published(lab.store, lab.keys)) == [CheckpointId(2, 1), CheckpointId(3, 1)]
    assert not lab.store.list(lab.keys.checkpoint(1, 1))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_refused_checkpoint_does_not_count_as_one_of_the_two(lab, start, tmp_path):
    first = start()
    save(tmp_path, 1)
    wait_for(lambda: first.durable_step == 1, "step 1")
    assert first.finish(5)
    shutil.rmtree(tmp_path / "checkpoint-1")  # another box
    lab.store.put(lab.keys.checkpoint(9, 1) + "MANIFEST.json", b"torn")
    second = start(attempt=2, resume=Resume(None, frozenset({CheckpointId(9, 1)})))
    save(tmp_path, 2)
    wait_for(lambda: second.durable_step == 2, "step 2")
    assert second.finish(5)
    assert {CheckpointId(1, 1), CheckpointId(2, 2)} <= set(published(lab.store, lab.keys))
