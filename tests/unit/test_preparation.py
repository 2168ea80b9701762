"""What lies in the work directory before training is what S3 has, whatever was fetched or left there before."""

import os

from training_image.core.contract import WorkDir
from training_image.supervisor import preparation


def fetch(lab, work):
    preparation.download_data(lab.store, lab.data_uri, work.data)
    return {
        path.relative_to(work.data).as_posix(): path.read_bytes() for path in work.data.rglob("*") if path.is_file()
    }


def test_a_training_file_that_was_removed_is_not_trained_on(lab):
    lab.training.put("data/more/old.jsonl", b"{}")
    assert set(fetch(lab, lab.work)) == {"train.jsonl", "more/old.jsonl"}
    lab.training.delete(["data/more/old.jsonl"])
    assert set(fetch(lab, lab.work)) == {"train.jsonl"}


def test_a_file_that_became_a_folder_is_replaced(lab):
    lab.training.put("data/a.jsonl", b"{}")
    fetch(lab, lab.work)
    lab.training.delete(["data/a.jsonl"])
    lab.training.put("data/a.jsonl/b.jsonl", b"[]")
    assert set(fetch(lab, lab.work)) == {"train.jsonl", "a.jsonl/b.jsonl"}


def test_another_attempt_keeps_what_was_fetched_and_forgets_the_rest(lab):
    work = WorkDir(lab.folder / "work")
    for folder in (work.data, work.model, work.checkpoints, work.resume, work.metrics):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    preparation.clear(work)
    assert sorted(path.name for path in work.root.iterdir()) == ["data", "model"]


def test_data_that_user_data_fetched_is_kept(lab):
    (item,) = lab.training.list("data/")
    path = lab.work.data / "train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * item.size)  # to be told from the object
    os.utime(path, times=(int(item.modified.timestamp()),) * 2)  # as `aws s3 sync` leaves it
    assert fetch(lab, lab.work) == {"train.jsonl": b"x" * item.size}
