"""The pytest plugin: light, and its fixtures keep a test away from its user's own kwaai."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kwaai_core.testing
from kwaai_core.config import load_config
from kwaai_core.testing import FakeHost


def test_loading_it_imports_nothing_heavy() -> None:
    script = (
        "import sys, kwaai_core.testing.pytest_plugin; print({'trio', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", kwaai_core.testing.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kwaai_core.testing, name) is not None


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'check_nothing'"):
        getattr(kwaai_core.testing, "check_nothing")  # noqa: B009 - it is the looking that raises


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWAAI_SERVER_PORT", "1")
    monkeypatch.setenv("KWAAI_STATE", "/elsewhere")


def test_home_is_all_that_kwaai_knows_of_its_user(noisy: None, kwaai_home: Path) -> None:
    loaded = load_config()
    assert loaded.file.parent == loaded.state.parent == kwaai_home
    assert loaded.file.read_text() == ""
    assert loaded.server.port == 8000
    assert {name for name in os.environ if name.startswith("KWAAI_")} == {
        "KWAAI_CONFIG",
        "KWAAI_STATE",
    }


def test_the_host_has_a_folder_and_no_role(fake_host: FakeHost) -> None:
    assert fake_host.state.is_dir()
    assert fake_host.executors == ()
    assert fake_host.router is None
