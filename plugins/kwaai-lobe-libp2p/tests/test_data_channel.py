"""Data channels over real sockets: for the two ends of a stream and nobody else."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import DataChannel, DeadlinePassed, KwaaiError, NotVerified, PeerLost
from kwaai_core.span.secure import context_of
from kwaai_lobe_libp2p import data_channel
from kwaai_lobe_libp2p.data_channel import DataChannels, open_data_channels

HERE = "127.0.0.1"


class Pipe:
    """One end of a stream of frames in memory."""

    peer = "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
    protocol = "/kwaai/echo/1"

    def __init__(
        self, out: trio.MemorySendChannel[bytes], into: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.out = out
        self.into = into
        self.closed = False

    async def send(self, frame: bytes | bytearray | memoryview, *, seconds: float = 30.0) -> None:
        await self.out.send(bytes(frame))

    async def receive(self, *, seconds: float = 30.0) -> bytes:
        try:
            return await self.into.receive()
        except trio.EndOfChannel:
            raise PeerLost("the peer is gone") from None

    async def end(self, *, seconds: float = 30.0) -> None:
        await self.out.aclose()

    async def aclose(self) -> None:
        self.closed = True
        await self.out.aclose()


def pipe() -> tuple[Pipe, Pipe]:
    to_right, at_right = trio.open_memory_channel[bytes](10)
    to_left, at_left = trio.open_memory_channel[bytes](10)
    return Pipe(to_right, at_left), Pipe(to_left, at_right)


@asynccontextmanager
async def met(
    one: DataChannels,
    other: DataChannels,
    *,
    to_other: str | None = HERE,
    to_one: str | None = HERE,
) -> AsyncIterator[tuple[DataChannel | None, DataChannel | None]]:
    near, far = pipe()
    got: dict[str, DataChannel | None] = {}

    async def ask(name: str, channels: DataChannels, end: Pipe, host: str | None) -> None:
        got[name] = await channels.meet(end, opener=name == "near", host=host, seconds=10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "near", one, near, to_other)
        nursery.start_soon(ask, "far", other, far, to_one)
    assert not near.closed and not far.closed
    try:
        yield got["near"], got["far"]
    finally:
        for channel in got.values():
            if channel is not None:
                channel.socket.close()


def secured(
    channel: DataChannel, of: DataChannel | None = None
) -> trio.SSLStream[trio.SocketStream]:
    """TLS on the socket of one channel, with what was made for another."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(channel.socket))
    return trio.SSLStream(stream, context_of(of or channel), server_side=channel.server)


async def talk(
    one: trio.SSLStream[trio.SocketStream], other: trio.SSLStream[trio.SocketStream]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, b"hello")
        assert await other.receive_some(100) == b"hello"
        nursery.start_soon(other.send_all, b"hello yourself")
        assert await one.receive_some(100) == b"hello yourself"


async def test_both_ends_talk_tls_1_3() -> None:
    async with (
        open_data_channels([HERE]) as one,
        open_data_channels([HERE]) as other,
        met(one, other) as (near, far),
    ):
        assert near is not None and far is not None
        assert (near.server, far.server) == (False, True)
        assert near.certificate == far.trusted and far.certificate == near.trusted
        assert near.certificate != far.certificate
        streams = secured(near), secured(far)
        await talk(*streams)
        assert streams[0].version() == "TLSv1.3"
        assert one.half_open == other.half_open == 0


@pytest.mark.parametrize("dialled", ["near", "far"])
async def test_whichever_end_can_be_dialled_is(dialled: str) -> None:
    listens, hidden = [HERE], list[str]()
    near_at, far_at = (listens, hidden) if dialled == "near" else (hidden, listens)
    async with (
        open_data_channels(near_at) as one,
        open_data_channels(far_at) as other,
        met(one, other) as (near, far),
    ):
        assert near is not None and far is not None
        assert (near.server, far.server) == (False, True)
        await talk(secured(near), secured(far))


async def test_none_at_both_ends_where_there_is_no_way(unused_tcp_port: int) -> None:
    async with open_data_channels([HERE]) as one, open_data_channels([HERE]) as other:
        async with met(one, other, to_other=None, to_one=None) as ends:
            assert ends == (None, None)
        # only one end knows that there is no way
        async with met(one, other, to_other=None) as ends:
            assert ends == (None, None)
        # a port that is closed
        for channels in (one, other):
            channels._ports = {4: unused_tcp_port}
        async with met(one, other) as ends:
            assert ends == (None, None)


async def test_an_old_certificate_is_of_no_use() -> None:
    async with open_data_channels([HERE]) as one, open_data_channels([HERE]) as other:
        async with met(one, other) as (old, _):
            pass
        async with met(one, other) as (near, far):
            assert old is not None and near is not None and far is not None
            stranger, server = secured(near, of=old), secured(far)
            with pytest.raises((trio.BrokenResourceError, ssl.SSLError, ExceptionGroup)):
                await talk(stranger, server)


async def test_a_ticket_is_good_once() -> None:
    async with open_data_channels([HERE]) as channels:
        with channels._expecting(b"t" * data_channel.TICKET) as arrival:
            first = await trio.open_tcp_stream(HERE, channels.ports[4])
            await first.send_all(b"t" * data_channel.TICKET)
            assert await first.receive_some(10) == b"\x01"
            second = await trio.open_tcp_stream(HERE, channels.ports[4])
            await second.send_all(b"t" * data_channel.TICKET)
            assert await is_closed(second)
            came = arrival.take()
            assert came is not None
            with came:
                came.sendall(b"hello")
            assert await first.receive_some(10) == b"hello"
            await first.aclose()
            await second.aclose()


async def is_closed(stream: trio.SocketStream) -> bool:
    try:
        with trio.fail_after(5):
            return await stream.receive_some(10) == b""
    except trio.BrokenResourceError:
        return True


@pytest.mark.parametrize("shown", [b"x" * 32, b"", b"short", b"\x16\x03\x01" + b"y" * 5000])
async def test_a_stranger_gets_nothing_and_not_for_long(
    shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_channel, "SHOW", 0.2)
    async with open_data_channels([HERE]) as one, open_data_channels([HERE]) as other:
        stranger = await trio.open_tcp_stream(HERE, other.ports[4])
        await stranger.send_all(shown)
        async with met(one, other) as (near, far):
            assert near is not None and far is not None
            await talk(secured(near), secured(far))
        assert await is_closed(stranger)
        assert other.half_open == 0
        await stranger.aclose()


async def test_a_flood_of_strangers_is_bounded_and_shuts_nobody_out() -> None:
    async with open_data_channels([HERE]) as one, open_data_channels([HERE]) as other:
        flood = [await trio.open_tcp_stream(HERE, other.ports[4]) for _ in range(200)]
        async with met(one, other) as (near, far):
            assert near is not None and far is not None
            assert other.half_open <= data_channel.HALF_OPEN
            await talk(secured(near), secured(far))
        for stream in flood:
            stream.socket.close()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 5000,
        b"x" * 10_000,
        json.dumps({"certificate": "no", "ports": {}, "ticket": "00" * 32}).encode(),
        json.dumps({"certificate": 5, "ports": [], "ticket": None}).encode(),
    ],
)
async def test_a_malformed_offer_is_an_error_and_ends_the_stream(frame: bytes) -> None:
    async with open_data_channels([HERE]) as channels:
        near, far = pipe()
        await far.send(frame)
        with pytest.raises(NotVerified):
            await channels.meet(near, opener=True, host=HERE, seconds=5)
        assert near.closed and not channels._awaited


@given(
    frame=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.dictionaries(
            st.sampled_from(["certificate", "ports", "ticket", "4", "6"]), inner
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_offers_of_garbage_are_refused(frame: bytes) -> None:
    with pytest.raises(NotVerified):
        data_channel._offer(frame, "peer")


async def test_a_peer_that_claims_to_have_connected_is_not_believed() -> None:
    async with open_data_channels([HERE]) as channels:
        near, far = pipe()
        certificate, _ = data_channel._certificate()
        await far.send(data_channel._packed(certificate, {}, bytes(32)))
        await far.send(data_channel._YES)
        with pytest.raises(NotVerified):
            await channels.meet(near, opener=False, host=HERE, seconds=5)


async def test_a_silent_peer_costs_the_deadline_and_leaves_nothing() -> None:
    async with open_data_channels([HERE]) as channels:
        near, far = pipe()
        with pytest.raises(DeadlinePassed):
            await channels.meet(near, opener=True, host=HERE, seconds=0.1)
        assert near.closed and not channels._awaited
        with pytest.raises(KwaaiError):
            await channels.meet(far, opener=False, host=HERE, seconds=5)


async def test_what_connected_too_late_is_closed() -> None:
    async with open_data_channels([HERE]) as channels:
        with channels._expecting(b"t" * data_channel.TICKET):
            late = await trio.open_tcp_stream(HERE, channels.ports[4])
            await late.send_all(b"t" * data_channel.TICKET)
            assert await late.receive_some(10) == b"\x01"
        assert await is_closed(late)
        await late.aclose()


def test_what_comes_when_nobody_waits_any_more_is_closed() -> None:
    arrival = data_channel._Arrival()
    before, after = socket.socketpair()
    with after:
        arrival.end()
        arrival.put(before)
        assert arrival.take() is None and before.fileno() == -1


async def test_a_dial_that_is_cut_off_when_it_was_welcome_leaks_nothing() -> None:
    async with open_data_channels([HERE]) as channels:
        ticket = bytes(data_channel.TICKET)
        offer = data_channel._Offer(b"", channels.ports, ticket)
        with channels._expecting(ticket), trio.CancelScope() as scope:
            welcome = trio.SocketStream.receive_some

            async def cut_off(stream: trio.SocketStream, most: int | None = None) -> bytes:
                data = await welcome(stream, most)
                scope.cancel()
                return bytes(data)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trio.SocketStream, "receive_some", cut_off)
                made = await data_channel._dial(HERE, offer)
            assert made is not None
            made.close()


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as one:
        one.bind((HERE, 0))
        port: int = one.getsockname()[1]
        return port
