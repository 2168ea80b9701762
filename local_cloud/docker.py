"""The process engine's command line: what the ``docker`` shim runs, for the CDK CLI and for a box alike, unless the
local cloud was told to use the docker engine.

Options that Docker refuses are refused; so are those that are not modelled, rather than silently ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import sys
from pathlib import Path
from typing import NoReturn

from local_cloud import docker_engine, images, registry
from local_cloud.containers import DEFAULT_STOP_SECONDS, Containers, RunOptions
from local_cloud.image_store import Store
from local_cloud.images import EngineError

STATE_VARIABLE = "LAB_LOCAL_STATE"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}\nSee '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(125)


def box() -> Path | None:
    """The directory of the box that calls, which lies in ``<state>/boxes/``; None: the machine itself calls."""
    return Path(destdir) if (destdir := os.environ.get("DESTDIR")) else None


def engine_root() -> Path:
    """A box's own engine below its DESTDIR, else the machine's in the local cloud's state directory."""
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
    login.add_argument("-u", "--username", required=True)
    login.add_argument("--password-stdin", action="store_true", required=True)
    login.add_argument("host")
    for name in ("inspect", "push", "pull"):
        add(name).add_argument("reference")
    build = add("build")
    build.add_argument("-t", "--tag", required=True)
    build.add_argument("-f", "--file")
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("--platform", choices=["linux/amd64"])
    build.add_argument("context")
    tag = add("tag")
    tag.add_argument("source")
    tag.add_argument("target")
    stop = add("stop")
    stop.add_argument("-t", "--time", "--timeout", type=int, dest="seconds")
    stop.add_argument("names", nargs="+")
    remove = add("rm")
    remove.add_argument("-f", "--force", action="store_true")
    remove.add_argument("names", nargs="+")
    add("ps").add_argument("-q", "--quiet", action="store_true")
    _add_run(add("run"))
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--rm", action="store_true")
    run.add_argument("--init", action="store_true")
    run.add_argument("--name", default=None)
    run.add_argument("--ipc", choices=["host", "private"])
    run.add_argument("--gpus")
    run.add_argument("--network", choices=["host"])
    run.add_argument("-v", "--volume", action="append", default=[])
    run.add_argument("-e", "--env", action="append", default=[])
    run.add_argument("--env-file", action="append", default=[])
    run.add_argument("--stop-timeout", type=int, default=DEFAULT_STOP_SECONDS)
    run.add_argument("--entrypoint")
    run.add_argument("--user", choices=["0", "root", "0:0"])
    run.add_argument("--read-only", action="store_true")  # there is no mount namespace here: these two are not kept
    run.add_argument("--tmpfs", action="append", default=[])
    run.add_argument("--shm-size")
    run.add_argument("--log-driver", choices=["none", "json-file", "local", "journald"])
    run.add_argument("image")
    run.add_argument("arguments", nargs=argparse.REMAINDER)


def volumes(specifications: list[str]) -> tuple[str, ...]:
    """Sources of ``-v SRC:DST``. There is no mount namespace here, so both must be the same path."""
    sources = []
    for item in specifications:
        source, _, target = item.partition(":")
        if not source.startswith("/") or source != target:
            raise EngineError(f"docker: the process engine mounts a path only onto itself, not {item!r}.", 125)
        sources.append(source)
    return tuple(sources)


def environment(pairs: list[str], files: list[str]) -> dict[str, str]:
    """``-e K=V``, ``-e K`` (taken from here, left out if unset) and env files, later ones winning as in Docker."""
    lines = [line for name in files for line in Path(name).read_text().splitlines() if line.strip() and line[0] != "#"]
    result: dict[str, str] = {}
    for pair in [*lines, *pairs]:
        key, given, value = pair.partition("=")
        if given:
            result[key] = value
        elif key in os.environ:
            result[key] = os.environ[key]
    return result


class Docker:
    """One method a command; each returns the exit code."""

    def __init__(self, root: Path) -> None:
        self.root, self.store, self.containers = root, Store(root), Containers(root)

    def _logins(self) -> list[str]:
        path = self.root / "logins.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _registry(self, reference: str) -> tuple[registry.Registry, str, str]:
        host, repository, wanted = registry.split_reference(reference)
        if host not in self._logins():
            raise EngineError("no basic auth credentials")
        return registry.Registry(host), repository, wanted

    def login(self, args: argparse.Namespace) -> int:
        password = sys.stdin.read().strip()
        if not password or args.username != "AWS":
            raise EngineError(f"Error response from daemon: login attempt to https://{args.host}/v2/ failed: 400")
        if not registry.ECR_HOST.match(args.host.removeprefix("https://")):
            raise EngineError(f"Error response from daemon: the process engine reaches ECR only, not {args.host!r}")
        self.root.mkdir(parents=True, exist_ok=True)
        logins = sorted({*self._logins(), args.host.removeprefix("https://")})
        (self.root / "logins.json").write_text(json.dumps(logins))
        print("Login Succeeded")
        return 0

    def inspect(self, args: argparse.Namespace) -> int:
        image = self.store.find(args.reference)
        print(json.dumps([self.store.inspect(image)] if image else []))
        if image is None:
            print(f"Error: No such object: {args.reference}", file=sys.stderr)
        return 0 if image else 1

    def build(self, args: argparse.Namespace) -> int:
        context = Path(args.context)
        dockerfile = Path(args.file) if args.file else context / "Dockerfile"
        if not context.is_dir() or not dockerfile.is_file():
            raise EngineError(f"unable to prepare context: {dockerfile} not found")
        build_args = environment(args.build_arg, [])
        image = self.store.add(*images.build(context, dockerfile, build_args), tag=args.tag)
        print(f"Successfully built {image}\nSuccessfully tagged {args.tag}")
        return 0

    def _need(self, reference: str) -> str:
        image = self.store.find(reference)
        if image is None:
            raise EngineError(f"Error response from daemon: No such image: {reference}")
        return image

    def tag(self, args: argparse.Namespace) -> int:
        self.store.tag(self._need(args.source), args.target)
        return 0

    def push(self, args: argparse.Namespace) -> int:
        image = self._need(args.reference)
        target, repository, tag = self._registry(args.reference)
        print(f"{tag}: digest: {target.push(repository, tag, *self.store.load(image))}")
        return 0

    def pull(self, args: argparse.Namespace) -> int:
        source, repository, wanted = self._registry(args.reference)
        config, layer, manifest = source.pull(repository, wanted)
        self.store.add(config, layer, args.reference)
        print(f"Digest: {manifest}\nStatus: Downloaded newer image for {args.reference}")
        return 0

    def run(self, args: argparse.Namespace) -> int:
        if args.gpus:
            message = 'could not select device driver "" with capabilities: [[gpu]].'
            raise EngineError(f"docker: Error response from daemon: {message}", 125)
        if args.shm_size and not re.fullmatch(r"\d+[bkmgBKMG]?", args.shm_size):
            raise EngineError(f'invalid argument "{args.shm_size}" for "--shm-size" flag: invalid size', 125)
        options = RunOptions(
            name=args.name or f"container-{secrets.token_hex(4)}",
            env=environment(args.env, args.env_file),
            remove=args.rm,
            stop_seconds=args.stop_timeout,
            volumes=volumes(args.volume),
            entrypoint=args.entrypoint,
        )
        if self.store.find(args.image) is None:
            self.pull(argparse.Namespace(reference=args.image))
        image = self._need(args.image)
        return self.containers.run(options, image, *self.store.load(image), arguments=args.arguments)

    def stop(self, args: argparse.Namespace) -> int:
        for name in args.names:
            self.containers.stop(name, args.seconds)
            print(name)
        return 0

    def rm(self, args: argparse.Namespace) -> int:
        for name in args.names:
            self.containers.remove(name, args.force)
            print(name)
        return 0

    def ps(self, args: argparse.Namespace) -> int:
        running = [name for name in self.containers.names() if self.containers.main_process(name)]
        if not args.quiet:
            print("CONTAINER ID   NAMES")
        for name in running:
            container_id = self.containers.meta(name)["id"]
            print(container_id if args.quiet else f"{container_id}   {name}")
        return 0


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    try:
        root, caller = engine_root(), box()
        state = caller.parents[1] if caller else root.parent
        if (engine := docker_engine.load(state)) is not None:
            return docker_engine.main(words, engine, root, caller)
        args = parser().parse_args(words)
        code: int = getattr(Docker(root), args.command)(args)
    except EngineError as error:
        print(error, file=sys.stderr)
        return error.code
    return code


if __name__ == "__main__":
    sys.exit(main())
