"""What S3's answers are taken to mean."""

import io
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from training_image.core.store import MissingObject, Store, remove_others

NOW = datetime.now(UTC)


@pytest.fixture
def stub():
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def test_a_key_that_does_not_exist_is_absent(stub):
    stub.add_client_error("get_object", "NoSuchKey", http_status_code=404)
    assert Store(stub.client, "b").read("k") is None


def test_a_403_is_absent_only_if_a_listing_lacks_the_key(stub):
    stub.add_client_error("get_object", "AccessDenied", http_status_code=403)
    stub.add_response("list_objects_v2", {"Contents": [{"Key": "k2", "Size": 1, "LastModified": NOW, "ETag": "e"}]})
    assert Store(stub.client, "b").read("k") is None


def test_a_403_on_an_existing_key_raises(stub):
    stub.add_client_error("get_object", "AccessDenied", http_status_code=403)
    stub.add_response("list_objects_v2", {"Contents": [{"Key": "k", "Size": 1, "LastModified": NOW, "ETag": "e"}]})
    with pytest.raises(ClientError, match="AccessDenied"):
        Store(stub.client, "b").read("k")


def test_a_403_that_cannot_be_checked_raises(stub):
    stub.add_client_error("get_object", "AccessDenied", http_status_code=403)
    stub.add_client_error("list_objects_v2", "AccessDenied", http_status_code=403)
    with pytest.raises(ClientError, match="AccessDenied"):
        Store(stub.client, "b").read("k")


@pytest.mark.parametrize("code", ["NoSuchBucket", "SlowDown", "InternalError"])
def test_an_outage_raises(stub, code):
    stub.add_client_error("get_object", code)
    with pytest.raises(ClientError, match=code):
        Store(stub.client, "b").read("k")


def test_our_own_object_met_after_a_lost_answer_counts_as_created(stub):
    stub.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
    stub.add_client_error("put_object", "PreconditionFailed", http_status_code=412)
    stub.add_response("get_object", {"Body": io.BytesIO(b'{\n "mine": 1\n}')})
    assert Store(stub.client, "b").create_json("k", {"mine": 1})


def test_create_once_in_a_real_store(lab):
    assert lab.store.create_json("once", {"by": 1})
    assert not lab.store.create_json("once", {"by": 2})
    assert lab.store.read_json("once") == {"by": 1}


def test_files_come_back_as_they_went_even_in_parts(lab, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 80_000)  # 20 MB: more than one part
    (tmp_path / "empty").touch()
    lab.store.upload([("x/big", big), ("x/empty", tmp_path / "empty")])
    lab.store.download({"x/big": tmp_path / "got" / "big", "x/empty": tmp_path / "got" / "empty"})
    assert (tmp_path / "got" / "big").read_bytes() == big.read_bytes()
    assert [(item.key, item.size) for item in lab.store.list("x/")] == [("x/big", 20_480_000), ("x/empty", 0)]
    with pytest.raises(MissingObject):
        lab.store.download({"x/none": tmp_path / "none"})
    lab.store.delete(["x/big", "x/empty", "x/none"])
    assert lab.store.list("x/") == []


# --- what lies there already -----------------------------------------------------------------------------------------
HOUR = 3600


class Counting:
    """Passes everything on, and remembers what was asked for."""

    def __init__(self, client):
        self._client, self.asked = client, []
        client.meta.events.register("before-call.s3", self._note)

    def _note(self, model, **_):
        self.asked.append(model.name)


def synced(lab, folder):
    """What a sync of ``x/`` into ``folder`` asks S3 for, besides the listing."""
    found = {item: folder / item.key for item in lab.store.list("x/")}
    counting = Counting(lab.client)
    lab.store.sync(found)
    lab.client.meta.events.unregister("before-call.s3", counting._note)
    return counting.asked


def test_a_sync_asks_once_for_each_file_that_is_not_there(lab, tmp_path):
    lab.store.put("x/a", b"aa")
    lab.store.put("x/sub/b", b"bb")
    assert synced(lab, tmp_path) == ["GetObject", "GetObject"]
    assert [(tmp_path / key).read_bytes() for key in ("x/a", "x/sub/b")] == [b"aa", b"bb"]
    assert synced(lab, tmp_path) == []
    times = {item.modified.timestamp() for item in lab.store.list("x/a")}
    assert times == {(tmp_path / "x/a").stat().st_mtime}, "its own time, so that a later change is seen"


@pytest.mark.parametrize(
    ("body", "age", "again"),
    [(b"AA", 0, False), (b"AA", HOUR, True), (b"longer", 0, True), (b"", -HOUR, True)],
    ids=["same size", "older", "other size", "empty"],
)
def test_a_file_of_equal_size_that_is_not_older_is_kept(body, age, again, lab, tmp_path):
    lab.store.put("x/a", b"aa")
    path = tmp_path / "x/a"
    path.parent.mkdir()
    path.write_bytes(body)
    changed = lab.store.list("x/")[0].modified.timestamp() - age
    os.utime(path, times=(changed, changed))
    assert bool(synced(lab, tmp_path)) == again
    assert path.read_bytes() == (b"aa" if again else body)


def test_an_object_that_changed_after_it_was_listed_keeps_the_time_of_the_listing(lab, tmp_path):
    lab.store.put("x/a", b"aa")
    (item,) = lab.store.list("x/")
    listed = replace(item, modified=item.modified - timedelta(hours=1))
    lab.store.put("x/a", b"bb")
    lab.store.sync({listed: tmp_path / "x/a"})
    assert (tmp_path / "x/a").read_bytes() == b"bb"
    assert synced(lab, tmp_path) == ["GetObject"]


def test_an_object_that_is_gone_since_it_was_listed_is_missing(lab, tmp_path):
    lab.store.put("x/a", b"aa")
    (item,) = lab.store.list("x/")
    lab.store.delete(["x/a"])
    with pytest.raises(MissingObject):
        lab.store.sync({item: tmp_path / "a"})


def test_what_is_not_kept_is_removed(tmp_path):
    for name in ("kept", "sub/kept", "stray", "sub/stray"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_others(tmp_path, {tmp_path / "kept", tmp_path / "sub/kept"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "kept", "sub"]
