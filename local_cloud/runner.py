"""Boxes: what turns an instance record of the emulator into running processes, and back into ``terminated``.

The exact bytes of the launch template's user data run as a file of their own, under an environment that holds four
variables only. EC2's states follow the box: pending, running, shutting-down (told to, or ``poweroff``), terminated.
"""

from __future__ import annotations

import base64
import json
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_cloud import clock, docker_engine, events, processes
from local_cloud.hooks import Module
from local_cloud.imds import Metadata, tree
from local_cloud.init import USER_DATA
from local_cloud.scope import Scope

SHIMS = Path(__file__).parent / "shims"
CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}
SHUTDOWN_SECONDS = 600.0
"""EC2 pulls the plug when the operating system does not end by itself."""
CREDENTIAL_SECONDS, CREDENTIAL_MARGIN = 6 * 3600, 900


@dataclass
class Box:
    """One running box."""

    instance: dict[str, Any]
    directory: Path
    scope: Scope
    metadata: Metadata
    process: subprocess.Popen[bytes]
    facts: dict[str, str]
    plug_at: float = field(default=float("inf"))

    def set_state(self, name: str) -> None:
        if self.instance["State"]["Name"] != name:
            events.instance_state(self.scope, self.instance["InstanceId"], name)
        self.instance["State"] = {"Code": CODES[name], "Name": name}


class Runner:
    """All boxes of one local cloud. Thread-safe."""

    def __init__(self, state: Path, endpoint: str) -> None:
        self.state, self.endpoint = state, endpoint
        self.preloaded = ""
        """What lets the clocks of boxes that start from now on be moved, see ``clock.preload``; empty: nothing."""
        self._boxes: dict[str, Box] = {}
        self._lock = threading.RLock()
        iam = Module("ministack.services.iam")
        self._profiles, self._new_key = iam.get("_instance_profiles"), iam.get("_gen_session_access_key")
        self._new_secret, self._new_token = iam.get("_gen_secret"), iam.get("_gen_session_token")
        sts = Module("ministack.services.sts")
        self._register, self._role_id = sts.get("register_session"), sts.get("_role_id")
        self._install_terminate()

    def _install_terminate(self) -> None:
        """TerminateInstances shuts a box down instead of declaring it gone."""
        actions = Module("ministack.services.ec2").get("_ACTION_MAP")
        terminate = actions["TerminateInstances"]

        def terminate_instances(p: dict[str, Any]) -> Any:
            ids = [value for key, value in p.items() if key.startswith("InstanceId.")]
            status, headers, body = terminate(p)
            if status == 200 and any(self.shut_down(str(i)) for i in ids):
                body = body.replace(
                    b"<code>48</code><name>terminated</name>", b"<code>32</code><name>shutting-down</name>"
                )
            return status, headers, body

        actions["TerminateInstances"] = terminate_instances

    # --- start ----------------------------------------------------------------------------------------------------
    def launch(self, instance: dict[str, Any], scope: Scope) -> None:
        """Boot ``instance`` (a record of the emulator, with UserData in base64)."""
        directory = self.state / "boxes" / instance["InstanceId"]
        user_data = directory / USER_DATA
        for path in (user_data.parent, directory / "run", directory / "var/log", directory / "tmp"):
            path.mkdir(parents=True)
        user_data.write_bytes(base64.b64decode(instance.get("UserData") or ""))
        user_data.chmod(0o700)
        facts = self._facts(instance, scope)
        role = self._role(instance, scope)
        credentials = _Credentials(self, role["Arn"], instance["InstanceId"], scope) if role else None
        metadata = Metadata(tree(facts, role["RoleName"] if role else None, credentials or dict))
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
        box = Box(instance, directory, scope, metadata, process, facts)
        box.set_state("running")
        with self._lock:
            self._boxes[instance["InstanceId"]] = box

    def _programs(self) -> Path:
        """What the machine image would have: ``aws`` (without the operator's own settings) and ``python3``."""
        directory = self.state / "bin"
        venv = Path(sys.executable).parent
        targets = {"python3": venv / "python3", "aws": venv / "aws"}
        if not directory.exists():
            directory.mkdir()
            for name, target in targets.items():
                script = directory / name
                settings = "AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null "
                script.write_text(f'#!/bin/sh\n{settings if name == "aws" else ""}exec "{target}" "$@"\n')
                script.chmod(stat.S_IRWXU)
        return directory

    def _facts(self, instance: dict[str, Any], scope: Scope) -> dict[str, str]:
        zone = instance["Placement"]["AvailabilityZone"]
        document = {
            "accountId": scope.account,
            "architecture": "x86_64",
            "availabilityZone": zone,
            "imageId": instance["ImageId"],
            "instanceId": instance["InstanceId"],
            "instanceType": instance["InstanceType"],
            "pendingTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "privateIp": instance["PrivateIpAddress"],
            "region": scope.region,
            "version": "2017-09-30",
        }
        return {
            "meta-data/instance-id": instance["InstanceId"],
            "meta-data/instance-type": instance["InstanceType"],
            "meta-data/ami-id": instance["ImageId"],
            "meta-data/local-ipv4": instance["PrivateIpAddress"],
            "meta-data/instance-life-cycle": instance.get("InstanceLifecycle") or "on-demand",
            "meta-data/placement/region": scope.region,
            "meta-data/placement/availability-zone": zone,
            "meta-data/autoscaling/target-lifecycle-state": "InService",
            "dynamic/instance-identity/document": json.dumps(document),
        }

    def _role(self, instance: dict[str, Any], scope: Scope) -> dict[str, Any] | None:
        arn = (instance.get("IamInstanceProfile") or {}).get("Arn", "")
        scope.enter()
        roles = Module("ministack.services.iam").get("_roles")
        for profile in list(self._profiles.values()):
            if profile["Arn"] == arn and profile["Roles"]:
                first = profile["Roles"][0]
                name = first["RoleName"] if isinstance(first, dict) else first
                role: dict[str, Any] | None = roles.get(name)
                return role
        return None

    def new_credentials(self, role_arn: str, session: str, scope: Scope) -> dict[str, str]:
        """A session of the role that the emulator will accept, in the shape that IMDS gives."""
        scope.enter()
        key, secret, token = self._new_key(), self._new_secret(), self._new_token()
        expiration = time.time() + CREDENTIAL_SECONDS
        name = role_arn.rsplit("/", 1)[-1]
        record = {
            "Arn": f"arn:aws:sts::{scope.account}:assumed-role/{name}/{session}",
            "UserId": f"{self._role_id(role_arn)}:{session}",
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": expiration,
            "AccountId": scope.account,
            "PrincipalType": "AssumedRole",
        }
        self._register(key, record)
        stamp = "%Y-%m-%dT%H:%M:%SZ"
        return {
            "Code": "Success",
            "LastUpdated": time.strftime(stamp, time.gmtime()),
            "Type": "AWS-HMAC",
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "Token": token,
            "Expiration": time.strftime(stamp, time.gmtime(expiration)),
        }

    # --- state ----------------------------------------------------------------------------------------------------
    def poll(self) -> None:
        """Let EC2's states follow the boxes. Called by the engine several times a second."""
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

    def shut_down(self, instance_id: str) -> bool:
        """Press the power button; False if there is no such box."""
        with self._lock:
            box = self._boxes.get(instance_id)
            if box is None:
                return False
            if box.plug_at == float("inf"):
                box.plug_at = time.monotonic() + SHUTDOWN_SECONDS
                (box.directory / "run" / "shutting-down").touch()  # before init gets to it, so that no state flickers
                box.process.send_signal(signal.SIGTERM)
            box.set_state("shutting-down")
            return True

    def kill(self, instance_id: str) -> None:
        """Pull the plug: everything of the box ends at once, without a word to it."""
        with self._lock:
            if (box := self._boxes.get(instance_id)) is not None:
                processes.kill_marked("DESTDIR", str(box.directory))
                box.process.wait()
                self._finish(instance_id, box)

    def kill_all(self) -> None:
        for instance_id in list(self._boxes):
            self.kill(instance_id)

    def scope_of(self, instance_id: str) -> Scope:
        return self._boxes[instance_id].scope

    def is_running(self, instance_id: str) -> bool:
        return instance_id in self._boxes

    def set_fact(self, instance_id: str, path: str, text: str | None) -> None:
        """Change one text of a box's metadata; None removes it."""
        with self._lock:
            if (box := self._boxes.get(instance_id)) is not None:
                if text is None:
                    box.facts.pop(path, None)
                else:
                    box.facts[path] = text


class _Credentials:
    """Credentials of one box, renewed before they expire."""

    def __init__(self, runner: Runner, role_arn: str, session: str, scope: Scope) -> None:
        self._new = lambda: runner.new_credentials(role_arn, session, scope)
        self._current: dict[str, str] = {}
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> dict[str, str]:
        with self._lock:
            if time.monotonic() >= self._renew_at:
                self._current = self._new()
                self._renew_at = time.monotonic() + CREDENTIAL_SECONDS - CREDENTIAL_MARGIN
            return self._current
