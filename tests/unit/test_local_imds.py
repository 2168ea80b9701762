"""The box's metadata service answers IMDSv2 only, as EC2 does."""

from __future__ import annotations

import json

import pytest

from local_cloud.hooks import IncompatibleEmulatorError, Module
from local_cloud.imds import Tokens, respond, tree

HEADER, TTL = "x-aws-ec2-metadata-token", "X-AWS-EC2-Metadata-Token-TTL-Seconds"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_needed_and_expires() -> None:
    clock = Clock()
    tokens, lookup = Tokens(clock), tree({"meta-data/instance-id": "i-1"}, "box", lambda: {"AccessKeyId": "k"})

    def get(path: str, token: str | None) -> tuple[int, str]:
        return respond("GET", f"/latest/{path}", {HEADER: token} if token else {}, tokens, lookup)

    assert respond("PUT", "/latest/api/token", {}, tokens, lookup)[0] == 400
    assert respond("PUT", "/latest/api/token", {TTL: "21601"}, tokens, lookup)[0] == 400
    status, token = respond("PUT", "/latest/api/token", {TTL: "60"}, tokens, lookup)
    assert status == 200
    assert get("meta-data/instance-id", None)[0] == 401
    assert get("meta-data/instance-id", "forged")[0] == 401
    assert get("meta-data/instance-id", token) == (200, "i-1")
    assert get("meta-data/iam/security-credentials/", token) == (200, "box")
    assert json.loads(get("meta-data/iam/security-credentials/box", token)[1]) == {"AccessKeyId": "k"}
    assert get("meta-data/iam/security-credentials/other", token)[0] == 404
    assert get("meta-data/spot/instance-action", token)[0] == 404
    clock.now = 60
    assert get("meta-data/instance-id", token)[0] == 401


def test_another_emulator_version_fails_with_one_sentence() -> None:
    with pytest.raises(IncompatibleEmulatorError, match=r"ministack\.services\.ecr\._no_such_thing") as caught:
        Module("ministack.services.ecr").get("_no_such_thing")
    assert "\n" not in str(caught.value)
