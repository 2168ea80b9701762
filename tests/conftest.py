"""In what order tests run, and what examples property tests try.

Long tests begin first, and a file stays with one worker, so that both workers of `make test` end at about the same time
and a file's tests keep their order. `make test` tries the same examples each time, so that it is green or red for a
reason.

`pytest --hypothesis-profile nightly` (`nightly.yml`) tries other ones each time, ten times as many, and prints with a
failure what reproduces it.
"""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("nightly", derandomize=False, deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("same")  # the option, where given, comes later and wins

TESTS = Path(__file__).parent
FIRST = ("lifecycle/test_chaos.py", "lifecycle/test_life_cycle.py", "lifecycle", "local_cloud", "unit")
"""Folders and files in the order in which they begin."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(TESTS).as_posix()
        return next((number for number, start in enumerate(FIRST) if path.startswith(start)), len(FIRST))

    items.sort(key=place)
