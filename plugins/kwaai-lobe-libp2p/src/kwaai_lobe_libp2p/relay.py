"""Relays: connections through a third node, where two cannot reach one another (circuit v2).

A relay sees who talks to whom, and how much: Noise runs from end to end through it. Each of its
streams passed its door, so it forwards for members of its groups and nobody else.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import trio
from google.protobuf.message import DecodeError
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import (
    HopMessage,
    PeerId,
    Reservation,
    Status,
    StopMessage,
)

from kwaai_core import FrameError, KwaaiError, PeerLost, PeerUnreachable
from kwaai_lobe_libp2p.addresses import Address
from kwaai_lobe_libp2p.connection import Connection, Handshake
from kwaai_lobe_libp2p.identify import message, read_message
from kwaai_lobe_libp2p.network import Network
from kwaai_lobe_libp2p.streams import ByteStream
from kwaai_lobe_libp2p.tasks import within

HOP, STOP = "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop"

RESERVED = 3600.0
"""For how many seconds a relay keeps a place for who asks for one."""

PLACES, CIRCUITS, CIRCUITS_EACH = 256, 128, 16
"""For how many peers a relay keeps one; how many circuits it carries, and from one peer."""

ASK = 10.0
RETRY = 2.0, 30.0
_LONGEST = 4096

M = TypeVar("M", HopMessage, StopMessage)

_log = logging.getLogger(__name__)


class Relayed(trio.abc.Stream):
    """A stream through a relay, as the TCP connection that it stands for."""

    def __init__(self, wire: ByteStream) -> None:
        self._wire = wire
        self._left = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._wire.write(bytes(data))
        except PeerLost as error:
            raise trio.BrokenResourceError(error.message) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._left:
            try:
                self._left = await self._wire.read_some()
            except PeerLost as error:
                raise trio.BrokenResourceError(error.message) from error
        found, self._left = self._left[:max_bytes], self._left[max_bytes or len(self._left) :]
        return found

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._wire.reset()


class Relay:
    """Forwards streams to peers that have reserved a place here."""

    def __init__(self, network: Network, clock: Callable[[], float] = trio.current_time) -> None:
        self._network = network
        self._clock = clock
        self._places: dict[str, float] = {}
        self._circuits: Counter[str] = Counter()

    @property
    def circuits(self) -> Mapping[str, int]:
        """How many circuits it carries now from each peer that has any."""
        return self._circuits

    async def serve(self, wire: ByteStream) -> None:
        """Answer one request. Errors: :class:`FrameError` for what is none."""
        with within(ASK, "a request of a relay"):
            asked = _parsed(HopMessage, await read_message(wire, _LONGEST))
        if asked.type == HopMessage.RESERVE:
            await self._reserve(wire)
        elif asked.type == HopMessage.CONNECT:
            await self._connect(wire, _peer(asked.peer))
        else:
            await _answer(wire, Status.UNEXPECTED_MESSAGE)

    async def _reserve(self, wire: ByteStream) -> None:
        now = self._clock()
        self._places = {peer: until for peer, until in self._places.items() if until > now}
        if wire.peer not in self._places and len(self._places) >= PLACES:
            await _answer(wire, Status.RESERVATION_REFUSED)
            return
        self._places[wire.peer] = now + RESERVED
        place = Reservation(expire=int(time.time() + RESERVED))
        answer = HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=place)
        await wire.write(message(answer.SerializeToString()))
        await wire.finish()

    async def _connect(self, wire: ByteStream, peer: str) -> None:
        if self._places.get(peer, 0.0) <= self._clock():
            await _answer(wire, Status.NO_RESERVATION)
            return
        if self._circuits.total() >= CIRCUITS or self._circuits[wire.peer] >= CIRCUITS_EACH:
            await _answer(wire, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self._circuits[wire.peer] += 1
        try:
            await self._forward(wire, peer)
        finally:
            self._circuits[wire.peer] -= 1
            if not self._circuits[wire.peer]:
                del self._circuits[wire.peer]

    async def _forward(self, wire: ByteStream, peer: str) -> None:
        connection = self._network.best(peer)
        if connection is None or connection.address.relay:
            await _answer(wire, Status.CONNECTION_FAILED)
            return
        other: ByteStream | None = None
        try:
            with within(ASK, f"a relayed connection to {peer}"):
                other = await connection.open(STOP)
                who = PeerId(id=ID.from_string(wire.peer).to_bytes())
                offer = StopMessage(type=StopMessage.CONNECT, peer=who)
                await other.write(message(offer.SerializeToString()))
                said = _parsed(StopMessage, await read_message(other, _LONGEST))
        except KwaaiError as error:
            _log.debug("%s takes no relayed connection: %s", peer, error.message)
            if other is not None:
                await other.reset()
            await _answer(wire, Status.CONNECTION_FAILED)
            return
        try:
            if said.status != Status.OK:
                await _answer(wire, Status.CONNECTION_FAILED)
                return
            done = HopMessage(type=HopMessage.STATUS, status=Status.OK)
            await wire.write(message(done.SerializeToString()))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pour, wire, other, nursery.cancel_scope)
                nursery.start_soon(_pour, other, wire, nursery.cancel_scope)
        finally:
            await other.reset()


class Circuits:
    """This node's end of circuits: the places it has at relays, and who comes that way."""

    def __init__(
        self,
        network: Network,
        handshake: Handshake,
        adopt: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self._network = network
        self._handshake = handshake
        self._adopt = adopt
        self._places: dict[str, Address] = {}

    @property
    def places(self) -> list[Address]:
        """The addresses of the relays that keep a place for this node now."""
        return list(self._places.values())

    async def keep_place(self, relay: Address) -> None:
        """Reserve a place at a relay, and again before it ends, for ever."""
        first, longest = RETRY
        pause = first
        while True:
            try:
                with within(ASK, f"reserving a place at {relay}"):
                    connection = await self._reserve(relay)
            except KwaaiError as error:
                _log.info("no place at the relay %s: %s", relay, error.message)
                await trio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, longest)
                continue
            pause = first
            self._places[relay.peer] = relay
            try:
                with trio.move_on_after(RESERVED / 2):
                    await connection.closed.wait()
            finally:
                if not connection.is_up:
                    self._places.pop(relay.peer, None)

    async def _reserve(self, relay: Address) -> Connection:
        connection = await self._network.connected(relay.peer, [relay])
        await self._ask(relay.peer, HopMessage(type=HopMessage.RESERVE))
        return connection

    async def dial(self, address: Address) -> trio.abc.Stream:
        """A stream to the peer of an address. Errors: :class:`PeerUnreachable`."""
        relay = Address(address.kind, address.host, address.port, address.relay)
        who = PeerId(id=ID.from_string(address.peer).to_bytes())
        try:
            with within(ASK, f"a way through the relay {relay}"):
                await self._network.connected(relay.peer, [relay])
                wire = await self._ask(
                    relay.peer, HopMessage(type=HopMessage.CONNECT, peer=who), keep=True
                )
        except KwaaiError as error:
            raise PeerUnreachable(f"through the relay: {error.message}") from error
        return Relayed(wire)

    async def _ask(self, relay: str, asked: HopMessage, *, keep: bool = False) -> ByteStream:
        """Errors: :class:`KwaaiError` of any kind where the relay does not agree."""
        wire = await self._network.open(relay, HOP)
        try:
            await wire.write(message(asked.SerializeToString()))
            said = _parsed(HopMessage, await read_message(wire, _LONGEST))
            if said.type != HopMessage.STATUS or said.status != Status.OK:
                raise PeerUnreachable(f"it answers {_name(said.status)}")
        except BaseException:
            await wire.reset()
            raise
        if not keep:
            await wire.reset()
        return wire

    async def serve(self, wire: ByteStream) -> None:
        """Take a connection that a relay brings, and carry it to its end."""
        relay = self._places.get(wire.peer)
        if relay is None:
            raise FrameError(f"{wire.peer} is no relay of this node")
        with within(ASK, "a relayed connection"):
            offer = _parsed(StopMessage, await read_message(wire, _LONGEST))
            peer = _peer(offer.peer)
            answer = StopMessage(type=StopMessage.STATUS, status=Status.OK)
            await wire.write(message(answer.SerializeToString()))
        there = Address(relay.kind, relay.host, relay.port, peer, relay.peer)
        connection = await self._handshake.inbound(Relayed(wire), there)
        await self._adopt(connection)


@asynccontextmanager
async def open_relaying(
    network: Network, circuits: Circuits, *, relay: bool
) -> AsyncIterator[None]:
    """Take connections through relays, and be one, while the context is open."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(network.services.serve(STOP, circuits.serve))
        if relay:
            await stack.enter_async_context(network.services.serve(HOP, Relay(network).serve))
        yield


async def _pour(source: ByteStream, sink: ByteStream, scope: trio.CancelScope) -> None:
    try:
        while True:
            await sink.write(await source.read_some())
    except PeerLost:
        scope.cancel()


async def _answer(wire: ByteStream, status: Status.ValueType) -> None:
    said = HopMessage(type=HopMessage.STATUS, status=status)
    await wire.write(message(said.SerializeToString()))
    await wire.finish()


def _parsed(kind: type[M], body: bytes) -> M:
    """Errors: :class:`FrameError`."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise FrameError("what came is no message of a relay") from error


def _peer(said: PeerId) -> str:
    """Errors: :class:`FrameError`."""
    if not 32 <= len(said.id) <= 64:
        raise FrameError("what came names no peer")
    return str(ID(said.id))


def _name(status: Status.ValueType) -> str:
    known = {number: name for name, number in Status.items()}
    return known.get(status, f"status {status}").lower().replace("_", " ")
