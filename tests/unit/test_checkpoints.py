"""Which checkpoint is resumed from, and which retention deletes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training_image.storage.checkpoints import (
    KEEP,
    CheckpointId,
    FileEntry,
    Manifest,
    complete_checkpoints,
    describe,
    expendable,
    foreign,
    mismatch,
    resume_order,
)

NEWEST = CheckpointId(3, 1)
ids = st.builds(CheckpointId, step=st.integers(0, 50), attempt=st.integers(1, 4))


def manifest(checkpoint: CheckpointId = NEWEST, **changes) -> Manifest:
    fields = {
        "run_id": "run-1",
        "step": checkpoint.step,
        "attempt": checkpoint.attempt,
        "settings_sha256": "s",
        "files": [FileEntry(name="a", size=1, sha256="x")],
    }
    return Manifest(**fields | changes)


@given(st.lists(ids, unique=True))
def test_resume_tries_all_and_most_progress_first(found):
    order = [item.id for item in resume_order(manifest(item) for item in found)]
    assert sorted(order) == sorted(found)
    assert all((a.step, a.attempt) > (b.step, b.attempt) for a, b in itertools.pairwise(order))


@given(st.sets(ids), st.sets(ids), st.sets(ids))
def test_retention_deletes_only_what_is_older_than_the_last_two_verified(published, verified, refused):
    gone = expendable(published, verified, refused)
    assert set(gone) <= published - refused
    if len(verified) < KEEP:
        assert not gone
    else:
        oldest_kept = sorted(verified)[-KEEP]
        assert all(item < oldest_kept for item in gone)
        assert all(item >= oldest_kept for item in published - refused - set(gone))


@pytest.mark.parametrize("change", [{"run_id": "run-2"}, {"settings_sha256": "t"}, {"step": 4}, {"attempt": 2}])
def test_a_foreign_manifest_is_refused_with_a_reason(change):
    assert foreign(manifest(), NEWEST, "run-1", "s") is None
    assert foreign(manifest(**change), NEWEST, "run-1", "s")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_cannot_name_files_outside(name):
    with pytest.raises(ValidationError):
        FileEntry(name=name, size=1, sha256="x")


@given(st.dictionaries(st.from_regex(r"[a-c]{1,3}(/[a-c]{1,3})?", fullmatch=True), st.binary(max_size=20), min_size=1))
def test_a_description_verifies_until_a_byte_changes(tmp_path_factory, contents):
    root = tmp_path_factory.mktemp("checkpoint")
    for name, body in contents.items():
        path = root / name.replace("/", "_dir/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
    described = manifest(files=tuple(describe(root)))
    assert mismatch(root, described) is None
    victim = root / described.files[0].name
    body = victim.read_bytes()
    victim.write_bytes(body + b"x")
    assert "bytes instead of" in (mismatch(root, described) or "")
    if body:
        victim.write_bytes(bytes([body[0] ^ 1]) + body[1:])
        assert "checksum" in (mismatch(root, described) or "")
    victim.unlink()
    assert "missing" in (mismatch(root, described) or "")


def test_only_complete_directories_count(tmp_path):
    for name in ("checkpoint-5", "checkpoint-12", "checkpoint-20", "tmp-checkpoint-30"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-5", "checkpoint-12", "tmp-checkpoint-30"):
        (tmp_path / name / "COMPLETE").touch()
    assert complete_checkpoints(tmp_path) == {5: tmp_path / "checkpoint-5", 12: tmp_path / "checkpoint-12"}
