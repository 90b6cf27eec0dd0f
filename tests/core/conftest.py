"""Lobes as distributions that are installed for one test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kwaai_core.cli import cli, main

Install = Callable[..., None]
Kwaai = Callable[..., tuple[int, str, str]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the import path, which child processes see too."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def install(site: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a distribution ``kwaai-lobe-<name>`` with one module, whose source is given."""

    def write(
        name: str, source: str, *, group: str = "kwaai.lobes.v0", distribution: str = ""
    ) -> None:
        module = f"{distribution or 'testing_lobe'}_{name}".replace("-", "_")
        (site / f"{module}.py").write_text(source)
        owner = distribution or f"kwaai-lobe-{name}"
        info = site / f"{owner.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return write


@pytest.fixture
def kept_logging() -> Iterator[None]:
    """The root logger as it was, whatever a test makes of it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers.clear()  # set_up closes those that it finds
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("kwaai_core.supervise").setLevel(logging.NOTSET)


@pytest.fixture
def kwaai(
    kwaai_home: Path,
    site: Path,
    kept_logging: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Kwaai:
    """Runs a command: its exit code, what it printed, what it complained of."""
    monkeypatch.setattr(cli, "commands", dict(cli.commands))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(arguments)
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
