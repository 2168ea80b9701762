"""The process engine's command line: what the ``docker`` shim runs, for the CDK CLI and for an instance alike, unless
the local cloud was told to use the docker engine.

What the CDK CLI and the boot script use is modelled; other options are refused, rather than silently ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from local_cloud import docker_engine, images
from local_cloud.containers import Container
from local_cloud.image_store import Store
from local_cloud.images import EngineError
from local_cloud.registry import Registry, split_reference

STATE_VARIABLE = "LAB_LOCAL_STATE"
STOP_SECONDS = 10


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}\nSee '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(125)


def box() -> Path | None:
    """The directory of the instance that calls, which lies in ``<state>/boxes/``; None: the machine itself calls."""
    return Path(destdir) if (destdir := os.environ.get("DESTDIR")) else None


def engine_root() -> Path:
    """An instance's own engine below its DESTDIR, else the machine's in the local cloud's state directory.

    Raises:
        EngineError: neither is known.
    """
    if (directory := box()) is not None:
        return directory / "var/lib/docker"
    if state := os.environ.get(STATE_VARIABLE):
        return Path(state) / "docker"
    raise EngineError(f"Cannot connect to the Docker daemon: neither DESTDIR nor {STATE_VARIABLE} is set.")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="docker", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def add(name: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, prog=f"docker {name}", allow_abbrev=False)

    login = add("login")
    login.add_argument("--username", required=True)
    login.add_argument("--password-stdin", action="store_true", required=True)
    login.add_argument("host")
    for name in ("inspect", "push", "pull"):
        add(name).add_argument("reference")
    build = add("build")
    build.add_argument("--tag", required=True)
    build.add_argument("--build-arg", action="append")  # nothing but RUN depends on one
    build.add_argument("--platform", choices=["linux/amd64"])
    build.add_argument("context", type=Path)
    tag = add("tag")
    tag.add_argument("source")
    tag.add_argument("target")
    stop = add("stop")
    stop.add_argument("-t", type=int, dest="seconds", default=STOP_SECONDS)
    stop.add_argument("name")
    run = add("run")
    run.add_argument("--rm", action="store_true", required=True)
    run.add_argument("--name", required=True)
    run.add_argument("--ipc", choices=["host"])
    run.add_argument("--gpus")
    run.add_argument("-v", action="append", default=[], dest="volumes")
    run.add_argument("-e", action="append", default=[], dest="variables")
    run.add_argument("--entrypoint", default="")
    run.add_argument("--read-only", action="store_true")  # there is no mount namespace here: these two are not kept
    run.add_argument("--tmpfs", action="append")
    run.add_argument("image")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    return top


def environment(pairs: list[str]) -> dict[str, str]:
    """``-e K=V`` and ``-e K`` (taken from here, left out if unset), later ones winning as in Docker."""
    given = {key: value if equals else os.environ.get(key) for key, equals, value in (p.partition("=") for p in pairs)}
    return {key: value for key, value in given.items() if value is not None}


class Docker:
    """One method a command."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root)
        root.mkdir(parents=True, exist_ok=True)

    def _registry(self, reference: str) -> tuple[Registry, str, str]:
        host, repository, wanted = split_reference(reference)
        if not (self.root / "logins" / host).exists():
            raise EngineError("no basic auth credentials")
        return Registry(host), repository, wanted

    def login(self, args: argparse.Namespace) -> None:
        host = args.host.removeprefix("https://")
        if not sys.stdin.read().strip() or args.username != "AWS" or not docker_engine.ECR_HOST.fullmatch(host):
            raise EngineError(f"Error response from daemon: login attempt to https://{host}/v2/ failed: 400")
        logins = self.root / "logins"
        logins.mkdir(exist_ok=True)
        (logins / host).touch()
        print("Login Succeeded")

    def inspect(self, args: argparse.Namespace) -> None:
        if args.reference not in self.store.tags():
            raise EngineError(f"Error: No such object: {args.reference}")
        print(json.dumps([{"Id": self.store.need(args.reference)}]))

    def build(self, args: argparse.Namespace) -> None:
        image = self.store.add(*images.build(args.context), tag=args.tag)
        print(f"Successfully built {image}\nSuccessfully tagged {args.tag}")

    def tag(self, args: argparse.Namespace) -> None:
        self.store.tag(self.store.need(args.source), args.target)

    def push(self, args: argparse.Namespace) -> None:
        image = self.store.load(args.reference)
        target, repository, tag = self._registry(args.reference)
        print(f"{tag}: digest: {target.push(repository, tag, *image)}")

    def pull(self, args: argparse.Namespace) -> None:
        source, repository, wanted = self._registry(args.reference)
        config, layer, manifest = source.pull(repository, wanted)
        self.store.add(config, layer, args.reference)
        print(f"Digest: {manifest}\nStatus: Downloaded newer image for {args.reference}")

    def run(self, args: argparse.Namespace) -> int:
        if args.gpus:
            message = 'could not select device driver "" with capabilities: [[gpu]].'
            raise EngineError(f"docker: Error response from daemon: {message}", 125)
        for volume in args.volumes:
            source, _, target = volume.partition(":")
            if not source.startswith("/") or source != target:  # there is no mount namespace here
                raise EngineError(f"docker: the process engine mounts a path only onto itself, not {volume!r}.", 125)
            Path(source).mkdir(parents=True, exist_ok=True)
        if args.image not in self.store.tags():
            self.pull(argparse.Namespace(reference=args.image))
        image, container = self.store.load(args.image), Container(self.root, args.name)
        return container.run(image, environment(args.variables), args.arguments, args.entrypoint)

    def stop(self, args: argparse.Namespace) -> None:
        Container(self.root, args.name).stop(args.seconds)
        print(args.name)


def main() -> int:
    try:
        root, caller = engine_root(), box()
        state = caller.parents[1] if caller else root.parent
        if (engine := docker_engine.load(state)) is not None:
            return docker_engine.main(sys.argv[1:], engine, root, caller)
        args = parser().parse_args()
        return getattr(Docker(root), args.command)(args) or 0
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
