"""What the machine refuses is a line with what to do, and no bug."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kwaai_core.machine import refusal

from .conftest import Install, Kwaai

LOBE = """
import click
from kwaai_core import hookimpl

@hookimpl
def add_commands(cli):
    @cli.command("burst")
    @click.option("--json", is_flag=True)
    def burst(json):
        raise {raised}
"""
FULL = "No space left on device: make room on the disk that is written to"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without room for one byte more, where this user may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    try:
        (disk / "filler").write_bytes(b"x" * 4096)
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("command", ["run --port 0 --lobes=", "chat -p hi --lobes="])
def test_a_full_disk(
    kwaai: Kwaai, full_disk: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("KWAAI_STATE", str(full_disk / "state"))
    line = f"error: {FULL} (the state folder is {full_disk / 'state'})\n"
    assert kwaai(*command.split()) == (1, "", line)


@pytest.mark.parametrize("command", ["version", "--help", "config show", "config show --json"])
def test_a_full_output(kwaai_home: Path, command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kwaai_core", *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
            text=True,
            check=False,
        )
    assert done.returncode == 1
    said = json.loads(done.stderr)["error"]["message"] if "--json" in command else done.stderr
    assert said.strip().removeprefix("error: ").startswith(FULL)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE"])
def test_a_command_of_a_lobe_names_the_file(kwaai: Kwaai, install: Install, name: str) -> None:
    number = getattr(errno, name)
    install("mine", LOBE.format(raised=f"OSError({number}, 'Refused', '/some/file')"))
    code, out, err = kwaai("burst")
    assert (code, out) == (1, "")
    assert err.startswith("error: /some/file: Refused: ")
    assert len(err.splitlines()) == 1
    code, out, err = kwaai("burst", "--json")
    assert (code, out) == (1, "")
    assert json.loads(err)["error"]["message"].startswith("/some/file: Refused: ")


@pytest.mark.parametrize(
    "raised",
    ["OSError('no disk')", "FileNotFoundError(2, 'gone', '/x')", "OSError(9, 'Bad descriptor')"],
)
def test_other_errors_of_the_system_are_bugs(kwaai: Kwaai, install: Install, raised: str) -> None:
    install("mine", LOBE.format(raised=raised))
    code, _, err = kwaai("burst")
    assert code == 70
    assert "this is a bug in kwaai" in err


def test_both_names_of_a_file_are_told_and_groups_are_looked_into() -> None:
    error = OSError(errno.EACCES, "Permission denied", "/a", None, b"/b")
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [error])])
    assert refusal(group).startswith("/a or /b: Permission denied: ")
    assert refusal(OSError(errno.ENOSPC, "Full", 7)).startswith("Full: ")  # a descriptor
    assert refusal(ValueError("x")) == ""
