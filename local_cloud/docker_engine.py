"""The docker engine: the real ``docker`` in the process engine's place, where one answers.

What differs from AWS, for the CDK CLI and for an instance alike, is all in ``translate``: ECR's host is the
emulator's own registry on loopback; a container shares the machine's network and is told the two addresses that are
not AWS's there; ``--gpus`` is dropped where there is no GPU runtime; an instance's containers carry its id, because
instances share one engine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ECR_HOST = re.compile(r"(?:https://)?\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com")
BUILD_ARGS_VARIABLE = "LAB_DOCKER_BUILD_ARGS"
"""Build arguments (``NAME=value``, separated by spaces) where the public base image or index cannot be reached."""
ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT")
LABEL = "llm-tuning-lab.local"
NAMED = {"stop", "rm", "kill", "logs", "wait"}
"""Commands whose last word is a container's name."""


class NoEngineError(RuntimeError):
    """No Docker engine answers; one sentence for the operator."""


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answered, as kept in the local cloud's state directory."""

    program: str
    host: str
    registry: str
    """``127.0.0.1:PORT`` of the emulator."""
    buildkit: bool
    gpus: bool


def _path(state: Path) -> Path:
    return state / "docker-engine.json"


def load(state: Path) -> Engine | None:
    """The engine that this local cloud uses; None: the process engine."""
    try:
        return Engine(**json.loads(_path(state).read_text()))
    except FileNotFoundError:
        return None


def find(state: Path, registry: str) -> Engine:
    """Look for an engine as ``docker`` itself does (DOCKER_HOST, the current context), and keep it for ``load``.

    Raises:
        NoEngineError: there is none, or it does not answer.
    """
    program = shutil.which("docker")
    if program is None:
        raise NoEngineError("ENGINE=docker needs the docker command, and there is none on PATH.")

    def ask(*words: str, **variables: str) -> str | None:
        result = subprocess.run([program, *words], capture_output=True, text=True, env={**os.environ, **variables})
        return result.stdout.strip() if result.returncode == 0 else None

    runtimes = ask("info", "--format", "{{json .Runtimes}}")
    if not runtimes or ask("version", "--format", "{{.Server.Version}}") is None:
        raise NoEngineError("ENGINE=docker needs a Docker engine, and none answers: see `docker version`.")
    host = os.environ.get("DOCKER_HOST") or ask("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    plugin = ask("buildx", "version", DOCKER_CONFIG=str(state / "docker"))
    engine = Engine(
        program, host or "unix:///var/run/docker.sock", registry, plugin is not None, "nvidia" in json.loads(runtimes)
    )
    _path(state).write_text(json.dumps(asdict(engine)))
    return engine


def translate(words: list[str], engine: Engine, box: Path | None, build_args: str = "") -> list[str]:
    """``docker``'s arguments on AWS as its arguments here; ``box`` is the directory of the instance that calls,
    if any."""
    command, *rest = [ECR_HOST.sub(engine.registry, word) for word in words] or [""]
    if command == "build":
        extra = [word for item in build_args.split() for word in ("--build-arg", item)]
        return [command, "--network", "host", *extra, *rest]
    if box is not None and command in NAMED and rest:
        return [command, *rest[:-1], f"{box.name}-{rest[-1]}"]
    if command != "run":
        return [command, *rest]
    image = next((index for index, word in enumerate(rest) if word.startswith(engine.registry)), len(rest))
    options = ["--network", "host", "--label", f"{LABEL}={box or ''}"]
    options += [word for name in ADDRESSES for word in ("-e", name)]
    given = iter(rest[:image])
    for word in given:
        name, joined, value = word.partition("=")
        if name == "--gpus" and not engine.gpus:
            if not joined:
                next(given, None)
        elif name == "--name" and box is not None:
            options += [name, f"{box.name}-{value if joined else next(given, '')}"]
        else:
            options.append(word)
    return [command, *options, *rest[image:]]


def main(arguments: list[str], engine: Engine, root: Path, box: Path | None) -> int:
    """Become the real ``docker``, with its logins below ``root``, away from the operator's own."""
    logins = root / "client"
    logins.mkdir(parents=True, exist_ok=True)
    words = translate(arguments, engine, box, os.environ.get(BUILD_ARGS_VARIABLE, ""))
    # The emulator's registry is open to anyone: what ECR would demand is demanded here.
    if words[0] in {"push", "pull"} and engine.registry in words[-1] and not _logged_in(logins, engine.registry):
        print("no basic auth credentials", file=sys.stderr)
        return 1
    environment = {
        **os.environ,
        "DOCKER_CONFIG": str(logins),
        "DOCKER_BUILDKIT": "1" if engine.buildkit else "0",
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        **_host(engine),
    }
    os.execve(engine.program, [engine.program, *words], environment)  # noqa: S606


def _host(engine: Engine) -> Mapping[str, str]:
    return {"DOCKER_HOST": engine.host}


def _logged_in(logins: Path, registry: str) -> bool:
    path = logins / "config.json"
    return path.exists() and registry in json.loads(path.read_text()).get("auths", {})


def remove_containers(state: Path, box: Path) -> None:
    """End what an instance ran: its processes are the engine's, and do not end with the instance's own."""
    if (engine := load(state)) is not None:
        _remove(engine, f"label={LABEL}={box}")


def clean(state: Path) -> None:
    """Remove every container of this local cloud, and the names that its images had in its registry."""
    engine = load(state)
    if engine is None:
        return
    for box in (state / "boxes").glob("i-*"):
        _remove(engine, f"label={LABEL}={box}")
    listed = _output(engine, "images", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}")
    for repository, tag, digest in (line.split() for line in listed.splitlines()):
        if repository.startswith(f"{engine.registry}/"):
            _output(engine, "rmi", f"{repository}:{tag}" if tag != "<none>" else f"{repository}@{digest}")
    _path(state).unlink()


def _remove(engine: Engine, label: str) -> None:
    if found := _output(engine, "ps", "--all", "--quiet", "--filter", label).split():
        _output(engine, "rm", "--force", *found)


def _output(engine: Engine, *words: str) -> str:
    return subprocess.run(
        [engine.program, *words], capture_output=True, text=True, env={**os.environ, **_host(engine)}
    ).stdout
