"""Tiny models, and `kwaai models` with a state folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kwaai_core.testing.models import Shape, write_random_model

Write = Callable[..., Path]
SMALL = Shape(blocks=1, embedding=64, feed_forward=64, vocabulary=259)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a model by this name; another ``seed`` makes it another model."""

    def write(name: str, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        return write_random_model(path, SMALL, seed=seed, name="tiny")

    return write


@dataclass(frozen=True, slots=True)
class Kwaai:
    """The command line, in processes of its own."""

    folder: Path

    @property
    def state(self) -> Path:
        """Where the lobe keeps its things."""
        return self.folder / "state" / "lobes" / "models"

    def configure(self, text: str) -> None:
        (self.folder / "kwaai.toml").write_text(text)

    def start(self, *words: object, output: int = subprocess.PIPE) -> subprocess.Popen[str]:
        clean = {key: value for key, value in os.environ.items() if key[:6] != "KWAAI_"}
        config = self.folder / "kwaai.toml"
        config.touch()
        return subprocess.Popen(
            [sys.executable, "-m", "kwaai_core", "models", *map(str, words)],
            env=clean | {"KWAAI_STATE": str(self.folder / "state"), "KWAAI_CONFIG": str(config)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        )

    def __call__(self, *words: object, fails: int = 0) -> str:
        """Run `kwaai models` to its end; what it wrote, to stderr where it is to fail."""
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == fails, (out, err)
        if not fails:
            return out
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert "bug" not in err
        return err

    def json(self, *words: object) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def kwaai(tmp_path: Path) -> Kwaai:
    return Kwaai(tmp_path)
