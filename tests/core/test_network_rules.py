"""The transport in memory conforms, and each rule of a transport catches what breaks it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache

import pytest
import trio
from trio.testing import MockClock

from kwaai_core.errors import (
    DeadlinePassed,
    FrameError,
    KwaaiError,
    PeerDenied,
    PeerLost,
    ProtocolRefused,
)
from kwaai_core.framing import FrameReader
from kwaai_core.peering import (
    DEADLINE,
    HELLO,
    MAX_FRAME,
    Broadcast,
    DataChannel,
    Record,
    Stream,
    StreamHandler,
    Transport,
)
from kwaai_core.testing import Line, Network, Nonconformance, check_transport
from kwaai_core.testing.network import MemoryStream, MemoryTransport, channels, directory, topics
from kwaai_core.testing.network.lines import Connection
from kwaai_core.testing.network.streams import Wire
from kwaai_core.testing.network.topics import Subscription
from kwaai_core.testing.network.transport import _Served


async def lie(transport: Transport, subject: str, name: str) -> None:
    assert isinstance(transport, MemoryTransport)
    until = transport.network.now() + 1000
    record = Record(subject, name, b"a lie", 1 << 62, until)
    transport.directory.lie(subject, name, directory.signed(transport.identity, record))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "line",
    [
        Line(),
        Line(latency=0.001),
        Line(latency=0.02, jitter=0.02, bandwidth=20e6),
        Line(latency=0.005, jitter=0.1, stall=0.01, direct=False),
    ],
    ids=["at once", "near", "far", "rough"],
)
async def test_the_transport_in_memory_conforms(
    line: Line, seed: int, autojump_clock: MockClock
) -> None:
    network = Network(seed, line)
    await check_transport(network.open, now=network.now, lie=lie, patience=10, seconds=3600)


class NoLimit(MemoryStream):
    def __init__(self, wire: Wire, protocol: str, max_frame: int) -> None:
        super().__init__(wire, protocol, MAX_FRAME)


class LimitOnlyWhenSending(MemoryStream):
    def __init__(self, wire: Wire, protocol: str, max_frame: int) -> None:
        super().__init__(wire, protocol, max_frame)
        self._reader = FrameReader(MAX_FRAME)


class GoesOnAfterTooMuch(MemoryStream):
    async def send(
        self, frame: bytes | bytearray | memoryview, *, seconds: float = DEADLINE
    ) -> None:
        if len(frame) > self._max_frame:
            raise FrameError("too long")
        await super().send(frame, seconds=seconds)


class NoEmptyFrames(MemoryStream):
    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        while not (frame := await super().receive(seconds=seconds)):
            pass
        return frame


class BytesOnly(MemoryStream):
    async def send(
        self, frame: bytes | bytearray | memoryview, *, seconds: float = DEADLINE
    ) -> None:
        await super().send(b"" + frame if isinstance(frame, bytes) else b"?", seconds=seconds)


class SomebodyElse(MemoryStream):
    def __init__(self, wire: Wire, protocol: str, max_frame: int) -> None:
        super().__init__(wire, protocol, max_frame)
        self.peer = wire.connection.peers[wire.end]


class NoEnd(MemoryStream):
    async def end(self, *, seconds: float = DEADLINE) -> None:
        await trio.lowlevel.checkpoint()


class EndsBothWays(MemoryStream):
    async def end(self, *, seconds: float = DEADLINE) -> None:
        await super().end(seconds=seconds)
        await self.aclose()


class EndsByItself(MemoryStream):
    """Takes every close for an end."""

    async def aclose(self) -> None:
        await self.end()
        await super().aclose()


class WaitsForEver(MemoryStream):
    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        return await super().receive(seconds=math.inf)


class GivesUpAtOnce(MemoryStream):
    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        return await super().receive(seconds=0.0)


class LosesWhatIsCancelled(MemoryStream):
    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        frame = await super().receive(seconds=seconds)
        await trio.sleep(0.0001)
        return frame


class LateIsLost(MemoryStream):
    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        try:
            return await super().receive(seconds=seconds)
        except DeadlinePassed:
            await self.aclose()
            raise


class BuffersAll(MemoryStream):
    async def _write(self, data: bytes, seconds: float) -> None:
        self.wire.far.unread = 0
        await super()._write(data, seconds)


class GoesOnAfterHalfAFrame(MemoryStream):
    async def _write(self, data: bytes, seconds: float) -> None:
        await self.wire.write(data, trio.current_time() + seconds)


class BreaksTheConnection(MemoryStream):
    """As a cancelled write does where one cipher serves all streams."""

    async def _write(self, data: bytes, seconds: float) -> None:
        try:
            await super()._write(data, seconds)
        except trio.Cancelled:
            self.wire.connection.lose(self.wire.end)
            raise


class LetsAllIn(MemoryTransport):
    def lets(self, peer: str, protocol: str) -> bool:
        return super().lets(peer, protocol) or self._door is not None


class OpenUntilGuarded(MemoryTransport):
    def lets(self, peer: str, protocol: str) -> bool:
        return self._door is None or super().lets(peer, protocol)


class AsksOnce(MemoryTransport):
    def lets(self, peer: str, protocol: str) -> bool:
        known: dict[tuple[str, str], bool] = self.__dict__.setdefault("known", {})
        if self._door is not None and (peer, protocol) not in known:
            known[peer, protocol] = super().lets(peer, protocol)
        return known.get((peer, protocol), False)


class TopicsAreForAll(MemoryTransport):
    def lets(self, peer: str, protocol: str) -> bool:
        return super().lets(peer, protocol) or protocol == topics.PROTOCOL


class AsksForNoAuthor(MemoryTransport):
    def lets(self, peer: str, protocol: str) -> bool:
        return super().lets(peer, protocol) or protocol == HELLO


class NoGreeting(MemoryTransport):
    async def _greet(self, connection: Connection, peer: str) -> None:
        return


class UsedBeforeTheGreeting(MemoryTransport):
    async def _greet(self, connection: Connection, peer: str) -> None:
        connection.ready.set()
        await super()._greet(connection, peer)


class KeepsTheDenied(MemoryTransport):
    async def _greet(self, connection: Connection, peer: str) -> None:
        try:
            await super()._greet(connection, peer)
        except PeerDenied:
            return


class AnybodyWillDo(MemoryTransport):
    """Takes whoever is at an address for the peer that the address names."""

    async def connect(self, addresses: Sequence[str], *, seconds: float = DEADLINE) -> str:
        (peer,) = {
            peer
            for peer in self.network._addresses
            if any(self.network.address(peer).split("/p2p")[0] in address for address in addresses)
        } or {"nobody"}
        return await super().connect([self.network.address(peer)], seconds=seconds)


class NeverMeasures(MemoryTransport):
    async def ping(self, peer: str, *, seconds: float = DEADLINE) -> float:
        took = await super().ping(peer, seconds=seconds)
        self._connections[peer].rtt = None
        return took


class StaysConnected(MemoryTransport):
    async def disconnect(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()


class SlowToRefuse(MemoryTransport):
    async def ping(self, peer: str, *, seconds: float = DEADLINE) -> float:
        return await super().ping(peer, seconds=max(seconds, 1.0))


class DeniesTheUnknown(MemoryTransport):
    def take(self, wire: Wire, protocol: str) -> PeerDenied | ProtocolRefused | None:
        refusal = super().take(wire, protocol)
        return PeerDenied(refusal.message) if refusal else None


class OneErrorEndsAll(MemoryTransport):
    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except PeerLost:
            pass
        except Exception:  # noqa: BLE001 - as the real one has to
            await self.disconnect(stream.peer)
        finally:
            stream.wire.close()


class HandlersStay(MemoryTransport):
    @asynccontextmanager
    async def serve(
        self, protocol: str, handler: StreamHandler, *, max_frame: int = MAX_FRAME
    ) -> AsyncIterator[None]:
        self._served[protocol] = _Served(self.nursery, handler, max_frame)
        try:
            yield
        finally:
            del self._served[protocol]


class FiftyAtATime(MemoryTransport):
    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        fifty: trio.CapacityLimiter = self.__dict__.setdefault("fifty", trio.CapacityLimiter(50))
        async with fifty:
            await super()._handle(handler, stream)


class Remembers(MemoryTransport):
    """Answers from memory what it has looked up once."""

    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        known: dict[tuple[str, str], Record] = self.__dict__.setdefault("known", {})
        found = known.get((peer, name)) or await super().lookup(peer, name, seconds=seconds)
        if found is not None:
            known[peer, name] = found
        return found


class OneSequenceNumber(MemoryTransport):
    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        found = await super().lookup(peer, name, seconds=seconds)
        return replace(found, sequence=1) if found else None


class AnyLength(MemoryTransport):
    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        await super().publish(name, body[: directory.MAX_BODY], seconds=seconds)


class NamesAreShared(MemoryTransport):
    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        for node in self.reach():
            if found := await node.directory.lookup(node.peer, name):
                return replace(found, subject=peer)
        return await super().lookup(peer, name, seconds=seconds)


class Believes(MemoryTransport):
    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        for node in self.reach():
            if statement := node.directory.held_records.get((peer, name)):
                return directory.opened(node.identity, statement, peer, name, 0.0)
        return await super().lookup(peer, name, seconds=seconds)


class BelievesLiars(MemoryTransport):
    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        for node in self.reach():
            statement = node.directory.held_records.get((peer, name))
            if statement and "a lie" in str(_unverified(node, statement, peer, name)):
                return Record(peer, name, b"a lie", 1, self.network.now() + 1)
        return await super().lookup(peer, name, seconds=seconds)


def _unverified(node: MemoryTransport, statement: str, peer: str, name: str) -> str:
    try:
        return str(directory.opened(node.identity, statement, peer, name, 0.0))
    except KwaaiError:
        return "a lie"


class PublishesOnce(MemoryTransport):
    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        await super().publish(name, body, seconds=seconds)
        for scope in self.directory._kept.values():
            scope.cancel()


class OnlyTellsThoseThere(MemoryTransport):
    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        if self.reach():
            await super().publish(name, body, seconds=seconds)


class ProvidesToItself(MemoryTransport):
    async def providers(self, key: str, *, seconds: float = DEADLINE) -> Sequence[str]:
        found = await super().providers(key, seconds=seconds)
        mine = ("provider", key) in self.directory._tells
        return [*found, self.peer] if mine else found


class EachProviderTwice(MemoryTransport):
    async def providers(self, key: str, *, seconds: float = DEADLINE) -> Sequence[str]:
        return 2 * list(await super().providers(key, seconds=seconds))


class NearestIsSelf(MemoryTransport):
    async def nearest(self, key: str, k: int, *, seconds: float = DEADLINE) -> Sequence[str]:
        found = await super().nearest(key, k, seconds=seconds)
        return [self.peer, *found][: min(k, 3)]


class NearestInAnyOrder(MemoryTransport):
    async def nearest(self, key: str, k: int, *, seconds: float = DEADLINE) -> Sequence[str]:
        found = await super().nearest(key, 10, seconds=seconds)
        return sorted(found, reverse=self.peer > found[0])[:k]


class PassesNothingOn(MemoryTransport):
    def neighbours(self) -> dict[str, MemoryTransport]:
        found = super().neighbours()
        return found if len(found) == 1 else {}


class SignsForOthers(MemoryTransport):
    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.abc.ReceiveChannel[Broadcast]]:
        async with super().subscribe(topic) as channel:
            assert isinstance(channel, Subscription)
            put, mine = channel.put, self.peer

            def put_as_mine(due: float, message: Broadcast) -> None:
                put(due, replace(message, peer=mine))

            channel.put = put_as_mine  # type: ignore[method-assign]
            yield channel


class OneTopic(MemoryTransport):
    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[trio.abc.ReceiveChannel[Broadcast]]:
        async with super().subscribe("topic") as channel:
            yield channel


class AnyMessage(MemoryTransport):
    async def broadcast(self, topic: str, body: bytes) -> None:
        topics.spread(self, topic, body)


class OneCertificate(MemoryTransport):
    pair = cache(channels._pair)

    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        made = await super().data_channel(stream, seconds=seconds)
        assert made is not None
        assert isinstance(stream, MemoryStream)
        old = OneCertificate.pair(True)[not stream.wire.opener]
        return replace(old, socket=made.socket)


class TwoServers(MemoryTransport):
    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        made = await super().data_channel(stream, seconds=seconds)
        return replace(made, server=True) if made else None


class OneEndOnly(MemoryTransport):
    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        made = await super().data_channel(stream, seconds=seconds)
        if made is not None and made.server:
            made.socket.close()
            return None
        return made


class TrustsItself(MemoryTransport):
    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        made = await super().data_channel(stream, seconds=seconds)
        return replace(made, trusted=made.certificate) if made else None


class ForgetsToCount(MemoryTransport):
    """Never takes back what a closed stream held: after 256 there is no other."""

    async def _opened(self, connection: Connection, protocol: str) -> Wire:
        wire = await super()._opened(connection, protocol)
        connection.opened[wire.end] += 1
        return wire


class LeavesATask(MemoryTransport):
    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep, 10_000)
        await super().publish(name, body, seconds=seconds)


STREAMS: list[tuple[type[MemoryStream], str]] = [
    (SomebodyElse, "the peer is authenticated: the ends say"),
    (NoEmptyFrames, "frames arrive as they were sent: b'' was sent, b'x' came"),
    (BytesOnly, "frames arrive as they were sent: b'' was sent"),
    (NoLimit, "over the limit is refused: send over the limit raised nothing"),
    (LimitOnlyWhenSending, "over the limit is refused: receive over the limit raised nothing"),
    (GoesOnAfterTooMuch, "over the limit is refused: receive from who wanted .*DeadlinePassed"),
    (NoEnd, "an end ends one direction"),
    (EndsBothWays, "an end ends one direction"),
    (EndsByItself, "a stream given up is lost: receive from who has closed raised StreamEnded"),
    (WaitsForEver, "a receive has its deadline: nothing more happened"),
    (GivesUpAtOnce, "raised DeadlinePassed"),
    (LateIsLost, "a receive has its deadline"),
    (LosesWhatIsCancelled, "a cancelled receive loses nothing"),
    (BuffersAll, "who never reads stops the sender: .* raised nothing"),
    (GoesOnAfterHalfAFrame, "a cancelled send harms no other stream: send after .* nothing"),
    (BreaksTheConnection, "a cancelled send harms no other stream"),
]

TRANSPORTS: list[tuple[type[MemoryTransport], str]] = [
    (AnybodyWillDo, "the peer is authenticated: connect to an address"),
    (StaysConnected, "links say who is connected: that links.. has no link"),
    (SlowToRefuse, "every operation has its deadline: ping"),
    (NeverMeasures, "a ping takes a time: the link does not know"),
    (LetsAllIn, "the door is asked for every stream: a stream that must not be let in"),
    (OpenUntilGuarded, "the door is asked for every stream: a stream that must not be let in"),
    (AsksOnce, "the door is asked for every stream: the door was asked 1 times"),
    (NoGreeting, "who is dialled is greeted first"),
    (UsedBeforeTheGreeting, "who is dialled is greeted first: a stream was opened on"),
    (KeepsTheDenied, "who is denied at the greeting is left: connect .* raised nothing"),
    (TopicsAreForAll, "who is shut out is not heard: who is shut out was heard"),
    (AsksForNoAuthor, "who is shut out is not heard through others: who is shut out was heard"),
    (OneErrorEndsAll, "a handler s error ends its own stream"),
    (HandlersStay, "leaving serve ends its handlers: serve was left"),
    (DeniesTheUnknown, "leaving serve ends its handlers: open .* raised PeerDenied"),
    (FiftyAtATime, "many streams are apart"),
    (Remembers, "the newest record is read"),
    (OneSequenceNumber, "the newest record is read: sequence numbers .1. came after 1"),
    (AnyLength, "the newest record is read: publish of more than 16 KiB raised nothing"),
    (NamesAreShared, "a record is of its subject"),
    (BelievesLiars, "nobody believes a liar"),
    (PublishesOnce, "a record lives as long as its node"),
    (Believes, "nobody believes a liar"),
    (OnlyTellsThoseThere, "what is published alone is found later"),
    (ProvidesToItself, "providers are the others who have it"),
    (EachProviderTwice, "a record lives as long as its node: the providers are"),
    (NearestIsSelf, "nearest is one order: one is there twice"),
    (NearestInAnyOrder, "nearest is one order"),
    (PassesNothingOn, "messages reach who subscribes: nothing more happened"),
    (SignsForOthers, "messages reach who subscribes: another author"),
    (OneTopic, "messages reach who subscribes: another topic gave"),
    (AnyMessage, "messages reach who subscribes: broadcast of more than 32 KiB raised nothing"),
    (OneCertificate, "a data channel is of its two ends: a certificate was used a second time"),
    (TwoServers, "a data channel is of its two ends: which end is the server"),
    (OneEndOnly, "a data channel is of its two ends: only one end"),
    (TrustsItself, "a data channel is of its two ends: an end trusts another"),
    (ForgetsToCount, "leaving leaves nothing behind"),
    (LeavesATask, "leaving leaves nothing behind: tasks grew"),
]


@pytest.mark.parametrize(("broken", "complaint"), STREAMS, ids=lambda value: str(value)[-40:])
async def test_a_broken_stream_is_caught(
    broken: type[MemoryStream], complaint: str, autojump_clock: MockClock
) -> None:
    class Broken(MemoryTransport):
        stream_type = broken

    await caught(Broken, complaint)


@pytest.mark.parametrize(("broken", "complaint"), TRANSPORTS, ids=lambda value: str(value)[-40:])
async def test_a_broken_transport_is_caught(
    broken: type[MemoryTransport], complaint: str, autojump_clock: MockClock
) -> None:
    await caught(broken, complaint)


async def caught(broken: type[MemoryTransport], complaint: str) -> None:
    class Brittle(Network):
        node_type = broken

    network = Brittle(0, Line(latency=0.001))
    with pytest.raises(Nonconformance, match=complaint):
        await check_transport(network.open, now=network.now, lie=lie)
