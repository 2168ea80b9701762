"""Instances: what turns an instance record of the emulator into running processes, and back into ``terminated``.

The exact bytes of the launch template's user data run as a file of their own, under an environment that holds four
variables only. EC2's states follow the instance: pending, running, shutting-down (told to, or ``poweroff``),
terminated.
"""

from __future__ import annotations

import base64
import functools
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ministack.core.responses import get_account_id, get_region
from ministack.services import ec2, iam, sts

from local_cloud import clock, docker_engine, events, processes
from local_cloud.imds import Metadata
from local_cloud.init import USER_DATA

SHIMS = Path(__file__).parent / "shims"
CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}
SHUTDOWN_SECONDS = 600.0
"""EC2 pulls the plug when the operating system does not end by itself."""
CREDENTIAL_SECONDS = 6 * 3600
STAMP = "%Y-%m-%dT%H:%M:%SZ"


@dataclass
class Box:
    """One running instance."""

    instance: dict[str, Any]
    directory: Path
    metadata: Metadata
    process: subprocess.Popen[bytes]
    facts: dict[str, str]
    plug_at: float = field(default=float("inf"))

    def set_state(self, name: str) -> None:
        if self.instance["State"]["Name"] != name:
            kind = "EC2 Instance State-change Notification"
            events.of_instance(self.instance["InstanceId"], kind, state=name)
        self.instance["State"] = {"Code": CODES[name], "Name": name}


class Runner:
    """All instances of one local cloud. Thread-safe."""

    def __init__(self, state: Path, endpoint: str) -> None:
        self.state, self.endpoint = state, endpoint
        self.preloaded = ""
        """What lets the clocks of instances that start from now on be moved, see ``clock.preload``; empty: nothing."""
        self._boxes: dict[str, Box] = {}
        self._lock = threading.RLock()
        self._terminate_at_once = ec2._ACTION_MAP["TerminateInstances"]
        ec2._ACTION_MAP["TerminateInstances"] = self._terminate_instances

    def _terminate_instances(self, p: dict[str, Any]) -> Any:
        """TerminateInstances shuts an instance down instead of declaring it gone."""
        ids = ec2._parse_member_list(p, "InstanceId")
        if any(each not in ec2._instances for each in ids):
            return self._terminate_at_once(p)  # which says so
        items = ""
        for each in ids:
            before = ec2._instances[each]["State"]
            if self.is_running(each):
                self.shut_down(each)
            else:
                self._terminate_at_once({"InstanceId.1": each})
            states = {"previousState": before, "currentState": ec2._instances[each]["State"]}
            inner = (f"<{k}><code>{s['Code']}</code><name>{s['Name']}</name></{k}>" for k, s in states.items())
            items += f"<item><instanceId>{each}</instanceId>{''.join(inner)}</item>"
        return ec2._xml(200, "TerminateInstancesResponse", f"<instancesSet>{items}</instancesSet>")

    # --- start ----------------------------------------------------------------------------------------------------
    def launch(self, instance: dict[str, Any]) -> None:
        """Boot ``instance`` (a record of the emulator, with UserData in base64)."""
        directory = self.state / "boxes" / instance["InstanceId"]
        user_data = directory / USER_DATA
        for path in (user_data.parent, directory / "run", directory / "var/log", directory / "tmp"):
            path.mkdir(parents=True)
        user_data.write_bytes(base64.b64decode(instance.get("UserData") or ""))
        user_data.chmod(0o700)
        facts, role = _facts(instance), _role(instance)

        def lookup(path: str) -> str | None:
            if role and path == f"meta-data/iam/security-credentials/{role['RoleName']}":
                return json.dumps(_credentials(role["Arn"], instance["InstanceId"], int(time.monotonic() // 3600)))
            return facts.get(path)

        if role:
            facts["meta-data/iam/security-credentials"] = role["RoleName"]
        metadata = Metadata(lookup)
        environment = {
            "PATH": f"{SHIMS}:{self._programs()}:/usr/bin:/bin",
            "DESTDIR": str(directory),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
            **(clock.environment(directory, self.preloaded) if self.preloaded else {}),
        }
        with (directory / "var/log/init.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "local_cloud.init", str(directory)],
                cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        box = Box(instance, directory, metadata, process, facts)
        box.set_state("running")
        with self._lock:
            self._boxes[instance["InstanceId"]] = box

    def _programs(self) -> Path:
        """What the machine image would have: ``aws`` (without the operator's own settings) and ``python3``."""
        directory = self.state / "bin"
        directory.mkdir(exist_ok=True)
        no_settings = "AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null "
        for name, settings in {"python3": "", "aws": no_settings}.items():
            script = directory / name
            if not script.exists():
                script.write_text(f'#!/bin/sh\n{settings}exec "{Path(sys.executable).parent / name}" "$@"\n')
                script.chmod(0o700)
        return directory

    # --- state ----------------------------------------------------------------------------------------------------
    def poll(self) -> None:
        """Let EC2's states follow the instances. Called by the engine several times a second."""
        with self._lock:
            for instance_id, box in list(self._boxes.items()):
                if box.process.poll() is not None:
                    self._finish(instance_id, box)
                elif time.monotonic() > box.plug_at:
                    self.kill(instance_id)
                elif (box.directory / "run" / "shutting-down").exists():
                    box.set_state("shutting-down")

    def _finish(self, instance_id: str, box: Box) -> None:
        processes.kill_marked("DESTDIR", str(box.directory))
        docker_engine.remove_containers(self.state, box.directory)
        box.metadata.close()
        box.set_state("terminated")
        box.instance["_terminated_at"] = time.time()
        del self._boxes[instance_id]

    def shut_down(self, instance_id: str) -> None:
        """Press the power button of an instance, if there is one."""
        with self._lock:
            if (box := self._boxes.get(instance_id)) is None:
                return
            if box.plug_at == float("inf"):
                box.plug_at = time.monotonic() + SHUTDOWN_SECONDS
                (box.directory / "run" / "shutting-down").touch()  # before init gets to it, so that no state flickers
                box.process.send_signal(signal.SIGTERM)
            box.set_state("shutting-down")

    def kill(self, instance_id: str) -> None:
        """Pull the plug: everything of the instance ends at once, without a word to it."""
        with self._lock:
            if (box := self._boxes.get(instance_id)) is not None:
                processes.kill_marked("DESTDIR", str(box.directory))
                box.process.wait()
                self._finish(instance_id, box)

    def interrupt(self, instance_id: str, seconds: float) -> None:
        """A spot interruption: notice in the metadata now, the end after ``seconds``."""
        end = time.strftime(STAMP, time.gmtime(time.time() + seconds))
        notice = json.dumps({"action": "terminate", "time": end})
        self.set_fact(instance_id, "meta-data/spot/instance-action", notice)
        kind = "EC2 Spot Instance Interruption Warning"
        events.of_instance(instance_id, kind, **{"instance-action": "terminate"})
        timer = threading.Timer(seconds, self.kill, [instance_id])
        timer.daemon = True
        timer.start()

    def kill_all(self) -> None:
        for instance_id in list(self._boxes):
            self.kill(instance_id)

    def is_running(self, instance_id: str) -> bool:
        return instance_id in self._boxes

    def set_fact(self, instance_id: str, path: str, text: str) -> None:
        """Change one text of an instance's metadata."""
        with self._lock:
            if (box := self._boxes.get(instance_id)) is not None:
                box.facts[path] = text


def _facts(instance: dict[str, Any]) -> dict[str, str]:
    """Text of each path of the metadata below ``/latest/``, the credentials excepted."""
    document = {
        "accountId": get_account_id(),
        "architecture": "x86_64",
        "availabilityZone": instance["Placement"]["AvailabilityZone"],
        "imageId": instance["ImageId"],
        "instanceId": instance["InstanceId"],
        "instanceType": instance["InstanceType"],
        "pendingTime": time.strftime(STAMP, time.gmtime()),
        "privateIp": instance["PrivateIpAddress"],
        "region": get_region(),
        "version": "2017-09-30",
    }
    return {
        "meta-data/instance-id": instance["InstanceId"],
        "meta-data/instance-type": instance["InstanceType"],
        "meta-data/instance-life-cycle": instance.get("InstanceLifecycle") or "on-demand",
        "meta-data/placement/region": get_region(),
        "meta-data/placement/availability-zone": instance["Placement"]["AvailabilityZone"],
        "meta-data/autoscaling/target-lifecycle-state": "InService",
        "dynamic/instance-identity/document": json.dumps(document),
    }


def _role(instance: dict[str, Any]) -> dict[str, Any] | None:
    """The role of the instance's profile, if it has one."""
    arn = (instance.get("IamInstanceProfile") or {}).get("Arn")
    roles = [profile["Roles"] for profile in list(iam._instance_profiles.values()) if profile["Arn"] == arn]
    if not roles or not roles[0]:
        return None
    first = roles[0][0]
    found: dict[str, Any] | None = iam._roles.get(first["RoleName"] if isinstance(first, dict) else first)
    return found


@functools.lru_cache
def _credentials(role_arn: str, session: str, hour: int) -> dict[str, str]:
    """A session of the role that the emulator will accept, in the shape that IMDS gives; another one each hour."""
    key, secret, token = iam._gen_session_access_key(), iam._gen_secret(), iam._gen_session_token()
    expiration = time.time() + CREDENTIAL_SECONDS
    record = {
        "Arn": f"arn:aws:sts::{get_account_id()}:assumed-role/{role_arn.rsplit('/', 1)[-1]}/{session}",
        "UserId": f"{sts._role_id(role_arn)}:{session}",
        "SecretAccessKey": secret,
        "SessionToken": token,
        "Expiration": expiration,
        "AccountId": get_account_id(),
        "PrincipalType": "AssumedRole",
    }
    sts.register_session(key, record)
    return {
        "Code": "Success",
        "LastUpdated": time.strftime(STAMP, time.gmtime()),
        "Type": "AWS-HMAC",
        "AccessKeyId": key,
        "SecretAccessKey": secret,
        "Token": token,
        "Expiration": time.strftime(STAMP, time.gmtime(expiration)),
    }
