"""Images of the process engine: a Dockerfile's final stage applied to files, kept as one layer and a config.

RUN is skipped, because the virtual environment stands in for what it would install; everything else that is not
understood is refused, so that an image never silently differs from what Docker would build.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shlex
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from local_cloud.dockerignore import context_files, ignore_pattern


class EngineError(RuntimeError):
    """A message in Docker's words, and the exit code that Docker would give."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ImageConfig:
    """What a container needs to know of its image."""

    env: dict[str, str] = field(default_factory=dict)
    working_dir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    user: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    def to_json(self, layer_digest: str) -> bytes:
        config = {
            "Env": [f"{key}={value}" for key, value in self.env.items()],
            "WorkingDir": self.working_dir,
            "Entrypoint": self.entrypoint or None,
            "Cmd": self.cmd or None,
            "User": self.user,
            "Labels": self.labels or None,
        }
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
        return json.dumps(document, sort_keys=True).encode()

    @classmethod
    def from_json(cls, document: bytes) -> ImageConfig:
        config = json.loads(document)["config"]
        return cls(
            env=dict(item.split("=", 1) for item in config.get("Env") or []),
            working_dir=config.get("WorkingDir") or "/",
            entrypoint=config.get("Entrypoint") or [],
            cmd=config.get("Cmd") or [],
            user=config.get("User") or "",
            labels=config.get("Labels") or {},
        )


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- Dockerfile ---------------------------------------------------------------------------------------------------
def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and argument of each logical line; here-documents are refused."""
    logical: list[str] = []
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not (line.strip() or pending):
            continue
        if line.rstrip().endswith("\\"):
            pending += line.rstrip()[:-1] + " "
            continue
        logical.append((pending + line).strip())
        pending = ""
    result = []
    for line in logical:
        name, _, argument = line.partition(" ")
        if name.upper() != "RUN" and "<<" in argument:
            raise EngineError(f"the process engine does not model here-documents: {line}")
        result.append((name.upper(), argument.strip()))
    return result


def substitute(text: str, variables: dict[str, str]) -> str:
    """``$NAME``, ``${NAME}`` and ``${NAME:-default}`` as in a Dockerfile."""

    def value(match: re.Match[str]) -> str:
        name = match["plain"] or match["braced"]
        return variables.get(name) or match["default"] or ""

    return re.sub(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\})", value, text)


def exec_form(argument: str) -> list[str]:
    """JSON form, or the shell form as Docker wraps it."""
    if argument.startswith("["):
        return [str(item) for item in json.loads(argument)]
    return ["/bin/sh", "-c", argument]


class _Stage:
    """The state of one FROM..., while its instructions are applied."""

    def __init__(self, context: Path, root: Path, variables: dict[str, str]) -> None:
        self.context, self.root, self.variables = context, root, variables
        self.config = ImageConfig()

    def apply(self, name: str, argument: str) -> None:
        handler = getattr(self, f"do_{name.lower()}", None)
        if handler is None:
            raise EngineError(f"dockerfile parse error: the process engine does not model {name}")
        handler(argument)

    def do_run(self, argument: str) -> None:
        pass

    def do_workdir(self, argument: str) -> None:
        joined = PurePosixPath(self.config.working_dir) / substitute(argument, self.variables)
        self.config.working_dir = str(joined)
        inside(self.root, str(joined)).mkdir(parents=True, exist_ok=True)

    def do_env(self, argument: str) -> None:
        words = shlex.split(substitute(argument, self.variables | self.config.env))
        if words and "=" not in words[0]:
            words = [f"{words[0]}={' '.join(words[1:])}"]
        self.config.env.update(_pairs(words))

    def do_label(self, argument: str) -> None:
        self.config.labels.update(_pairs(shlex.split(substitute(argument, self.variables))))

    def do_arg(self, argument: str) -> None:
        name, _, default = argument.partition("=")
        self.variables.setdefault(name, default.strip("\"'"))

    def do_user(self, argument: str) -> None:
        self.config.user = argument

    def do_entrypoint(self, argument: str) -> None:
        self.config.entrypoint = exec_form(argument)

    def do_cmd(self, argument: str) -> None:
        self.config.cmd = exec_form(argument)

    def do_copy(self, argument: str) -> None:
        words = shlex.split(substitute(argument, self.variables | self.config.env))
        flags = [word for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        for flag in flags:
            if flag.split("=")[0] not in {"--from", "--chown", "--chmod", "--link"}:
                raise EngineError(f"dockerfile parse error: unknown flag: {flag}")
        if not any(flag.startswith("--from") for flag in flags):  # another stage's or image's: the environment has it
            self._copy(sources, target)

    def _copy(self, sources: list[str], target: str) -> None:
        files = context_files(self.context)
        destination = inside(self.root, str(PurePosixPath(self.config.working_dir) / target))
        for source in sources:
            name = source.rstrip("/").removeprefix("./").lstrip("/")
            base = "" if name in ("", ".") else name
            below = [path for path in files if not base or path.startswith(f"{base}/")]
            pattern = re.compile(ignore_pattern(base).pattern.removesuffix("(?:/.*)?")) if base else None
            single = [path for path in files if pattern and pattern.fullmatch(path)]
            if not below and not single:
                raise EngineError(f'COPY failed: "/{name}": not found')
            into = target.endswith("/") or target in (".", "./") or len(sources) > 1 or len(single) > 1
            for path in below:
                _copy_file(self.context / path, destination / path.removeprefix(f"{base}/" if base else ""))
            for path in single:
                _copy_file(self.context / path, destination / Path(path).name if into else destination)


def _pairs(words: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def inside(root: Path, path: str) -> Path:
    """An image's absolute path below ``root``; ``..`` cannot leave it."""
    clean = [part for part in PurePosixPath(path).parts if part not in ("/", "..", ".")]
    return root.joinpath(*clean)


def build(context: Path, dockerfile: Path, build_args: dict[str, str]) -> tuple[bytes, bytes]:
    """Config and layer (tar.gz, byte-identical for identical input) of the Dockerfile's final stage.

    Raises:
        EngineError: an instruction that is not modelled, or a COPY source that does not exist.
    """
    lines = instructions(dockerfile.read_text())
    last = max((index for index, (name, _) in enumerate(lines) if name == "FROM"), default=-1)
    if last < 0:
        raise EngineError("dockerfile parse error: no build stage in current context")
    with tempfile.TemporaryDirectory() as directory:
        stage = _Stage(context, Path(directory), dict(build_args))
        for index, (name, argument) in enumerate(lines):
            if index > last:
                stage.apply(name, argument)
            elif name == "ARG":
                stage.do_arg(argument)
        layer = pack(Path(directory))
    return stage.config.to_json(digest(gzip.decompress(layer))), layer


def pack(root: Path) -> bytes:
    """``root`` as tar.gz without times and owners."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path in sorted(root.rglob("*")):
            info = archive.gettarinfo(path, arcname=path.relative_to(root).as_posix())
            info.mtime = info.uid = info.gid = 0
            info.uname = info.gname = ""
            if path.is_file():
                with path.open("rb") as stream:
                    archive.addfile(info, stream)
            else:
                archive.addfile(info)
    return gzip.compress(raw.getvalue(), mtime=0)
