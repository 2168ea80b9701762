"""Tokens: read in process, sent to the Hub, found nowhere else. Trainer and Secrets Manager are real, the Hub not."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.support.runs import run_json
from tests.support.stacks import only, training_template
from training_image.core.contract import TrainerExit, WorkDir
from training_image.storage.secrets import read_secret

TOKEN = "hf_do-not-write-me-down"
SETTINGS = {"model": {"base_model": "octo/gated-model"}, "training": {"use_cpu": True}}


@pytest.fixture
def aws(s3_endpoint, monkeypatch):
    """Environment of a process in the cloud; the client under test reads it too."""
    names = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    return boto3.client("secretsmanager", region_name="us-west-2")


@pytest.fixture
def secret(aws, request):
    return aws.create_secret(Name=request.node.name)["ARN"]


def test_a_secret_that_nobody_filled_is_none(secret):
    assert read_secret(secret) is None


def test_a_secret_that_is_gone_is_none(aws, secret):
    aws.delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True)
    assert read_secret(secret) is None


@pytest.mark.parametrize(("stored", "value"), [(TOKEN, TOKEN), (f" {TOKEN}\n", TOKEN), ("\n", None)])
def test_the_value_comes_without_the_white_space_of_a_pasted_file(aws, secret, stored, value):
    aws.put_secret_value(SecretId=secret, SecretString=stored)
    assert read_secret(secret) == value


def test_a_refusal_never_reads_as_absent(monkeypatch):
    class Refusing:
        class exceptions:
            ResourceNotFoundException = KeyError

        def get_secret_value(self, SecretId):
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "GetSecretValue")

    monkeypatch.setattr(boto3, "client", lambda *_, **__: Refusing())
    with pytest.raises(ClientError):
        read_secret("arn:aws:secretsmanager:us-west-2:1:secret:x")


# --- the trainer ------------------------------------------------------------------------------------------------------
@pytest.fixture
def hub():
    """A Hub whose one model is gated; it keeps the Authorization headers it was sent."""
    seen: list[str | None] = []

    class Gated(BaseHTTPRequestHandler):
        def do_HEAD(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(403 if self.headers.get("Authorization") else 401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to model octo/gated-model is restricted.")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def train(folder, hub_address, secret):
    """Run the trainer on the gated model; returns its work directory and all that it printed."""
    work = WorkDir(folder / "work")
    work.data.mkdir(parents=True)
    (work.data / "train.jsonl").write_text("".join(f'{{"prompt": "{n}", "completion": "b"}}\n' for n in range(9)))
    work.run.write_text(json.dumps(run_json(settings=SETTINGS, secrets={"hugging_face": secret})))
    home = folder / "home"
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LLM_"))}
    done = subprocess.run(
        [sys.executable, "-m", "training_image.train", "--work-dir", str(work.root)],
        env={**inherited, "HF_ENDPOINT": hub_address, "HOME": str(home), "HF_HOME": str(home / "hf")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == TrainerExit.BAD_INPUT, done.stdout
    return work, done.stdout


def test_a_gated_model_without_a_token_ends_with_how_to_give_one(hub, secret, tmp_path):
    address, seen = hub
    work, _ = train(tmp_path, address, secret)
    sentence = work.error.read_text()
    assert "Base model octo/gated-model could not be loaded" in sentence
    assert f"aws secretsmanager put-secret-value --secret-id {secret} --secret-string file://token.txt" in sentence
    assert set(seen) == {None}


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, aws, secret, tmp_path):
    address, seen = hub
    aws.put_secret_value(SecretId=secret, SecretString=TOKEN)
    work, output = train(tmp_path, address, secret)
    assert set(seen) == {f"Bearer {TOKEN}"}
    assert "accept its terms" in work.error.read_text()
    assert TOKEN not in output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


# --- the template -----------------------------------------------------------------------------------------------------
def test_the_instance_may_read_the_token_it_uses_and_the_template_knows_only_where_it_lies():
    template = training_template()
    name = "/llm-tuning-lab/default/DataStack/HuggingFaceTokenSecretArn"
    (parameter,) = (key for key, value in template.find_parameters("*").items() if value.get("Default") == name)
    reading = [
        statement
        for policy in template.find_resources("AWS::IAM::Policy").values()
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if "secretsmanager" in json.dumps(statement)
    ]
    expected = {"Sid": "ReadsTokens", "Effect": "Allow", "Action": "secretsmanager:GetSecretValue"}
    assert reading == [{**expected, "Resource": {"Ref": parameter}}]
    spec = json.dumps(only(template, "Custom::TrainingRun")["Properties"]["Spec"])
    assert "hugging_face" in spec
    assert "resolve:secretsmanager" not in json.dumps(template.to_json())
