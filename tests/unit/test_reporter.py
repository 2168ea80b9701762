"""An attempt's timeline: what the host did before the container, then what supervisor and trainer say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training_image.core.contract import Phase, WorkDir
from training_image.supervisor.reporter import Timeline, host_phases, timed_phase

BOOT = [("setup", 100.0, 102.0), ("prefetch", 102.0, 110.0), ("image_pull", 102.0, 108.5)]


def written(tmp_path, phases=BOOT):
    lines = [json.dumps({"phase": name, "from": began, "to": ended}) for name, began, ended in phases]
    WorkDir(tmp_path).boot.write_text("\n".join(lines) + "\n")
    return WorkDir(tmp_path).boot


def test_the_hosts_phases_come_first_and_the_container_starts_when_the_last_has_ended(tmp_path):
    timeline = Timeline(100.0, host_phases(written(tmp_path), up_since=90.0))
    timeline.enter("downloading", 111.0)
    timeline.enter("downloading", 112.0)
    timeline.enter("loading", 112.5)
    phases = timeline.as_json(120.0)["phases"]
    assert [(phase["phase"], phase["started_at"], phase["seconds"]) for phase in phases] == [
        ("setup", 100.0, 2.0),
        ("image_pull", 102.0, 6.5),
        ("prefetch", 102.0, 8.0),
        ("container_start", 110.0, 1.0),
        ("downloading", 111.0, 1.5),
        ("loading", 112.5, 7.5),
    ]


def test_after_a_reboot_the_file_tells_of_the_attempt_before(tmp_path):
    assert host_phases(written(tmp_path), up_since=110.5) == []


def test_a_file_that_is_not_there_or_cut_short_is_no_failure(tmp_path):
    assert host_phases(WorkDir(tmp_path).boot, up_since=0.0) == []
    boot = written(tmp_path)
    boot.write_text(boot.read_text()[:-20])
    assert host_phases(boot, up_since=0.0) == []


@pytest.mark.parametrize(
    ("phase", "step", "resumed", "timed"),
    [
        ("training", None, None, "first_step"),
        ("training", 0, None, "first_step"),
        ("training", 1, None, "training"),
        ("training", 40, 40, "first_step"),
        ("training", 41, 40, "training"),
        ("evaluating_before", None, None, "evaluating_before"),
    ],
)
def test_the_first_step_of_the_attempt_is_timed_apart(phase, step, resumed, timed):
    assert timed_phase(Phase(phase), step, resumed) == timed


@given(st.lists(st.floats(0.1, 1e4), min_size=1))
def test_what_the_instance_says_itself_leaves_no_gap(lengths):
    timeline, now = Timeline(0.0), 0.0
    for number, length in enumerate(lengths):
        timeline.enter(f"phase-{number}", now)
        now += length
    phases = timeline.as_json(now)["phases"]
    assert abs(sum(phase["seconds"] for phase in phases) - now) <= 0.1 * len(phases)
