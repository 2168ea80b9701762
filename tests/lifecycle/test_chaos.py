"""A short series of the chaos command; the long one is `lab local chaos --runs 30`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.chaos import sample
from lab.chaos.chaos import Options, chaos
from lab.chaos.plan import Kind

ROOT = Path(__file__).parents[2]
SEED = 16
"""Plans a killed trainer, an interruption with notice, and a second box of the same run."""

pytestmark = pytest.mark.lifecycle


def test_a_run_that_is_disturbed_three_times_ends_with_the_same_adapter(tmp_path: Path):
    model = tmp_path / "model"
    sample.save_model(model)
    options = Options(ROOT, tmp_path, 1, SEED, model, sample.write_data(tmp_path / "train.jsonl"))
    report = chaos(options, print)
    assert report["problems"] == []
    assert report["reference"]["attempts"] == 1
    (run,) = report["runs"]
    assert [fault["kind"] for fault in run["faults"]] == [Kind.KILL_TRAINER, Kind.NOTICE, Kind.TWO_BOXES]
    struck = [fault for fault in run["faults"] if fault["instance"]]
    assert len(struck) >= 2, "on a fast machine the last moment may never come"
    assert run["attempts"] >= 2
    assert run["equal"]
    assert run["lost_steps"] == 0
    assert run["outcome"] == "succeeded"
    assert run["adapter_sha256"] == report["reference"]["adapter_sha256"]
