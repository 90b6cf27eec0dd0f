"""A world of nodes behind their doors, on one simulated network, for the tests of the door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kwaai_core.config import PeersSettings
from kwaai_core.door import ROUND_SECONDS, Gate
from kwaai_core.errors import StreamEnded
from kwaai_core.peering import Owner, Stream, Transport
from kwaai_core.roles import Offer
from kwaai_core.testing import FakeHost, FakeIdentity, Line, Network
from kwaai_core.testing.network import MemoryTransport

ECHO = "/kwaai/echo/1"
HOUR, YEAR = 3600.0, 365 * 24 * 3600.0
ROUNDS = 2.6 * ROUND_SECONDS
"""Time for two rounds of the door, whatever the jitter."""


@dataclass
class One:
    """A node behind its door. ``raw`` is its transport without it; ``role`` is what lobes get.

    ``heard`` is who has said something to its echo, and whether it was admitted then.
    """

    identity: FakeIdentity
    gate: Gate
    role: Transport
    raw: MemoryTransport
    heard: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def peer(self) -> str:
        return self.identity.peer_id

    async def echo(self, stream: Stream) -> None:
        self.heard.append((stream.peer, self.gate.admits(stream.peer)))
        await echo(stream)

    def linked(self, other: One | MemoryTransport) -> bool:
        return any(link.peer == other.peer for link in self.raw.links())

    async def sees(self, other: One) -> dict[str, Any]:
        seen = json.loads(json.dumps(await self.gate.peers()))
        (found,) = [one for one in seen if one["peer"] == other.peer]
        return dict(found)


class World:
    """A network, and clocks that a test may put forward."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network(1, Line(0.01))
        self.ahead: dict[str, float] = {}

    def identity(self, name: str, owner: Owner | None = None) -> FakeIdentity:
        return FakeIdentity(name, owner=owner, now=self.clock(name))

    def clock(self, name: str) -> Callable[[], float]:
        return lambda: self.network.now() + self.ahead.get(name, self.ahead.get("all", 0.0))

    @asynccontextmanager
    async def node(
        self, identity: FakeIdentity, name: str = "one", **settings: Any
    ) -> AsyncIterator[One]:
        """A node that serves an echo; ``settings`` are those of ``[peers]``."""
        gate = Gate(PeersSettings(**settings), self.folder / f"{name}.json", self.clock(name))
        host = FakeHost(self.folder / name, identity=identity)
        async with gate.opened(Offer("memory", self.network.open), host) as role:
            raw = self.network.at(identity.peer_id)
            assert raw is not None
            node = One(identity, gate, role, raw)
            async with role.serve(ECHO, node.echo):
                yield node

    @asynccontextmanager
    async def stranger(
        self, name: str = "stranger", identity: FakeIdentity | None = None
    ) -> AsyncIterator[MemoryTransport]:
        """A node that keeps to no rules, and says hello to nobody."""
        async with self.network.node(identity or self.identity(name)) as node:
            node.guard(Anybody())
            yield node


class Anybody:
    """The door of somebody who has none."""

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        return


async def echo(stream: Stream) -> None:
    """Send back whatever comes, however long it takes to come."""
    try:
        while True:
            await stream.send(await stream.receive(seconds=YEAR))
    except StreamEnded:
        await stream.end()


async def says(one: Transport, other: str, protocol: str = ECHO) -> None:
    """An echo comes back."""
    async with one.open(other, protocol) as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
