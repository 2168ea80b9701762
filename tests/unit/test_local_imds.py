"""The instance's metadata service answers IMDSv2 only, as EC2 does; its credentials; and the emulator behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ministack.services import sts

from local_cloud import cloud, runner
from local_cloud.cloud import LocalCloud, LocalCloudError
from local_cloud.imds import Tokens, respond

HEADER, TTL = "x-aws-ec2-metadata-token", "X-AWS-EC2-Metadata-Token-TTL-Seconds"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_needed_and_expires() -> None:
    clock = Clock()
    tokens, lookup = Tokens(clock), {"meta-data/instance-id": "i-1", "meta-data/iam/security-credentials": "box"}.get

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
    assert get("meta-data/spot/instance-action", token)[0] == 404
    clock.now = 60
    assert get("meta-data/instance-id", token)[0] == 401


def test_an_instance_keeps_its_credentials_for_an_hour_and_the_emulator_knows_each_of_them() -> None:
    role = "arn:aws:iam::000000000000:role/a/path/box"
    first, again, later = (runner._credentials(role, "i-1", hour) for hour in (1, 1, 2))
    assert first == again
    for given in (first, later):
        assert sts._sessions[given["AccessKeyId"]]["SecretAccessKey"] == given["SecretAccessKey"]
        assert sts._sessions[given["AccessKeyId"]]["Arn"].endswith(":assumed-role/box/i-1")
    assert first["AccessKeyId"] != later["AccessKeyId"]


def test_another_emulator_version_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.metadata, "version", lambda name: "1.5.34")
    with pytest.raises(LocalCloudError, match=r"^ministack 1\.5\.33 is needed, not 1\.5\.34: run `make setup`\.$"):
        LocalCloud(tmp_path).start()
    assert not (tmp_path / ".lab").exists()


def test_the_version_that_is_needed_is_the_pinned_one() -> None:
    pinned = (Path(__file__).parents[2] / "requirements-dev.txt").read_text().splitlines()
    assert f"ministack=={cloud.EMULATOR_VERSION}" in pinned
