"""What S3's answers are taken to mean."""

import io
from datetime import UTC, datetime

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from training_image.store import MissingObject, Store

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
    stub.add_response("list_objects_v2", {"Contents": [{"Key": "k2", "Size": 1, "LastModified": NOW}]})
    assert Store(stub.client, "b").read("k") is None


def test_a_403_on_an_existing_key_raises(stub):
    stub.add_client_error("get_object", "AccessDenied", http_status_code=403)
    stub.add_response("list_objects_v2", {"Contents": [{"Key": "k", "Size": 1, "LastModified": NOW}]})
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
    lab.store.upload({"x/big": big, "x/empty": tmp_path / "empty"})
    lab.store.download({"x/big": tmp_path / "got" / "big", "x/empty": tmp_path / "got" / "empty"})
    assert (tmp_path / "got" / "big").read_bytes() == big.read_bytes()
    assert [(item.key, item.size) for item in lab.store.list("x/")] == [("x/big", 20_480_000), ("x/empty", 0)]
    with pytest.raises(MissingObject):
        lab.store.download({"x/none": tmp_path / "none"})
    lab.store.delete(["x/big", "x/empty", "x/none"])
    assert lab.store.list("x/") == []
