"""Fixtures of the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_kwaai import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a node with every lobe, for tests that only ask it."""
    with Home(tmp_path_factory.mktemp("node")).run() as running:
        yield str(running.url)
