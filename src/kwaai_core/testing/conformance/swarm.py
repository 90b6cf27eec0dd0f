"""What the rules of the role transport are checked with: nodes, a door for each, and streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from kwaai_core.errors import NoPeerAvailable, PeerLost, StreamEnded
from kwaai_core.peering import HELLO, MAX_FRAME, Stream, Transport
from kwaai_core.roles import Host
from kwaai_core.testing.conformance.rules import broken, refused, require
from kwaai_core.testing.fakes import FakeHost
from kwaai_core.testing.identities import FakeIdentity

OpenTransport = Callable[[Host], AbstractAsyncContextManager[Transport]]
Lie = Callable[[Transport, str, str], Awaitable[None]]
"""Makes a transport hold a record of a subject under a name, which it has signed itself."""

PROTOCOL = "/kwaai/echo/1"
OTHER = "/kwaai/other/1"


class TestDoor:
    """Lets everybody in but whom it is told to shut out, and remembers who came."""

    __test__ = False

    def __init__(self) -> None:
        self.shut: set[tuple[str, str]] = set()
        self.strangers: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.greeted: list[str] = []
        self.greeting: Callable[[str], Awaitable[None]] | None = None

    def allows(self, peer: str, protocol: str) -> bool:
        self.asked.append((peer, protocol))
        known = peer not in self.strangers or protocol == HELLO
        return known and (peer, protocol) not in self.shut

    async def greet(self, peer: str) -> None:
        self.greeted.append(peer)
        if self.greeting is not None:
            await self.greeting(peer)


@dataclass(frozen=True, slots=True)
class Node:
    transport: Transport
    peer: str
    door: TestDoor


@dataclass(frozen=True, slots=True)
class Swarm:
    """Where a rule gets its nodes from, and how long it waits.

    ``pace`` is for what must not happen, ``patience`` for what must, ``lifetime`` for records that
    are to expire; all in seconds.
    """

    open: OpenTransport
    folder: Path
    now: Callable[[], float]
    pace: float
    patience: float
    lifetime: float
    lie: Lie | None

    @asynccontextmanager
    async def node(self, name: str, *, guarded: bool = True) -> AsyncIterator[Node]:
        """The same one for the same name, without any connection."""
        identity = FakeIdentity(f"transport {name}", now=self.now)
        host = FakeHost(self.folder / name, identity=identity)
        async with self.open(host) as transport:
            door = TestDoor()
            if guarded:
                transport.guard(door)
            yield Node(transport, identity.peer_id, door)

    @asynccontextmanager
    async def nodes(self, *names: str) -> AsyncIterator[list[Node]]:
        """Nodes each of which is connected to all the others."""
        async with AsyncExitStack() as stack:
            found: list[Node] = []
            for name in names:
                node = await stack.enter_async_context(self.node(name))
                for other in found:
                    await node.transport.connect(other.transport.addresses)
                found.append(node)
            yield found

    async def eventually(
        self, what: str, holds: Callable[[], Awaitable[bool]], *, more: float = 0.0
    ) -> None:
        """Ask again until it holds, ``more`` seconds longer than the patience."""
        with trio.move_on_after(self.patience + more):
            while not await holds():  # noqa: ASYNC110 - what is asked tells nobody of itself
                await trio.sleep(self.pace / 10)
            return
        broken(f"{what} did not come true within {self.patience + more:g} s")

    async def eventually_linked(self, one: Node, other: Node, *, linked: bool) -> None:
        async def holds() -> bool:
            return linked == any(link.peer == other.peer for link in one.transport.links())

        await self.eventually(f"that links() has {'a' if linked else 'no'} link to a peer", holds)


async def echo(stream: Stream) -> None:
    """Send back whatever comes, and end when the peer has ended."""
    try:
        while True:
            await stream.send(await stream.receive())
    except StreamEnded:
        await stream.end()


async def answers(stream: Stream, frame: bytes = b"hello") -> None:
    """Require that an echo comes back."""
    await stream.send(frame)
    came = await stream.receive()
    require(came == frame, f"an echo of {frame[:20]!r} was {came[:20]!r}")


async def opens(one: Node, other: Node, protocol: str = PROTOCOL) -> None:
    """Require that a stream of a protocol that echoes can be opened and used."""
    async with one.transport.open(other.peer, protocol) as stream:
        await answers(stream)


@asynccontextmanager
async def joined(
    one: Node, other: Node, *, limit: int = MAX_FRAME, other_limit: int = MAX_FRAME
) -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a stream that ``one`` opens."""
    ends, arrived = trio.open_memory_channel[Stream](1)

    async def hand_over(stream: Stream) -> None:
        await ends.send(stream)
        await trio.sleep_forever()

    with ends, arrived:
        async with (
            other.transport.serve(PROTOCOL, hand_over, max_frame=other_limit),
            one.transport.open(other.peer, PROTOCOL, max_frame=limit) as near,
        ):
            yield near, await arrived.receive()


async def is_lost(stream: Stream, what: str) -> None:
    """Require that a stream breaks off: after frames that had arrived, without an end."""
    async with refused(PeerLost, f"receive {what}"):
        while True:
            await stream.receive()


async def is_shut_out(one: Node, other: Node, protocol: str = PROTOCOL) -> None:
    """Require that a stream is not let in: by refusal, or by its loss before any frame."""
    try:
        async with one.transport.open(other.peer, protocol) as stream:
            await stream.send(b"let me in")
            frame = await stream.receive()
    except (NoPeerAvailable, PeerLost):
        return
    broken(f"a stream that must not be let in gave the frame {frame[:20]!r}")
