"""The run controller's asset as it is staged, broken: whatever cannot be imported, CloudFormation gets its answer."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lab_constructs import functions

PROGRAM = """
import json, sys
import index
index.handler(json.loads(sys.argv[1]), None)
"""


@pytest.fixture
def answers():
    """What was put to the response URL, and that URL."""
    found = []

    class Receiver(BaseHTTPRequestHandler):
        def do_PUT(self):
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def asset(monkeypatch):
    """The directory that CDK would upload."""
    staged = []
    monkeypatch.setattr(functions.lambda_.Code, "from_asset", lambda path: staged.append(path))
    functions.staged_code("run_controller")
    return functions.Path(staged[0])


def without(name):
    return lambda asset: (asset / name).unlink()


def not_python(asset):
    (asset / "policy.py").write_text("def decide(:\n")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (without("edge.py"), "'edge'"),
        (without("training_image/core/contract.py"), "contract"),
        (not_python, "policy.py"),
    ],
)
@pytest.mark.parametrize(("kind", "status"), [("Create", "FAILED"), ("Update", "FAILED"), ("Delete", "SUCCESS")])
def test_a_broken_asset_answers_at_once_and_never_keeps_a_stack_from_being_deleted(
    asset, answers, damage, word, kind, status
):
    damage(asset)
    found, url = answers
    event = {"RequestType": kind, "StackId": "s", "RequestId": "r", "LogicalResourceId": "l", "ResponseURL": url}
    command = [sys.executable, "-c", PROGRAM, json.dumps(event)]
    result = subprocess.run(command, cwd=asset, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    (answer,) = found
    assert (answer["Status"], answer["PhysicalResourceId"], answer["RequestId"]) == (status, "training-run", "r")
    assert f"{kind} failed: " in result.stdout
    assert word in result.stdout, "the log says why"
    assert (word in answer["Reason"]) == (status == "FAILED")
