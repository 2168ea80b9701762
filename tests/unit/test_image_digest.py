"""Which image a run is pinned to."""

from __future__ import annotations

from datetime import UTC, datetime

import image_digest
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_digest import NoImageError, newest, pinned

REPOSITORY = "123456789012.dkr.ecr.us-east-1.amazonaws.com/lab/images"
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


class FakeEcr:
    def __init__(self, *pages: list[dict]) -> None:
        self.pages = pages

    def get_paginator(self, operation):
        assert operation == "describe_images"
        return self

    def paginate(self, repositoryName, filter):
        assert (repositoryName, filter) == ("lab/images", {"tagStatus": "TAGGED"})
        return [{"imageDetails": list(page)} for page in self.pages]

    def describe_images(self, repositoryName, imageIds):
        assert (repositoryName, imageIds) == ("lab/images", [{"imageTag": "v1"}])
        return {"imageDetails": [{"imageDigest": "sha256:v1"}]}


@pytest.fixture
def ecr(monkeypatch):
    def use(*pages):
        monkeypatch.setattr(image_digest.boto3, "client", lambda name: FakeEcr(*pages))

    return use


def test_latest_is_the_newest_push_from_main_on_whatever_page(ecr):
    old = {"imageDigest": "sha256:old", "imageTags": ["main-20261124T101500Z-0123456789ab", "run-run-1a2b3c4d-1"]}
    new = {"imageDigest": "sha256:new", "imageTags": ["main-20261124T101501Z-0000000000aa"]}
    ecr([old], [new, {"imageDigest": "sha256:asset", "imageTags": ["lab-ffff"]}])
    assert pinned(f"{REPOSITORY}:latest") == f"{REPOSITORY}@sha256:new"


def test_a_tag_is_pinned_and_a_digest_stays(ecr):
    ecr()
    assert pinned(f"{REPOSITORY}:v1") == f"{REPOSITORY}@sha256:v1"
    assert pinned(f"{REPOSITORY}@sha256:abc") == f"{REPOSITORY}@sha256:abc"


def test_latest_without_a_push_from_main_says_what_to_do(ecr):
    ecr([{"imageDigest": "sha256:asset", "imageTags": ["lab-ffff", "main-thing"]}])
    with pytest.raises(NoImageError, match=r"lab/images has no image of a push to main: run the workflow"):
        pinned(f"{REPOSITORY}:latest")


@given(st.lists(TIMES, min_size=1), st.randoms())
def test_the_time_decides_not_the_commit_nor_the_order(times, random):
    images = [
        {"imageDigest": str(at), "imageTags": [f"main-{at:%Y%m%dT%H%M%SZ}-{random.getrandbits(48):012x}"]}
        for at in times
    ]
    newest_second = max(times).replace(microsecond=0)
    assert datetime.fromisoformat(newest(images) or "").replace(microsecond=0) == newest_second
