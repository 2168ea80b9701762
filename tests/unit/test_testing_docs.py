"""docs/testing.md names tests that exist, and no promise stands there without one."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "testing.md").read_text()
NAMED = re.findall(r"`((?:unit|local_cloud|lifecycle|docker|gpu)/\w+\.py)(?:::(\w+))?`", PAGE)
PROMISES = [line for line in PAGE.splitlines() if re.match(r"\| [DTSRLUX]\d", line)]
FULL_FIDELITY = {
    "test_life_cycle.py", "test_quick_start.py", "test_demo_faults.py", "test_chaos.py", "test_killers.py",
    "test_containers.py",
}  # fmt: skip


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED)))
def test_every_test_that_is_named_exists(file, test):
    text = (TESTS / file).read_text()
    assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE)


def test_each_promise_has_a_test():
    assert len(PROMISES) > 30
    for line in PROMISES:
        assert re.search(r"`\w+/test_\w+\.py", line), line


def test_what_stays_at_full_fidelity_is_listed():
    _, kept = PAGE.split("These stay as a user has them")
    table = kept.split("\n## ")[0]
    assert {Path(file).name for file, _ in NAMED if file in table} >= FULL_FIDELITY
    for file in sorted({file for file, _ in NAMED if file in table}):
        if file.startswith("lifecycle/"):
            assert "pytestmark = pytest.mark.lifecycle" in (TESTS / file).read_text(), "part of `make test`"


def test_every_command_of_the_tiers_is_a_target():
    makefile = (TESTS.parent / "Makefile").read_text()
    for target in set(re.findall(r"`make ([\w-]+)`", PAGE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
