"""The part of systemd's unit files that a box uses, parsed strictly: what is not modelled is refused, not ignored."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime

DEFAULT_STOP_SECONDS = 90.0
IGNORED_SECTIONS = {"Unit", "Install"}
SERVICE = {
    "Type", "ExecStart", "ExecStop", "ExecStopPost", "TimeoutStopSec", "Environment", "Restart", "KillMode",
    "RemainAfterExit",
}  # fmt: skip
TIMER = {"OnCalendar", "Unit", "Persistent", "AccuracySec"}
ALLOWED_VALUES = {
    "Type": {"simple", "exec", "oneshot"},
    "Restart": {"no"},
    "KillMode": {"control-group"},
    "RemainAfterExit": {"no", "false"},
    "Persistent": {"true", "yes", "false", "no"},
}


class UnitError(ValueError):
    """A unit file that systemd would refuse, or that goes beyond what is modelled."""


@dataclass(frozen=True)
class Service:
    name: str
    type: str = "simple"
    exec_start: list[str] = field(default_factory=list)
    exec_stop: list[str] = field(default_factory=list)
    exec_stop_post: list[str] = field(default_factory=list)
    stop_seconds: float = DEFAULT_STOP_SECONDS
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timer:
    name: str
    at: datetime
    unit: str
    persistent: bool = False


def sections(text: str, name: str) -> dict[str, list[tuple[str, str]]]:
    """Directives of each section in order; a backslash joins lines."""
    result: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for raw in re.sub(r"\\\n", " ", text).splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            current = line[1:-1]
            result.setdefault(current, [])
        elif "=" in line and current:
            key, value = (part.strip() for part in line.split("=", 1))
            result[current].append((key, value))
        else:
            raise UnitError(f"{name}: line is not a directive: {line}")
    return result


def _directives(text: str, name: str, section: str, known: set[str]) -> list[tuple[str, str]]:
    found = sections(text, name)
    unknown_sections = found.keys() - IGNORED_SECTIONS - {section}
    if unknown_sections or section not in found:
        raise UnitError(f"{name}: needs [{section}] and no other section, has {', '.join(sorted(found))}")
    for key, value in found[section]:
        if key not in known:
            raise UnitError(f"{name}: [{section}] {key}= is not modelled by the local cloud")
        if key in ALLOWED_VALUES and value not in ALLOWED_VALUES[key]:
            raise UnitError(f"{name}: {key}={value} is not modelled by the local cloud")
    return found[section]


def parse_service(name: str, text: str) -> Service:
    values = _directives(text, name, "Service", SERVICE)

    def every(key: str) -> list[str]:
        return [value for k, value in values if k == key]

    def last(key: str, default: str) -> str:
        return (every(key) or [default])[-1]

    kind = last("Type", "simple")
    starts = every("ExecStart")
    if not starts or (kind != "oneshot" and len(starts) != 1):
        raise UnitError(f"{name}: Service has {len(starts)} ExecStart= settings, {kind} needs exactly one. Refusing.")
    environment = dict(word.split("=", 1) for line in every("Environment") for word in shlex.split(line))
    stop = seconds(last("TimeoutStopSec", str(DEFAULT_STOP_SECONDS)))
    return Service(name, kind, starts, every("ExecStop"), every("ExecStopPost"), stop, environment)


def parse_timer(name: str, text: str) -> Timer:
    values = dict(_directives(text, name, "Timer", TIMER))
    if "OnCalendar" not in values:
        raise UnitError(f"{name}: Timer unit lacks value setting. Refusing.")
    unit = values.get("Unit", name.removesuffix(".timer") + ".service")
    return Timer(name, calendar(values["OnCalendar"]), unit, values.get("Persistent") in {"true", "yes"})


def calendar(text: str) -> datetime:
    """``YYYY-MM-DD HH:MM:SS UTC``; repeating expressions are not modelled."""
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:
        raise UnitError(f"OnCalendar={text}: only an absolute `YYYY-MM-DD HH:MM:SS UTC` is modelled") from None


def seconds(text: str) -> float:
    """A systemd time span in seconds: ``130``, ``130s``, ``2min 10s``, ``infinity``."""
    if text == "infinity":
        return float("inf")
    scale = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "ms": 0.001}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text)
    if not re.fullmatch(r"(\d+(\.\d+)?\s*[a-z]*\s*)+", text) or any(unit not in scale for _, unit in parts):
        raise UnitError(f"Failed to parse time span: {text}")
    return sum(float(number) * scale[unit] for number, unit in parts)


def command(line: str, environment: dict[str, str]) -> tuple[bool, list[str]]:
    """Whether a failure is ignored (``-``), and the words; ``${X}`` is replaced within a word, ``$X`` is split."""
    tolerant = line.startswith("-")
    line = line.removeprefix("-")
    if line[:1] in {"@", "+", "!", ":"}:
        raise UnitError(f"the prefix {line[0]!r} of an Exec line is not modelled: {line}")
    words: list[str] = []
    for word in shlex.split(line):
        if re.search(r"%(?!%)", word.replace("%%", "")):
            raise UnitError(f"specifiers are not modelled: {word}")
        if match := re.fullmatch(r"\$(\w+)", word):
            words += environment.get(match[1], "").split()
        else:
            expanded = re.sub(r"(?<!\$)\$\{(\w+)\}", lambda m: environment.get(m[1], ""), word)
            words.append(expanded.replace("$$", "$").replace("%%", "%"))
    if not words:
        raise UnitError("an Exec line is empty")
    return tolerant, words
