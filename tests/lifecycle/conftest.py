"""The stage that life cycles are lived through on: one for each worker, with a stack of its own for each test."""

import re
from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.stage import Stage, opened

_NUMBERS = count(1)
_LONGEST = 16


@pytest.fixture(scope="session")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with opened(tmp_path_factory.mktemp("life")) as stage:
        yield stage


@pytest.fixture
def stage(shared_stage: Stage, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """With a run name that no other test has, and no fault at work; what the test leaves is destroyed."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    shared_stage.run = f"{name[:_LONGEST].rstrip('-')}-{next(_NUMBERS)}"
    yield shared_stage
    shared_stage.cloud.fault("s3", settings={})
    shared_stage.cloud.fault("no-capacity", on=False)
    for run in shared_stage.leftovers():
        shared_stage.destroy(run)
    shared_stage.run = None
    assert not shared_stage.instances(), "the next test would find them"
