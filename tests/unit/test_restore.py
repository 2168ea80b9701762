"""Each kind of checkpoint that cannot be resumed from is refused with its reason, and the one before is taken."""

import json
import re

import pytest

from training_image.core.contract import MANIFEST_NAME, RunKeys
from training_image.storage import checkpoints
from training_image.storage.checkpoints import FORMAT, CheckpointId, fetch_newest

TOKENIZER = "the same in each"


@pytest.fixture
def manifests(lab, tmp_path):
    """Two published checkpoints, of steps 1 and 2; the second shares a file with whatever comes after."""
    made = []
    for step in (1, 2):
        source = tmp_path / f"source-{step}"
        (source / "weights").mkdir(parents=True)
        (source / "weights" / "model").write_text(f"weights of step {step}")
        (source / "tokenizer").write_text(TOKENIZER)
        previous = made[-1] if made else None
        made.append(
            checkpoints.publish(
                lab.store, lab.keys, source, step=step, attempt=1, settings_sha256="s", previous=previous
            )
        )
    return made


def change_manifest(lab, **changes):
    key = lab.keys.checkpoint(2, 1) + MANIFEST_NAME
    lab.store.put(key, json.dumps(lab.store.read_json(key) | changes).encode())


def flip(lab, keys):
    lab.store.put(keys["weights/model"], b"weights of step X")


def truncate(lab, keys):
    lab.store.put(keys["weights/model"], b"short")


def lose_object(lab, keys):
    lab.store.delete([keys["weights/model"]])


def lose_shared(lab, keys):
    assert "/shared/" in keys["tokenizer"]
    lab.store.delete([keys["tokenizer"]])


def flip_shared(lab, keys):
    lab.store.put(keys["tokenizer"], TOKENIZER.upper().encode())


def lose_manifest(lab, keys):
    lab.store.delete([lab.keys.checkpoint(2, 1) + MANIFEST_NAME])


def tear_manifest(lab, keys):
    key = lab.keys.checkpoint(2, 1) + MANIFEST_NAME
    lab.store.put(key, lab.store.read(key)[:-20])


def empty_manifest(lab, keys):
    lab.store.put(lab.keys.checkpoint(2, 1) + MANIFEST_NAME, b"")


def other_settings(lab, keys):
    change_manifest(lab, settings_sha256="other")


def other_run(lab, keys):
    change_manifest(lab, run_id="another")


def other_step(lab, keys):
    change_manifest(lab, step=3)


def newer_format(lab, keys):
    change_manifest(lab, schema=FORMAT + 1, compressed="with what is yet to be invented")


def path_outside(lab, keys):
    change_manifest(lab, files=[{"name": "../escape", "size": 1, "sha256": "x"}])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "weights/model has another checksum"),
        (truncate, "weights/model has 5 bytes instead of 17"),
        (lose_object, r"s3://.*/step-00000002-a1/weights/model does not exist"),
        (lose_shared, r"s3://.*/shared/[0-9a-f]{64}/tokenizer does not exist"),
        (flip_shared, "tokenizer has another checksum"),
        (lose_manifest, "it has no manifest: its upload was never finished"),
        (tear_manifest, "its manifest is unreadable: Invalid JSON: EOF .*"),
        (empty_manifest, "its manifest is unreadable: Invalid JSON: EOF .*"),
        (other_settings, "it was trained with other settings"),
        (other_run, "it belongs to run another"),
        (other_step, "it says step 3 of attempt 1"),
        (newer_format, rf"its format {FORMAT + 1} is newer than this image's \({FORMAT}\)"),
        (path_outside, "its manifest is unreadable: Value error, leaves the checkpoint"),
    ],
)
def test_an_unusable_checkpoint_is_refused_with_its_reason(lab, manifests, tmp_path, caplog, damage, reason):
    newest = manifests[-1]
    damage(lab, {entry.name: newest.key(entry) for entry in newest.files})
    found = fetch_newest(lab.store, lab.keys, "s", tmp_path / "resume")
    assert found.manifest == manifests[0]
    assert found.refused == {CheckpointId(2, 1)}
    assert (tmp_path / "resume" / "weights" / "model").read_text() == "weights of step 1"
    assert (tmp_path / "resume" / "tokenizer").read_text() == TOKENIZER
    refusal = f"Checkpoint of step 2, attempt 1 is refused: {reason}"
    assert [line for line in caplog.messages if re.fullmatch(refusal, line)], caplog.messages
    assert not (tmp_path / "resume.partial").exists()


def test_a_manifest_of_an_earlier_version_is_still_read(lab, manifests, tmp_path):
    key = lab.keys.checkpoint(1, 1) + MANIFEST_NAME
    earlier = lab.store.read_json(key) | {"schema": 1}
    for entry in earlier["files"]:
        assert entry.pop("shared") is False  # the first checkpoint shares nothing
    lab.store.put(key, json.dumps(earlier).encode())
    lose_manifest(lab, {})
    assert fetch_newest(lab.store, lab.keys, "s", tmp_path / "resume").manifest.step == 1


def test_with_nothing_to_resume_from_a_run_starts_afresh(lab, tmp_path):
    found = fetch_newest(lab.store, RunKeys("a-new-run"), "s", tmp_path / "resume")
    assert (found.manifest, found.refused, (tmp_path / "resume").exists()) == (None, frozenset(), False)
