"""``systemctl`` and ``poweroff`` inside a box: the command lines, and the call to the box's init."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Client
from pathlib import Path

USAGE = {
    "daemon-reload": (0, 0),
    "enable": (1, 99),
    "start": (1, 99),
    "stop": (1, 99),
    "is-active": (1, 99),
    "poweroff": (0, 0),
}
FLAGS = {"enable": {"--now"}, "is-active": {"--quiet", "-q"}, "start": {"--no-block"}, "stop": {"--no-block"}}


def parse_systemctl(arguments: list[str]) -> tuple[str, set[str], list[str]] | str:
    """Verb, flags and units, or the sentence that refuses them."""
    flags = {a for a in arguments if a.startswith("-")}
    words = [a for a in arguments if not a.startswith("-")]
    if not words or words[0] not in USAGE:
        return f"Unknown command verb {words[0] if words else ''}."
    verb, units = words[0], words[1:]
    if unknown := flags - FLAGS.get(verb, set()):
        return f"systemctl {verb}: option {sorted(unknown)[0]} is not modelled by the local cloud"
    low, high = USAGE[verb]
    if not low <= len(units) <= high:
        return "Too few arguments." if len(units) < low else "Too many arguments."
    return verb, flags, [u if "." in u else f"{u}.service" for u in units]


def call(box: Path, verb: str, flags: set[str], names: list[str]) -> tuple[int, str]:
    """Ask the init of the box at ``box``: exit code and text."""
    port, _, key = (box / "run" / "init.address").read_text().partition(" ")
    with Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key)) as connection:
        connection.send((verb, sorted(flags), names))
        code, text = connection.recv()
    return int(code), str(text)


def main() -> int:
    program, *arguments = sys.argv[1:]
    if "DESTDIR" not in os.environ:
        print(f"{program}: System has not been booted with systemd as init system (no DESTDIR).", file=sys.stderr)
        return 1
    if program == "poweroff":
        if arguments:
            print(f"poweroff: option {arguments[0]} is not modelled by the local cloud", file=sys.stderr)
            return 1
        arguments = ["poweroff"]
    parsed = parse_systemctl(arguments)
    if isinstance(parsed, str):
        print(parsed, file=sys.stderr)
        return 1
    code, text = call(Path(os.environ["DESTDIR"]), *parsed)
    if text and "--quiet" not in parsed[1] and "-q" not in parsed[1]:
        print(text, file=sys.stdout if code == 0 or parsed[0] == "is-active" else sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
