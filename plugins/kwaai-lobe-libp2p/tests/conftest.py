"""Nodes of the lobe, each on a loopback address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from kwaai_core import Stream, StreamEnded
from kwaai_core.peering import HELLO
from kwaai_core.testing.fakes import FakeHost
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p.settings import Libp2pSettings
from kwaai_lobe_libp2p.transport import Libp2pTransport, open_transport

ECHO = "/kwaai/echo/1"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


class OpenDoor:
    """Lets in everybody but whom it is told to ``shut`` out, or to take for ``strangers``."""

    def __init__(self) -> None:
        self.shut: set[str] = set()
        self.strangers: set[str] = set()
        self.greeting: Callable[[str], Awaitable[None]] | None = None

    def allows(self, peer: str, protocol: str) -> bool:
        return peer not in self.shut and (peer not in self.strangers or protocol == HELLO)

    async def greet(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.greeting is not None:
            await self.greeting(peer)


@dataclass(frozen=True, slots=True)
class Node:
    transport: Libp2pTransport
    peer: str
    door: OpenDoor = field(default_factory=OpenDoor)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes by name: the same one, with the same folder, for the same name."""

    folder: Path

    def host(self, name: str, **settings: object) -> FakeHost:
        table = Libp2pSettings(**{"listen": LOOPBACK, **settings})  # type: ignore[arg-type]
        identity = FakeIdentity(f"libp2p {name}")
        return FakeHost(self.folder / name, {Libp2pSettings: table}, identity)

    @asynccontextmanager
    async def __call__(self, name: str, **settings: object) -> AsyncIterator[Node]:
        host = self.host(name, **settings)
        async with open_transport(host) as transport:
            node = Node(transport, FakeIdentity(f"libp2p {name}").peer_id)
            transport.guard(node.door)
            yield node

    @asynccontextmanager
    async def pair(self, **settings: object) -> AsyncIterator[tuple[Node, Node]]:
        """Two nodes; the first has dialled the second, which serves an echo."""
        async with (
            self("one", **settings) as one,
            self("two", **settings) as two,
            two.transport.serve(ECHO, echo),
        ):
            await one.transport.connect(two.transport.addresses)
            yield one, two


async def echo(stream: Stream) -> None:
    """Send back whatever comes, and end when the peer has ended."""
    try:
        while True:
            await stream.send(await stream.receive())
    except StreamEnded:
        await stream.end()


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)
