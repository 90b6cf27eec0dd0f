"""Fixtures for the tests of a lobe. Loaded by pytest wherever kwaai-core is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kwaai_core.testing.fakes import FakeHost


@pytest.fixture
def kwaai_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that `kwaai` knows of its user: ``kwaai.toml`` and ``state/`` are in it.

    No other variable ``KWAAI_*`` is set. For this process, and those that it starts.
    """
    for name in [name for name in os.environ if name.startswith("KWAAI_")]:
        monkeypatch.delenv(name)
    (tmp_path / "kwaai.toml").touch()
    monkeypatch.setenv("KWAAI_CONFIG", str(tmp_path / "kwaai.toml"))
    monkeypatch.setenv("KWAAI_STATE", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def fake_host(tmp_path: Path) -> FakeHost:
    """A host without any role, to be given those that the test needs."""
    from kwaai_core.testing.fakes import FakeHost

    return FakeHost(tmp_path / "lobe")
