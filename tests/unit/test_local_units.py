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
ExecStopPost=/bin/after
TimeoutStopSec=130
[Install]
WantedBy=multi-user.target
"""


def test_a_service_is_read() -> None:
    unit = units.parse_service("x.service", SERVICE)
    assert unit.start == ["/bin/run", "--flag", "--other"]
    assert unit.stop == ["docker", "stop", "-t", "110", "training"]
    assert unit.stop_post == ["/bin/after"]
    assert (unit.type, unit.stop_seconds) == ("simple", 130)


def test_a_service_that_says_little_gets_systemds_defaults() -> None:
    unit = units.parse_service("x.service", "[Service]\nExecStart=/bin/x\n")
    assert (unit.start, unit.stop, unit.stop_post, unit.stop_seconds) == (["/bin/x"], None, None, 90)


def with_line(line: str) -> str:
    return SERVICE.replace("[Install]", f"{line}\n[Install]")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (with_line("Restart=always"), "Restart=always"),
        (with_line("TimeoutStopsec=1"), "TimeoutStopsec=1"),
        (with_line("Type=notify"), "Type=notify"),
        (with_line("ExecStart=/bin/second"), "ExecStart"),
        (with_line("ExecStartPre=-/bin/x"), "ExecStartPre"),
        (with_line("no directive"), "no directive"),
        (SERVICE + "[Socket]\nListenStream=1\n", "Socket"),
        (SERVICE.replace("130", "2 fortnights"), "2 fortnights"),
        (SERVICE.replace("130", "infinity"), "infinity"),
        (SERVICE.replace("/bin/after", "-/bin/after"), "prefixes"),
        (SERVICE.replace("/bin/after", "/bin/after $MAINPID"), "variables"),
        (SERVICE.replace("/bin/after", "/bin/after %i"), "specifiers"),
        ("[Service]\nType=simple\n", "no ExecStart"),
        ("ExecStart=/bin/x\n", "section"),
    ],
)
def test_what_is_wrong_or_not_modelled_is_refused_in_a_sentence(text: str, said: str) -> None:
    with pytest.raises(UnitError) as caught:
        units.parse_service("x.service", text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_timer_has_one_absolute_moment_in_utc() -> None:
    timer = "[Timer]\nOnCalendar={}\nPersistent={}\n"
    at = units.parse_timer("a.timer", timer.format("2026-11-24 17:00:00 UTC", "true"))
    assert at == datetime(2026, 11, 24, 17, tzinfo=UTC)
    with pytest.raises(UnitError, match="Persistent"):
        units.parse_timer("a.timer", timer.format("2026-11-24 17:00:00 UTC", "false"))
    for bad in ("daily", "2026-11-24 17:00:00", "2026-11-24T17:00:00Z"):
        with pytest.raises(UnitError, match="OnCalendar"):
            units.parse_timer("a.timer", timer.format(bad, "true"))


def test_systemctl_knows_its_verbs_and_refuses_the_rest() -> None:
    assert parse_systemctl(["enable", "--now", "a", "b.timer"]) == ("enable", {"--now"}, ["a.service", "b.timer"])
    for arguments in (["mask", "a"], ["stop"], ["stop", "--now", "a"], ["daemon-reload", "a"], []):
        assert isinstance(parse_systemctl(arguments), str)
