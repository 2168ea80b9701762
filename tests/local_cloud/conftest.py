"""One local cloud for each module."""

from collections.abc import Iterator

import pytest

from local_cloud.cloud import LocalCloud
from tests.support.local_lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with LocalCloud(tmp_path_factory.mktemp("clone")) as cloud:
        yield Lab(cloud, tmp_path_factory.mktemp("scratch"))
