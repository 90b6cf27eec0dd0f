"""The model, loaded once for all tests that only ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kwaai_core.testing import FakeHost
from kwaai_lobe_minilm.embedder import Minilm, open_embedder
from kwaai_lobe_minilm.files import read_files
from kwaai_lobe_minilm.model import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return Model(read_files(), threads=1)


@pytest.fixture
async def minilm(tmp_path: Path) -> AsyncIterator[Minilm]:
    async with open_embedder(FakeHost(tmp_path)) as embedder:
        assert isinstance(embedder, Minilm)
        yield embedder
