"""What .dockerignore leaves out of a build context, by Docker's rules (not Git's: patterns start at the root)."""

from __future__ import annotations

import re
from pathlib import Path


def ignore_pattern(pattern: str) -> re.Pattern[str]:
    """One .dockerignore line as a regular expression that matches a path and everything below it."""
    parts: list[str] = []
    for piece in re.findall(r"\*\*/?|\*|\?|\[[^\]]*\]|.", pattern.strip("/")):
        if piece == "**/":
            parts.append("(?:.*/)?")
        elif piece.startswith("**"):
            parts.append(".*")
        elif piece == "*":
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        else:
            parts.append(piece if piece.startswith("[") else re.escape(piece))
    return re.compile("".join(parts) + "(?:/.*)?")


def ignored(path: str, lines: list[str]) -> bool:
    """Whether .dockerignore leaves ``path`` out; the last line that matches decides, ``!`` brings back."""
    verdict = False
    for line in (raw.strip() for raw in lines):
        if not line or line.startswith("#"):
            continue
        keep = line.startswith("!")
        if ignore_pattern(line.lstrip("!").strip()).fullmatch(path):
            verdict = not keep
    return verdict


def context_files(context: Path) -> list[str]:
    """Relative paths of the files that Docker would send as build context."""
    ignore = context / ".dockerignore"
    lines = ignore.read_text().splitlines() if ignore.exists() else []
    paths = (path.relative_to(context).as_posix() for path in sorted(context.rglob("*")) if path.is_file())
    return [path for path in paths if not ignored(path, lines)]
