"""The stage that life cycles are lived through on, one for each module."""

from collections.abc import Iterator

import pytest

from tests.support.stage import SHORT, Stage, opened


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with opened(tmp_path_factory.mktemp("life")) as stage:
        yield stage


@pytest.fixture(autouse=True)
def _nothing_left_to_the_next_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed half-way leaves its stack; the next one must not find that one's run."""
    yield
    if "stage" in request.fixturenames:
        stage: Stage = request.getfixturevalue("stage")
        if "TrainingStack" in stage.stacks():
            stage.cdk("destroy", "TrainingStack", "--force", **SHORT)
