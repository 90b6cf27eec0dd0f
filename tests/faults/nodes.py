"""Nodes as real processes, that are killed, frozen and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.system.real_kwaai import KWAAI, Home

START_SECONDS = 120.0
KNOWN_SECONDS = 60.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0


class Broken(Exception):
    """A swarm cannot be used for another cell; the message says what is wrong with which node."""


@dataclass(eq=False)
class Node:
    """A ``kwaai run`` with a folder of its own, which outlives its processes.

    ``third`` is the part of the model that it holds, None for the one that is asked; ``host`` the
    network namespace in which it runs, nothing for this machine's own. ``frozen`` are the processes
    that were stopped and not continued yet, ``pids`` those that it ever had.
    """

    name: str
    home: Home
    third: int | None = None
    host: str = ""
    peer: str = ""
    worker: int = 0
    process: subprocess.Popen[bytes] | None = None
    frozen: set[int] = field(default_factory=set)
    pids: set[int] = field(default_factory=set)

    @classmethod
    def make(cls, name: str, folder: Path, config: Mapping[str, object], **more: Any) -> Node:
        """Write its configuration: top-level keys first, then tables."""
        folder.mkdir(parents=True)
        (folder / "kwaai.toml").write_text(_toml(config))
        return cls(name, Home(folder), **more)

    @property
    def pid(self) -> int:
        if self.process is None:
            raise Broken(f"{self.name} was never started")
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.home.folder / "run.log").read_text(errors="replace")

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    async def add(self, model: Path, name: str) -> None:
        """Give it a file as a model. Errors: :class:`Broken`."""
        done = await trio.to_thread.run_sync(
            lambda: self.home.kwaai("models", "add", str(model), "--id", name)
        )
        if done.returncode:
            raise Broken(f"the model was not added: {done.stderr}")

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start its process, and wait until it answers. Errors: :class:`Broken`."""
        self._begin(environment)
        await self.until("it answered", self._answers)

    def _begin(self, environment: Mapping[str, str]) -> None:
        with (self.home.folder / "run.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._inside, KWAAI, "run", "--port", "0"],
                env={**self.home.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pids.add(self.process.pid)
        self.worker = 0
        self.frozen.clear()

    @property
    def _inside(self) -> list[str]:
        return ["ip", "netns", "exec", self.host] if self.host else []

    async def ready(self) -> None:
        """Wait until it answers requests for models. Errors: :class:`Broken`."""

        async def is_ready() -> bool:
            return await self.get("/ready") is not None

        await self.until("it was ready", is_ready)

    async def until(self, what: str, condition: Callable[[], Any]) -> None:
        """Wait until an awaited condition holds. Errors: :class:`Broken`."""
        deadline = time.monotonic() + START_SECONDS
        while not await condition():
            if not self.lives or time.monotonic() > deadline:
                said = " / ".join(self.log.strip().splitlines()[-3:])
                raise Broken(f"{self.name}: waited in vain until {what}: {said}")
            await trio.sleep(_POLL_SECONDS)

    async def get(self, path: str, *, seconds: float = 5.0) -> Any:
        """What it answers on its Unix socket; None where it does not, or says no."""
        return await self._ask("GET", path, None, seconds)

    async def post(self, path: str, document: Mapping[str, object], seconds: float = 60.0) -> Any:
        """As :meth:`get`."""
        return await self._ask("POST", path, document, seconds)

    async def _ask(
        self, method: str, path: str, document: Mapping[str, object] | None, seconds: float
    ) -> Any:
        socket = str(self.home.folder / "state" / "node.sock")
        transport = httpx.AsyncHTTPTransport(uds=socket)
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=seconds
            ) as client:
                response = await client.request(method, path, json=document)
                return response.json() if response.is_success else None
        return None

    async def _answers(self) -> bool:
        return await self.get("/health") is not None

    async def facts(self, lobe: str) -> dict[str, Any]:
        """What one of its lobes tells of itself."""
        for status in await self.get("/lobes") or []:
            if status["lobe"] == lobe:
                found: dict[str, Any] = status["facts"]
                return found
        return {}

    async def look(self) -> None:
        """Find out which process computes for it now; 0 where there is none."""
        workers = (await self.facts("llama")).get("workers", [])
        self.worker = workers[-1]["pid"] if workers else 0

    # -- what befalls it

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def kill_worker(self) -> None:
        os.kill(self.worker, signal.SIGKILL)

    def freeze(self, *pids: int) -> None:
        """Stop some of its processes."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self.frozen.add(pid)

    def thaw(self) -> None:
        """Continue what was stopped."""
        for pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen.clear()

    async def end(self) -> None:
        """End its processes; it must not be started again."""
        self.thaw()
        if self.process is None:
            return
        self.process.terminate()
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        self.process.kill()
        await trio.to_thread.run_sync(self.process.wait)


async def join(asked: Node, hosts: Sequence[Node], environment: Mapping[str, str]) -> None:
    """Start nodes, and let the hosts join a group of the one that is asked. Errors:
    :class:`Broken`."""
    async with trio.open_nursery() as nursery:
        for node in (asked, *hosts):
            nursery.start_soon(node.start, environment)
    invitation = {"group": "swarm", "seconds": 3600, "may_invite": True}
    for host in hosts:
        line = await asked.post("/peers/invite", invitation)
        if await host.post("/peers/join", {"line": line["line"]}) is None:
            raise Broken(f"{host.name} could not join: {host.log[-500:]}")
        host.peer = (await host.facts("identity"))["peer_id"]


async def known(asked: Node, model: str) -> set[str]:
    """The peers that one who is asked could use for a model now."""
    found = await asked.get(f"/lobes/router/status?model={model}", seconds=20) or {}
    return {peer["peer"] for peer in found.get("peers", [])}


async def all_known(asked: Node, hosts: Iterable[Node], model: str) -> None:
    """Wait until one who is asked reckons with these. Errors: :class:`Broken`."""
    deadline = time.monotonic() + KNOWN_SECONDS
    wanted = {host.peer for host in hosts}
    while missing := wanted - await known(asked, model):
        if time.monotonic() > deadline:
            names = ", ".join(host.name for host in hosts if host.peer in missing)
            raise Broken(f"{names}: not known after {KNOWN_SECONDS:.0f} s")
        await trio.sleep(0.1)


async def end(nodes: Sequence[Node]) -> None:
    """End the processes of all of them, also where the caller is cancelled."""
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(node.end)


def _toml(config: Mapping[str, object]) -> str:
    lines = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines.append(f"[{name}]")
            # a JSON string, number, boolean or array of them is one of TOML too
            lines += [f"{key} = {json.dumps(each)}" for key, each in value.items()]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
