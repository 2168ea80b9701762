"""``systemctl`` and ``poweroff`` inside an instance: the command lines, and the call to the instance's init."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Client
from pathlib import Path

FLAGS = {
    "daemon-reload": set[str](),
    "enable": {"--now"},
    "start": set[str](),
    "stop": set[str](),
    "is-active": {"--quiet"},
    "poweroff": set[str](),
}
"""Verbs and their options."""
WITHOUT_UNITS = {"daemon-reload", "poweroff"}


def parse_systemctl(arguments: list[str]) -> tuple[str, set[str], list[str]] | str:
    """Verb, flags and units, or the sentence that refuses them."""
    flags = {a for a in arguments if a.startswith("-")}
    verb, *units = [a for a in arguments if not a.startswith("-")] or [""]
    if verb not in FLAGS:
        return f"Unknown command verb {verb}."
    if unknown := flags - FLAGS[verb]:
        return f"systemctl {verb}: option {sorted(unknown)[0]} is not modelled by the local cloud"
    if bool(units) == (verb in WITHOUT_UNITS):
        return "Too many arguments." if units else "Too few arguments."
    return verb, flags, [u if "." in u else f"{u}.service" for u in units]


def call(box: Path, verb: str, flags: set[str], names: list[str]) -> tuple[int, str]:
    """Ask the init of the instance in the directory ``box``: exit code and text."""
    port, _, key = (box / "run" / "init.address").read_text().partition(" ")
    with Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key)) as connection:
        connection.send((verb, flags, names))
        code, text = connection.recv()
    return int(code), str(text)


def main() -> int:
    program, *arguments = sys.argv[1:]
    if "DESTDIR" not in os.environ:
        print(f"{program}: System has not been booted with systemd as init system (no DESTDIR).", file=sys.stderr)
        return 1
    parsed = parse_systemctl(arguments if program == "systemctl" else [program, *arguments])
    if isinstance(parsed, str):
        print(parsed, file=sys.stderr)
        return 1
    code, text = call(Path(os.environ["DESTDIR"]), *parsed)
    if text and "--quiet" not in parsed[1]:
        print(text, file=sys.stdout if code == 0 or parsed[0] == "is-active" else sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
