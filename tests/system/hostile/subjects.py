"""The nodes under attack, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import trio

from hostile.wire import Address

Kind = Literal["kwaai", "closed", "stock"]


class NodeDied(Exception):
    """The process ended, or says nothing any more."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a node holds: bytes of resident memory, file descriptors, tasks."""

    memory: int
    files: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.0f} MiB, {self.files} files, {self.tasks} tasks"


class Subject:
    """A node under attack."""

    def __init__(
        self, process: subprocess.Popen[bytes], addresses: Sequence[str], log: Path
    ) -> None:
        self._process, self.log = process, log
        _, _, host, _, port, _, self.peer = addresses[0].split("/")
        self.address: Address = host, int(port)
        self._lock = trio.Lock()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def ended(self) -> bool:
        """Whether the process ends, now or within three seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await trio.to_thread.run_sync(self._process.wait, 3)
        return not self.alive

    async def load(self) -> Load:
        """What it holds now. Errors: :class:`NodeDied`."""
        with trio.move_on_after(30):
            tasks: int = (await self._ask(""))["tasks"]
            proc = Path("/proc") / str(self._process.pid)
            pages = int((proc / "statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE")
            return Load(memory, len(list((proc / "fd").iterdir())), tasks)
        raise NodeDied("it does not answer any more")

    async def dial(self, address: str) -> None:
        """Have it dial an address; returns before it has. Errors: :class:`NodeDied`."""
        await self._ask(address)

    async def _ask(self, line: str) -> dict[str, Any]:
        async with self._lock:
            return await _asked(self._process, f"{line}\n".encode())

    def why(self) -> str:
        """The last that it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])


@asynccontextmanager
async def subject(kind: Kind, folder: Path) -> AsyncIterator[Subject]:
    """A node of a kind while the context is open; its log is in the folder."""
    log = folder / f"{kind}.log"
    process = _started(kind, log, folder / "state")
    try:
        with trio.fail_after(30):
            try:
                said = await _asked(process, b"")
            except NodeDied:
                raise NodeDied(f"it does not start:\n{log.read_text()}") from None
        yield Subject(process, said["addresses"], log)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # of a line that the process did not live to read
                    pipe.close()


def _started(kind: Kind, log: Path, state: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name[:6] != "KWAAI_"}
    path = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), "KWAAI_STATE": str(state)}
    with log.open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", f"hostile.{kind}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        )


async def _asked(process: subprocess.Popen[bytes], question: bytes) -> dict[str, Any]:
    def ask() -> bytes:
        if process.stdin is None or process.stdout is None:
            return b""
        try:
            process.stdin.write(question)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        return process.stdout.readline()

    if not (answer := await trio.to_thread.run_sync(ask, abandon_on_cancel=True)):
        raise NodeDied("its process ended")
    found: dict[str, Any] = json.loads(answer)
    return found
