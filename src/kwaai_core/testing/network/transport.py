"""One node of a simulated network, as the role transport."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import trio

from kwaai_core.errors import (
    FrameError,
    KwaaiError,
    PeerDenied,
    PeerLost,
    PeerUnreachable,
    ProtocolRefused,
)
from kwaai_core.peering import (
    DEADLINE,
    MAX_FRAME,
    Broadcast,
    DataChannel,
    Door,
    Identity,
    Link,
    Record,
    Stream,
    StreamHandler,
)
from kwaai_core.testing.network import channels, directory, topics
from kwaai_core.testing.network.lines import Connection
from kwaai_core.testing.network.streams import MemoryStream, Wire, within
from kwaai_core.testing.network.tasks import background

if TYPE_CHECKING:
    from kwaai_core.testing.network.network import Network

STREAMS = 256
"""How many streams one end may have open on a connection; who opens one more waits."""

_greeting: ContextVar[Connection | None] = ContextVar("_greeting", default=None)
"""The connection that this task is greeting a peer on: to all others it is not ready yet."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    nursery: trio.Nursery
    handler: StreamHandler
    max_frame: int


class MemoryTransport:
    """A :class:`kwaai_core.Transport` without sockets; made by :meth:`Network.node`.

    ``peer`` is its own peer id. ``directory`` is its part of the directory, which a test may let
    lie; ``up`` is False while it is killed. A test may put streams of a kind of its own in.
    """

    stream_type: ClassVar[type[MemoryStream]] = MemoryStream

    def __init__(
        self, network: Network, identity: Identity, address: str, nursery: trio.Nursery
    ) -> None:
        self.network = network
        self.identity = identity
        self.peer = identity.peer_id
        self.position = directory.position_of(self.peer)
        self.nursery = nursery
        self.up = True
        self.directory = directory.Directory(self)
        self.topics: dict[str, list[topics.Subscription]] = {}
        self._address = address
        self._door: Door | None = None
        self._served: dict[str, _Served] = {}
        self._handling: dict[trio.CancelScope, None] = {}
        self._connections: dict[str, Connection] = {}
        self.met: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<MemoryTransport {self.peer[-6:]}>"

    @property
    def addresses(self) -> Sequence[str]:
        """See :attr:`kwaai_core.Transport.addresses`."""
        return [self._address]

    def guard(self, door: Door) -> None:
        """See :meth:`kwaai_core.Transport.guard`."""
        self._door = door

    def lets(self, peer: str, protocol: str) -> bool:
        """Whether the door lets this peer in, for this."""
        return self._door is not None and self._door.allows(peer, protocol)

    async def connect(self, addresses: Sequence[str], *, seconds: float = DEADLINE) -> str:
        """See :meth:`kwaai_core.Transport.connect`."""
        peers = {address.rpartition("/p2p/")[2] for address in addresses}
        if len(peers) != 1 or not (peers & self.network.peers_at(addresses)):
            raise PeerUnreachable(f"these are not addresses of one peer: {', '.join(addresses)}")
        (peer,) = peers
        with within(seconds, f"connecting to {peer}"):
            await self._connected(peer)
        return peer

    async def disconnect(self, peer: str) -> None:
        """See :meth:`kwaai_core.Transport.disconnect`."""
        for connection in self.network.pair(self.peer, peer).connections:
            connection.lose(connection.end_of(self.peer))
        await trio.lowlevel.checkpoint()

    def links(self) -> Sequence[Link]:
        """See :meth:`kwaai_core.Transport.links`."""
        return [
            Link(peer, self.network.address(peer), connection.peers[0] == peer, rtt=connection.rtt)
            for peer, connection in self._connections.items()
            if self._usable(connection)
        ]

    async def ping(self, peer: str, *, seconds: float = DEADLINE) -> float:
        """See :meth:`kwaai_core.Transport.ping`."""
        with within(seconds, f"a ping of {peer}"):
            connection = await self._connected(peer)
            began = trio.current_time()
            await self._there_and_back(connection)
        connection.rtt = trio.current_time() - began
        return connection.rtt

    @asynccontextmanager
    async def open(
        self, peer: str, protocol: str, *, max_frame: int = MAX_FRAME, seconds: float = DEADLINE
    ) -> AsyncIterator[MemoryStream]:
        """See :meth:`kwaai_core.Transport.open`."""
        with within(seconds, f"opening {protocol} at {peer}"):
            wire = await self._opened(await self._connected(peer), protocol)
        try:
            yield self.stream_type(wire, protocol, max_frame)
        finally:
            wire.close()

    @asynccontextmanager
    async def serve(
        self, protocol: str, handler: StreamHandler, *, max_frame: int = MAX_FRAME
    ) -> AsyncIterator[None]:
        """See :meth:`kwaai_core.Transport.serve`."""
        if protocol in self._served:
            raise KwaaiError(f"{protocol} is served already")
        async with background() as nursery:
            self._served[protocol] = _Served(nursery, handler, max_frame)
            try:
                yield
            finally:
                del self._served[protocol]

    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.publish`."""
        await self.directory.publish(name, body, seconds)

    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        """See :meth:`kwaai_core.Transport.lookup`."""
        with within(seconds, f"looking {name} of {peer} up"):
            return await self.directory.lookup(peer, name)

    async def provide(self, key: str, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.provide`."""
        await self.directory.provide(key, seconds)

    async def providers(self, key: str, *, seconds: float = DEADLINE) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.providers`."""
        with within(seconds, f"looking for providers of {key}"):
            return await self.directory.providers(key)

    async def nearest(self, key: str, k: int, *, seconds: float = DEADLINE) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.nearest`."""
        with within(seconds, f"looking for who is nearest to {key}"):
            return await self.directory.nearest(key, k)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.abc.ReceiveChannel[Broadcast]]:
        """See :meth:`kwaai_core.Transport.subscribe`."""
        subscription = topics.Subscription()
        self.topics.setdefault(topic, []).append(subscription)
        try:
            yield subscription
        finally:
            self.topics[topic].remove(subscription)
            if not self.topics[topic]:
                del self.topics[topic]
            subscription.close()

    async def broadcast(self, topic: str, body: bytes) -> None:
        """See :meth:`kwaai_core.Transport.broadcast`."""
        if len(body) > topics.MAX_BODY:
            raise FrameError(f"a message of {len(body)} bytes: {topics.MAX_BODY} are allowed")
        topics.spread(self, topic, body)
        await trio.lowlevel.checkpoint()

    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        """See :meth:`kwaai_core.Transport.data_channel`."""
        if not isinstance(stream, MemoryStream):
            raise TypeError(f"{stream!r} is a stream of another transport")
        try:
            with within(seconds, f"opening a data channel to {stream.peer}"):
                return await channels.meet(stream.wire)
        except BaseException:
            stream.wire.close()
            raise

    def neighbours(self) -> dict[str, MemoryTransport]:
        """The nodes that it is connected to and that its line to them reaches now."""
        return {
            peer: node
            for peer, connection in self._connections.items()
            if self._usable(connection) and (node := self._reached(peer))
        }

    def reach(self) -> list[MemoryTransport]:
        """All nodes that let this one use their part of the directory, known by one another."""
        found: dict[str, MemoryTransport] = {}
        asked, left = {self.peer}, sorted(self.met)
        while left:
            asked.update(left)
            for peer in left:
                node = self._reached(peer)
                if node is not None and node.lets(self.peer, directory.PROTOCOL):
                    found[peer] = node
                    node.met[self.peer] = None
            known = {peer for one in left if one in found for peer in found[one].met}
            left = sorted(known - asked)
        self.met.update(dict.fromkeys(found))
        return list(found.values())

    async def round_trip(self, nodes: Sequence[MemoryTransport]) -> None:
        """Sleep for as long as the farthest of them takes to answer."""
        there = (self.network.delay(self.peer, node.peer) for node in nodes if node is not self)
        back = (self.network.delay(node.peer, self.peer) for node in nodes if node is not self)
        await trio.sleep(max(map(sum, zip(there, back, strict=True)), default=0.0))

    def die(self) -> None:
        """Be gone at once, with every connection, every handler, and all that it held."""
        self.up = False
        for connection in self.network.connections(self.peer):
            connection.lose(connection.end_of(self.peer))
        for scope in self._handling:
            scope.cancel()
        self._connections.clear()
        self.directory.forget()

    def _reached(self, peer: str) -> MemoryTransport | None:
        """The node of this peer, where it is up and the line to it carries."""
        if not self.up or self.network.pair(self.peer, peer).stopped is not None:
            return None
        return self.network.at(peer)

    def _usable(self, connection: Connection) -> bool:
        end = connection.end_of(self.peer)
        return connection.up(end) and (end == 1 or connection.ready.is_set())

    async def _connected(self, peer: str) -> Connection:
        """A connection to a peer that is up and greeted, or that this task is greeting on."""
        await trio.lowlevel.checkpoint()
        while (found := self._connections.get(peer)) and found.up(found.end_of(self.peer)):
            if self._usable(found) or _greeting.get() is found:
                return found
            await found.ready.wait()
        return await self._dialled(peer)

    async def _dialled(self, peer: str) -> Connection:
        if not self.up or peer == self.peer:
            raise PeerUnreachable(f"{peer} is this node" if self.up else "this node was killed")
        connection = Connection(self.network.pair(self.peer, peer), self.peer, peer)
        self._connections[peer] = connection
        try:
            await self._shake_hands(connection, peer)
            await self._greet(connection, peer)
        except BaseException:
            connection.lose(0)
            raise
        finally:
            connection.ready.set()
        self.reach()
        self.directory.tell()
        return connection

    async def _shake_hands(self, connection: Connection, peer: str) -> None:
        await self._there_and_back(connection)
        other = self.network.at(peer)
        if other is None:
            raise PeerUnreachable(f"nobody answers at {self.network.address(peer)}")
        await self._there_and_back(connection)
        if not other.up:
            raise PeerUnreachable(f"{peer} went away while it was connected to")
        other.accept(connection)
        self.met[peer] = None

    def accept(self, connection: Connection) -> None:
        """Take note of a connection from another node."""
        peer = connection.peers[0]
        self.met[peer] = None
        mine = self._connections.get(peer)
        if mine is None or not mine.up(mine.end_of(self.peer)):
            self._connections[peer] = connection

    async def _greet(self, connection: Connection, peer: str) -> None:
        if self._door is not None:
            token = _greeting.set(connection)
            try:
                await self._door.greet(peer)
            finally:
                _greeting.reset(token)

    async def _opened(self, connection: Connection, protocol: str) -> Wire:
        end = connection.end_of(self.peer)
        peer = connection.peers[1 - end]
        try:
            await connection.room(end, STREAMS)
            wire = Wire.opened(connection, end)
            try:
                await connection.cross(end, end)
                other = self.network.at(peer)
                refusal = other.take(wire.far, protocol) if other else None
                await connection.cross(1 - end, end)
                if refusal is not None:
                    raise refusal
            except BaseException:
                wire.close()
                raise
        except PeerLost as error:
            raise PeerUnreachable(error.message) from error
        return wire

    def take(self, wire: Wire, protocol: str) -> PeerDenied | ProtocolRefused | None:
        """Start the handler of a stream that a peer opens, or say why not."""
        peer = wire.connection.peers[1 - wire.end]
        served = self._served.get(protocol)
        if not self.lets(peer, protocol):
            return PeerDenied(f"{self.peer} does not let {peer} open {protocol}")
        if served is None:
            return ProtocolRefused(f"{self.peer} does not serve {protocol}")
        stream = self.stream_type(wire, protocol, served.max_frame)
        served.nursery.start_soon(self._handle, served.handler, stream)
        return None

    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        with trio.CancelScope() as scope:
            self._handling[scope] = None
            try:
                await handler(stream)
            except KwaaiError as error:
                _log.info("a stream of %s ended: %s", stream.protocol, error.message)
            except Exception:  # noqa: BLE001 - it ends its own stream and no other
                _log.warning("a handler of %s failed", stream.protocol, exc_info=True)
            finally:
                del self._handling[scope]
                stream.wire.close()

    async def _there_and_back(self, connection: Connection) -> None:
        end = connection.end_of(self.peer)
        try:
            await connection.cross(end, end)
            await connection.cross(1 - end, end)
        except PeerLost as error:
            raise PeerUnreachable(error.message) from error
