"""Identities with a clock of the test's own, and `kwaai identity` in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kwaai_core import Acquaintance, Group
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.generations import load, rotated
from kwaai_lobe_identity.identity import LobeIdentity

NOW = 1_800_000_000.0
DAY = 86_400.0


def unlocked() -> None:
    """The passphrase of keys that have none."""


@dataclass
class Town:
    """Identities by name, each in a folder of its own; ``now`` is everybody's time."""

    folder: Path
    now: float = NOW
    opened: dict[str, LobeIdentity] = field(default_factory=dict)

    def __call__(self, *names: str) -> list[LobeIdentity]:
        return [self.opened.get(name) or self.open(name) for name in names]

    def state(self, name: str) -> Folder:
        return Folder(self.folder / name)

    def open(self, name: str) -> LobeIdentity:
        """Open it, as after a restart."""
        found = load(self.state(name), unlocked)
        identity = LobeIdentity(found, found.key(unlocked), now=lambda: self.now)
        self.opened[name] = identity
        return identity

    def rotate(self, name: str) -> LobeIdentity:
        """What the identity of this name has become."""
        rotated(self.state(name), unlocked, int(self.now))
        self.now += 1
        identity = self.open(name)
        identity.members.renew()
        return identity

    def let_in(
        self, inviter: str, joiner: str, group: str = "home", *, may_invite: bool = False
    ) -> Group:
        """The whole way from an invitation to a membership."""
        one, other = self(inviter, joiner)
        invited = one.members.invite(group, ["/ip4/127.0.0.1/tcp/1"], 60, may_invite=may_invite)
        invitation = other.invitation(invited.line)
        admission = one.members.admit(other.peer_id, other.answer_to(invitation))
        return other.members.join(invitation, admission)

    def meets(self, one: str, other: str) -> Acquaintance:
        met, shown = self(one, other)
        return met.meet(shown.peer_id, shown.introduce())

    def common(self, one: str, other: str) -> tuple[Group, ...]:
        return self.meets(one, other).groups

    def copy(self, name: str, copy: str) -> None:
        """What a thief has of the files of an identity."""
        for path in self.state(name).path.glob("*.j*"):
            self.state(copy).create(path.name, path.read_bytes())


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


@dataclass(frozen=True, slots=True)
class Kwaai:
    """The command line, in processes of its own."""

    folder: Path

    @property
    def state(self) -> Path:
        """Where the lobe keeps its things."""
        return self.folder / "state" / "lobes" / "identity"

    def configure(self, text: str) -> None:
        (self.folder / "kwaai.toml").write_text(text)

    def start(self, *words: object, program: str = "identity", **how: Any) -> subprocess.Popen[str]:
        clean = {key: value for key, value in os.environ.items() if key[:6] != "KWAAI_"}
        config = self.folder / "kwaai.toml"
        config.touch()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", "kwaai_core", program, *map(str, words)],
            env=clean | {"KWAAI_STATE": str(self.folder / "state"), "KWAAI_CONFIG": str(config)},
            text=True,
            **(pipes | how),
        )

    def __call__(self, *words: object, fails: int = 0, typed: str = "") -> str:
        """Run `kwaai identity` to its end; what it wrote, to stderr where it is to fail."""
        process = self.start(*words)
        out, err = process.communicate(typed, timeout=60)
        assert process.returncode == fails, (out, err)
        if not fails:
            return out
        assert out == ""
        assert "bug" not in err
        assert "Traceback" not in err
        return err

    def json(self, *words: object) -> Any:
        return json.loads(self(*words, "--json"))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture
def kwaai(tmp_path: Path) -> Kwaai:
    return Kwaai(made(tmp_path / "one"))


@pytest.fixture
def other(tmp_path: Path) -> Kwaai:
    """Another machine."""
    return Kwaai(made(tmp_path / "other"))


Passphrases = Callable[[str], Path]


@pytest.fixture
def passphrase(tmp_path: Path) -> Passphrases:
    """A file with a passphrase."""

    def write(words: str) -> Path:
        path = tmp_path / "passphrase"
        path.write_text(words + "\n")
        return path

    return write
