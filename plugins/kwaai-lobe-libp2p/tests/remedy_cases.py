"""``python remedy_cases.py CASE stock|mended``: ends with 0 where the library behaves.

Each case joins two connections of the library, Noise and Yamux over TCP on loopback, and has one
of them do or suffer something.
"""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

HEADER = struct.Struct("!BBHII")


@dataclass
class Pair:
    """Two ends; ``far`` serves only where a case lets it."""

    near: Yamux
    far: Yamux
    nursery: trio.Nursery

    async def start(self, *conns: Yamux) -> None:
        for conn in conns:
            self.nursery.start_soon(conn.start)
            await conn.event_started.wait()

    async def streams(self) -> tuple[YamuxStream, YamuxStream]:
        """Both ends of a stream that near opens."""
        near = await self.near.open_stream()
        far = await self.far.accept_stream()
        assert isinstance(far, YamuxStream)
        return near, far

    async def raw(self, kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> None:
        """Have the far end, which does not run, send a frame of its own making."""
        await self.far.secured_conn.write(HEADER.pack(0, kind, flags, stream, length) + body)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dialled = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    accepted = await listener.accept()
    keys = [create_new_key_pair(bytes([n]) * 32) for n in (1, 2)]
    ids = [ID.from_pubkey(key.public_key) for key in keys]
    noises = [Noise(key, new_x25519().private_key) for key in keys]
    sessions: dict[int, object] = {}

    async def inbound() -> None:
        raw = RawConnection(TrioTCPStream(accepted), False)
        sessions[1] = await noises[1].secure_inbound(raw)

    async with listener, dialled, accepted, trio.open_nursery() as nursery:
        async with trio.open_nursery() as both:
            both.start_soon(inbound)
            raw = RawConnection(TrioTCPStream(dialled), True)
            sessions[0] = await noises[0].secure_outbound(raw, ids[1])
        near = Yamux(sessions[0], ids[1], is_initiator=True)  # type: ignore[arg-type]
        far = Yamux(sessions[1], ids[0], is_initiator=False)  # type: ignore[arg-type]
        yield Pair(near, far, nursery)
        nursery.cancel_scope.cancel()


async def ends(conn: Yamux, seconds: float) -> None:
    with trio.fail_after(seconds):
        await conn.event_closed.wait()


async def drain(stream: YamuxStream) -> None:
    with suppress(Exception):
        while True:
            await stream.read(1 << 16)


async def a_cancelled_write_harms_no_other_stream() -> None:
    async with pair() as two:
        await two.start(two.near, two.far)
        good, good_far = await two.streams()
        for turn in range(150):
            bad, bad_far = await two.streams()
            two.nursery.start_soon(drain, bad_far)
            with trio.move_on_after(0.0003 * (turn % 10)):
                await bad.write(bytes(1 << 20))
            await bad.reset()
            with trio.fail_after(3):
                await good.write(b"still")
                assert await good_far.read(5) == b"still"


async def a_cancelled_read_loses_nothing() -> None:
    async with pair() as two:
        await two.start(two.near, two.far)
        near, far = await two.streams()
        size = 4 << 20

        async def pour() -> None:
            for _ in range(size // 4096):
                await near.write(bytes(4096))

        two.nursery.start_soon(pour)
        got = 0
        with trio.fail_after(20):
            while got < size:
                with trio.move_on_after(0.0002):
                    while got < size:
                        got += len(await far.read(4096))


async def a_window_is_kept() -> None:
    async with pair() as two:
        await two.start(two.near)
        stream = await two.near.open_stream()
        body = bytes(60_000)
        with suppress(Exception):
            for _ in range(200):
                await two.raw(yamux.TYPE_DATA, 0, stream.stream_id, len(body), body)
        await ends(two.near, 2)


async def a_huge_frame_is_not_awaited() -> None:
    async with pair() as two:
        await two.start(two.near)
        stream = await two.near.open_stream()
        await two.raw(yamux.TYPE_DATA, 0, stream.stream_id, 16 << 20)
        await ends(two.near, 2)


async def a_writer_waits_as_long_as_it_likes() -> None:
    async with pair() as two:
        await two.start(two.near, two.far)
        near, far = await two.streams()

        async def read_late() -> None:
            await trio.sleep(6)
            await drain(far)

        two.nursery.start_soon(read_late)
        with trio.fail_after(10):
            await near.write(bytes(2 << 20))


async def a_frozen_peer_is_noticed() -> None:
    async with pair() as two:
        await two.start(two.near)
        await ends(two.near, 6)


async def who_reads_no_answers_is_left() -> None:
    async with pair() as two:
        await two.start(two.near)
        pings = HEADER.pack(0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, 1) * 5000

        async def flood() -> None:
            with suppress(Exception):
                while True:
                    await two.far.secured_conn.write(pings)

        two.nursery.start_soon(flood)
        await ends(two.near, 6)


async def a_reset_comes_after_what_was_written() -> None:
    async with pair() as two:
        await two.start(two.near, two.far)
        near, far = await two.streams()
        await near.write(b"answer")
        await near.reset()
        await trio.sleep(0.2)
        assert await far.read(6) == b"answer"


async def what_arrived_outlives_the_connection() -> None:
    async with pair() as two:
        await two.start(two.near, two.far)
        near, far = await two.streams()
        await near.write(b"first")
        assert await far.read(5) == b"first"
        await near.write(b"answer")
        await trio.sleep(0.2)
        await two.near.secured_conn.close()
        await trio.sleep(0.2)
        assert await far.read(6) == b"answer"


CASES: dict[str, Callable[[], Awaitable[None]]] = {
    case.__name__: case
    for case in (
        a_cancelled_write_harms_no_other_stream,
        a_cancelled_read_loses_nothing,
        a_window_is_kept,
        a_huge_frame_is_not_awaited,
        a_writer_waits_as_long_as_it_likes,
        a_frozen_peer_is_noticed,
        who_reads_no_answers_is_left,
        a_reset_comes_after_what_was_written,
        what_arrived_outlives_the_connection,
    )
}

if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(print(*sorted(CASES)))
    logging.disable(logging.CRITICAL)
    if sys.argv[2] == "mended":
        import kwaai_lobe_libp2p.remedies  # noqa: F401 - importing it mends the library

    trio.run(CASES[sys.argv[1]])
