"""The part of systemd's unit files that an instance uses, parsed strictly: what is not modelled is refused, not
ignored."""

from __future__ import annotations

import configparser
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime

DEFAULT_STOP_SECONDS = "90"
IGNORED_SECTIONS = {"Unit", "Install"}
SERVICE = {
    "Type": "simple|oneshot",
    "ExecStart": ".+",
    "ExecStop": ".+",
    "ExecStopPost": ".+",
    "TimeoutStopSec": r"\d+s?",
}
TIMER = {"OnCalendar": ".+", "Persistent": "true"}
"""Directives and what their values match. A timer that was missed is always caught up with."""


class UnitError(ValueError):
    """A unit file that systemd would refuse, or that goes beyond what is modelled."""


@dataclass(frozen=True)
class Service:
    name: str
    type: str
    start: list[str]
    stop: list[str] | None
    stop_post: list[str] | None
    stop_seconds: float


class _Parser(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr  # systemd minds upper and lower case


def _directives(text: str, name: str, section: str, known: dict[str, str]) -> dict[str, str]:
    """The section's directives; one that stands twice, which systemd may allow, is refused too."""
    parser = _Parser(interpolation=None, delimiters=("=",), default_section="", empty_lines_in_values=False)
    try:
        parser.read_string(re.sub(r"\\\n\s*", " ", text), name)
    except configparser.Error as error:
        raise UnitError(" ".join(str(error).split())) from None
    found = set(parser.sections())
    if found - IGNORED_SECTIONS != {section}:
        raise UnitError(f"{name}: needs [{section}] and no other section, has {', '.join(sorted(found))}")
    for key, value in parser[section].items():
        if key not in known or not re.fullmatch(known[key], value):
            raise UnitError(f"{name}: {key}={value} is not modelled by the local cloud")
    return dict(parser[section])


def parse_service(name: str, text: str) -> Service:
    values = _directives(text, name, "Service", SERVICE)
    if "ExecStart" not in values:
        raise UnitError(f"{name}: Service has no ExecStart= setting. Refusing.")
    start, stop, post = (command(values.get(key)) for key in ("ExecStart", "ExecStop", "ExecStopPost"))
    seconds = float(values.get("TimeoutStopSec", DEFAULT_STOP_SECONDS).rstrip("s"))
    return Service(name, values.get("Type", "simple"), start or [], stop, post, seconds)


def parse_timer(name: str, text: str) -> datetime:
    """When it goes off: ``OnCalendar=YYYY-MM-DD HH:MM:SS UTC``; repeating expressions are not modelled."""
    values = _directives(text, name, "Timer", TIMER)
    if set(values) != set(TIMER):
        raise UnitError(f"{name}: a timer needs OnCalendar= and Persistent=true in the local cloud")
    try:
        return datetime.strptime(values["OnCalendar"], "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:
        sentence = "only an absolute `YYYY-MM-DD HH:MM:SS UTC` is modelled"
        raise UnitError(f"OnCalendar={values['OnCalendar']}: {sentence}") from None


def command(line: str | None) -> list[str] | None:
    """The words of an Exec line, if there is one."""
    if line is None:
        return None
    if line[0] in "-@+!:|" or re.search("[$%]", line):
        raise UnitError(f"prefixes, variables and specifiers of an Exec line are not modelled: {line}")
    return shlex.split(line)
