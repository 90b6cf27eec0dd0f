"""Real nodes, each a process with a folder of its own that is gone afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kwaai_core import KwaaiError
from kwaai_core.local import answered, node_client

START_SECONDS = 300.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.1


class DemoFailed(KwaaiError):
    """The demonstration could not be given; the message says what happened to which node."""


@dataclass(eq=False)
class Node:
    """One ``kwaai run``; ``name`` is what it is called in the demonstration."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "run.log").read_text(errors="replace")

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def url(self) -> str:
        """Where its API is; empty until it has said so."""
        found = re.search(r"http://127\.0\.0\.1:\d+", self.log)
        return found[0] if found else ""

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds. Errors: :class:`DemoFailed`."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if self.process.poll() is not None:
                raise DemoFailed(f"{self.name} ended before {what}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.name}: {what} took too long: {self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def _last_words(self) -> str:
        return " / ".join(self.log.strip().splitlines()[-3:]) or "it said nothing"

    @cached_property
    def peer(self) -> str:
        """Its peer id. Errors: :class:`DemoFailed` where it has no identity."""
        found = [status["facts"].get("peer_id") for status in self.get("/lobes")]
        if not any(found):
            raise DemoFailed(f"{self.name} has no identity: pip install kwaai-lobe-identity")
        return str(next(filter(None, found)))

    def get(self, path: str, *, seconds: float = 30.0) -> Any:
        """What it answers on its Unix socket, within so long. Errors: :class:`KwaaiError`."""
        with node_client(self.state, timeout=seconds) as client:
            return answered(client.get(path))

    def post(self, path: str, document: Mapping[str, object]) -> Any:
        """As :meth:`get`."""
        with node_client(self.state, timeout=120) as client:
            return answered(client.post(path, json=dict(document)))

    def serves(self) -> bool:
        """Whether its socket answers."""
        with suppress(KwaaiError):
            self.get("/health")
            return True
        return False


@contextmanager
def node(
    name: str, folder: Path, config: Mapping[str, Mapping[str, object]], models: Path
) -> Iterator[Node]:
    """A node with this configuration, for as long as the context is open. ``models`` is what the
    user's own node knows of models that were added to it, which is copied where it is there."""
    folder.mkdir()
    if models.is_dir():
        shutil.copytree(models, folder / "state" / "lobes" / models.name)
    (folder / "kwaai.toml").write_text(_toml(config))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("KWAAI_")}
    environment = clean | {
        "KWAAI_CONFIG": str(folder / "kwaai.toml"),
        "KWAAI_STATE": str(folder / "state"),
        "NO_COLOR": "1",
    }
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kwaai_core", "run", "--port", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    made = Node(name, folder, process)
    try:
        made.wait_for("it listened", lambda: bool(made.url) and made.serves())
        yield made
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


def _toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        # a JSON string, number, boolean or array of them is one of TOML too
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"
