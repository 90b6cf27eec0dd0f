"""Lines on which a single frame takes longer than a node waits for a sign of life."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from kwaai_core import PeerLost, Stream
from kwaai_lobe_libp2p.remedies import watching

from .conftest import ECHO, Nodes

RATE = 40_000
"""Bytes a second that the line carries, each way."""

SIZE = 160_000


class Line:
    """A line between who dials ``address`` and a node; it can be cut without a word."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.cut = False

    async def pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(RATE // 50):
                await trio.sleep(len(data) / RATE)
                if self.cut:
                    await trio.sleep_forever()
                await sink.send_all(data)


@asynccontextmanager
async def slow_line(address: str) -> AsyncIterator[Line]:
    _, _, host, _, port, _, peer = address.split("/")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    line = Line(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{peer}")

    async def carry(near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as both:
            both.start_soon(line.pump, near, far)
            both.start_soon(line.pump, far, near)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, carry, [listener])
        yield line
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PING_EVERY", 0.4)
    monkeypatch.setattr(watching, "PONG_WITHIN", 0.8)


@pytest.mark.parametrize("dialler_sends", [True, False])
async def test_a_big_frame_on_a_slow_line_is_no_silence(nodes: Nodes, dialler_sends: bool) -> None:
    came: list[int] = []
    there = trio.Event()

    async def take(stream: Stream) -> None:
        came.append(len(await stream.receive(seconds=60)))
        there.set()

    async with (
        nodes("one") as one,
        nodes("two") as two,
        slow_line(two.transport.addresses[0]) as line,
        one.transport.serve(ECHO, take),
        two.transport.serve(ECHO, take),
    ):
        await one.transport.connect([line.address])
        sender, receiver = (one, two) if dialler_sends else (two, one)
        async with sender.transport.open(receiver.peer, ECHO) as stream:
            began = trio.current_time()
            await stream.send(bytes(SIZE), seconds=60)
            with trio.fail_after(30):
                await there.wait()
        assert came == [SIZE]
        assert trio.current_time() - began > 3 * watching.PONG_WITHIN


async def test_a_line_that_is_cut_within_a_frame_is_noticed_at_both_ends(nodes: Nodes) -> None:
    lost = trio.Event()

    async def take(stream: Stream) -> None:
        with pytest.raises(PeerLost):
            await stream.receive(seconds=60)
        lost.set()

    async with (
        nodes("one") as one,
        nodes("two") as two,
        slow_line(two.transport.addresses[0]) as line,
        two.transport.serve(ECHO, take),
    ):
        await one.transport.connect([line.address])
        async with one.transport.open(two.peer, ECHO) as stream:
            await stream.send(bytes(SIZE), seconds=60)
            line.cut = True
            began = trio.current_time()
            with trio.fail_after(30):
                with pytest.raises(PeerLost):
                    await stream.receive(seconds=60)
                await lost.wait()
            assert trio.current_time() - began < 4 * watching.PONG_WITHIN
