"""Unit files and systemctl's command line: what systemd or the model does not know is refused, never ignored."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from local_cloud import units
from local_cloud.control import parse_systemctl
from local_cloud.units import UnitError

SERVICE = """
[Unit]
Description=x
Requires=docker.service
[Service]
ExecStart=/bin/run --flag \\
  --other
ExecStop=docker stop -t 110 training
ExecStopPost=-/bin/after
TimeoutStopSec=130
Environment="A=1 2" B=3
[Install]
WantedBy=multi-user.target
"""


def test_a_service_is_read() -> None:
    unit = units.parse_service("x.service", SERVICE)
    assert units.command(unit.exec_start[0], {}) == (False, ["/bin/run", "--flag", "--other"])
    assert units.command(unit.exec_stop_post[0], {}) == (True, ["/bin/after"])
    assert unit.stop_seconds == 130
    assert unit.environment == {"A": "1 2", "B": "3"}


@pytest.mark.parametrize(
    "text",
    [
        SERVICE + "[Service]\nRestart=always\n",
        SERVICE + "[Service]\nTimeoutStopsec=1\n",
        SERVICE + "[Service]\nExecStart=/bin/second\n",
        SERVICE + "[Socket]\nListenStream=1\n",
        SERVICE.replace("130", "2 fortnights"),
        "[Service]\nType=simple\n",
        "ExecStart=/bin/x\n",
    ],
)
def test_what_is_wrong_or_not_modelled_is_refused(text: str) -> None:
    with pytest.raises(UnitError):
        units.parse_service("x.service", text)


@pytest.mark.parametrize(
    ("text", "value"), [("130", 130), ("130s", 130), ("2min 10s", 130), ("1h", 3600), ("infinity", float("inf"))]
)
def test_time_spans(text: str, value: float) -> None:
    assert units.seconds(text) == value


def test_variables_are_replaced_as_systemd_does() -> None:
    environment = {"A": "one two", "MAINPID": "7"}
    assert units.command("kill $MAINPID", environment)[1] == ["kill", "7"]
    assert units.command("x $A ${A} p-${A} $$A 5%%", environment)[1] == [
        "x", "one", "two", "one two", "p-one two", "$A", "5%",
    ]  # fmt: skip
    with pytest.raises(UnitError, match="specifiers"):
        units.command("x %i", {})
    with pytest.raises(UnitError, match="prefix"):
        units.command("+/bin/x", {})


def test_a_timer_has_one_absolute_moment_in_utc() -> None:
    timer = units.parse_timer("a.timer", "[Timer]\nOnCalendar=2026-11-24 17:00:00 UTC\nPersistent=true\n")
    assert (timer.at, timer.unit, timer.persistent) == (datetime(2026, 11, 24, 17, tzinfo=UTC), "a.service", True)
    for bad in ("daily", "2026-11-24 17:00:00", "2026-11-24T17:00:00Z"):
        with pytest.raises(UnitError, match="OnCalendar"):
            units.parse_timer("a.timer", f"[Timer]\nOnCalendar={bad}\n")


def test_systemctl_knows_its_verbs_and_refuses_the_rest() -> None:
    assert parse_systemctl(["enable", "--now", "a", "b.timer"]) == ("enable", {"--now"}, ["a.service", "b.timer"])
    for arguments in (["mask", "a"], ["stop"], ["stop", "--now", "a"], ["daemon-reload", "a"], []):
        assert isinstance(parse_systemctl(arguments), str)
