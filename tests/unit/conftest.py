"""Shared fixtures: S3 on loopback, and an instance that runs the real supervisor against it."""

import os
import socket
import subprocess
import sys
import uuid

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from tests.support.box import REGION, Lab, fake_imds, wait_for


def _client(endpoint: str):
    retries = Config(retries={"total_max_attempts": 1})
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=endpoint, region_name=REGION, config=retries, **keys)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory):
    """Address of a plain emulator with its own clean environment, up for the whole session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("emulator")
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "HOME": str(folder)}
    environment = {"PATH": os.environ["PATH"], **settings}
    endpoint = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )

    def answers() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            return bool(_client(endpoint).list_buckets())
        except BotoCoreError:
            return False

    try:
        wait_for(answers, "the emulator")
        yield endpoint
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def lab(s3_endpoint, tmp_path):
    with fake_imds() as imds:
        lab = Lab(_client(s3_endpoint), s3_endpoint, imds, tmp_path)
        yield lab
        lab.close()


@pytest.fixture
def shell(s3_endpoint, monkeypatch, tmp_path):
    """A shell that is signed in, a clone without lab.yaml, and a lab of its own in the account."""
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("lab.cli.ROOT", tmp_path)
    lab = "l" + uuid.uuid4().hex[:8]
    (tmp_path / "lab.yaml").write_text(f"lab: {lab}\n")
    return lab
