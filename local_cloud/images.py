"""Images of the process engine: a Dockerfile's final stage applied to files, kept as one layer and a config.

The virtual environment stands in for installed packages, so RUN, ARG and COPY --from are skipped. Of the rest, what
the training image's Dockerfile has is modelled and everything else refused, so that an image never silently differs
from what Docker would build.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shlex
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from pathspec import PathSpec
from pathspec.patterns.gitignore.basic import GitIgnoreBasicPattern

SKIPPED = {"ARG", "RUN"}


class EngineError(RuntimeError):
    """A message in Docker's words, and the exit code that Docker would give."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def build(context: Path) -> tuple[bytes, bytes]:
    """Config and layer (tar.gz, byte-identical for identical input) of the final stage of the context's Dockerfile.

    Raises:
        EngineError: there is none, or an instruction is not modelled.
    """
    try:
        text = (context / "Dockerfile").read_text()
    except OSError as error:
        raise EngineError(f"unable to prepare context: {error}") from None
    lines = _instructions(text)
    stages = [number for number, (name, _) in enumerate(lines) if name == "FROM"]
    if not stages:
        raise EngineError("dockerfile parse error: no build stage in current context")
    config: dict[str, Any] = {"WorkingDir": "/", "User": "", "Entrypoint": []}
    variables, labels, files = dict[str, str](), dict[str, str](), dict[str, Path]()
    for name, argument in lines[stages[-1] + 1 :]:
        if name in SKIPPED or (name == "COPY" and argument.startswith("--from=")):
            continue
        words = shlex.split(argument)
        if name == "WORKDIR" and len(words) == 1:
            config["WorkingDir"] = str(PurePosixPath(config["WorkingDir"]) / words[0])
        elif name == "USER" and len(words) == 1:
            config["User"] = words[0]
        elif name == "ENV" and all("=" in word for word in words):
            variables.update(_pair(word) for word in words)
        elif name == "LABEL" and all("=" in word for word in words):
            labels.update(_pair(word) for word in words)
        elif name == "ENTRYPOINT" and argument.startswith("["):
            config["Entrypoint"] = json.loads(argument)
        elif name == "COPY" and len(words) == 2 and words[0] == "." and words[1].endswith("/"):
            target = PurePosixPath(config["WorkingDir"]) / words[1]
            files |= {str(target / path).lstrip("/"): context / path for path in context_files(context)}
        else:
            raise EngineError(f"dockerfile parse error: the process engine does not model {name} {argument}")
    config.update(Env=[f"{key}={value}" for key, value in variables.items()], Labels=labels)
    layer = _pack(files)
    root = {"type": "layers", "diff_ids": [digest(layer)]}
    document = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": root}
    return json.dumps(document, sort_keys=True).encode(), gzip.compress(layer, mtime=0)


def _pair(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key, value


def _instructions(text: str) -> list[tuple[str, str]]:
    """Name and argument of each instruction; a backslash joins lines, comments in between excepted."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = [line.strip() for line in re.sub(r"\\\s*\n", " ", kept).splitlines() if line.strip()]
    found = [(name.upper(), argument.strip()) for name, _, argument in (line.partition(" ") for line in lines)]
    for name, argument in found:
        if "<<" in argument or (name not in SKIPPED | {"FROM", "COPY"} and "$" in argument):
            raise EngineError(f"the process engine models no here-documents and variables: {name} {argument}")
    return found


def context_files(context: Path) -> list[str]:
    """Relative paths of the files that Docker would send as build context: without what .dockerignore leaves out."""
    ignore = context / ".dockerignore"
    lines = ignore.read_text().splitlines() if ignore.exists() else []
    # Docker's patterns start at the root and match what lies below too; a trailing slash means nothing; the last wins.
    given = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    rooted = [f"{'!' if line[0] == '!' else ''}/{line.lstrip('!').strip('/ ')}" for line in given]
    each = [pattern + below for pattern in rooted for below in ("", "/**")]
    ignored = PathSpec.from_lines(GitIgnoreBasicPattern, each)
    paths = (path.relative_to(context).as_posix() for path in sorted(context.rglob("*")) if path.is_file())
    return [path for path in paths if not ignored.match_file(path)]


def _pack(files: dict[str, Path]) -> bytes:
    """The files as a tar archive without times and owners."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, path in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, path.stat().st_mode & 0o777
            with path.open("rb") as stream:
                archive.addfile(info, stream)
    return raw.getvalue()
