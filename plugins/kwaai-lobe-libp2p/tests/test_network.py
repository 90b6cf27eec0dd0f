"""Connections: how they are got, limited, lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING

from kwaai_core import (
    KwaaiError,
    PeerDenied,
    PeerLost,
    PeerUnreachable,
    ProtocolRefused,
    RequestError,
    Stream,
)
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p import addresses, dialling
from kwaai_lobe_libp2p.remedies.outbox import Outbox

from .conftest import ECHO, Node, Nodes, echo

PEER = Path(__file__).with_name("peer.py")


async def eventually(holds: object, seconds: float = 5.0) -> None:
    assert callable(holds)
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110 - what is asked tells nobody of itself
            await trio.sleep(0.005)


async def answers(one: Node, peer: str) -> None:
    async with one.transport.open(peer, ECHO) as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"


async def unused_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return int(listener.socket.getsockname()[1])


# -- dialling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 64 + ".com", "b." + "a" * 64, "a..b", "-a.b", "a-.b"])
def test_names_that_no_resolver_takes_are_no_addresses(name: str) -> None:
    with pytest.raises(RequestError):
        addresses.parse(f"/dns4/{name}/tcp/4001")


@pytest.mark.parametrize("error", [UnicodeError("label too long"), OSError(28, "no space left")])
async def test_an_error_while_a_peer_is_dialled_or_greeted_is_that_dial_s(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fails(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async with nodes.pair() as (one, two), nodes("three") as three:
        with monkeypatch.context() as patch:
            patch.setattr(one.door, "greet", fails)
            with pytest.raises(KwaaiError):
                await one.transport.connect(three.transport.addresses)
        with monkeypatch.context() as patch:
            patch.setattr(dialling, "dial", fails)
            with pytest.raises(PeerUnreachable):
                await one.transport.connect(three.transport.addresses)
        await answers(one, two.peer)


async def test_strangers_who_hold_streams_do_not_keep_members_out(nodes: Nodes) -> None:
    async with (
        nodes("one", max_connections=3) as one,
        nodes("member") as member,
        AsyncExitStack() as stack,
    ):
        strangers = [await stack.enter_async_context(nodes(f"stranger {n}")) for n in range(3)]
        one.door.strangers.update(stranger.peer for stranger in strangers)
        for stranger in strangers:
            await stranger.transport.connect(one.transport.addresses)
            await stranger.transport.network.open(one.peer, "/ipfs/ping/1.0.0")
        await member.transport.connect(one.transport.addresses)
        assert await member.transport.ping(one.peer) > 0
        await eventually(lambda: member.peer in {link.peer for link in one.transport.links()})


async def test_addresses_that_lead_nowhere_do_not_hinder(nodes: Nodes) -> None:
    async with nodes("one") as one, nodes("two") as two, nodes("three") as three:
        stale = f"/ip4/127.0.0.1/tcp/{await unused_port()}/p2p/{two.peer}"
        wrong = three.transport.addresses[0].replace(three.peer, two.peer)
        await one.transport.connect([stale, wrong, *two.transport.addresses])
        assert [link.peer for link in one.transport.links()] == [two.peer]


async def test_each_address_has_its_cause(nodes: Nodes) -> None:
    async with nodes("one") as one, nodes("two") as two:
        peer = FakeIdentity("nobody").peer_id
        port = await unused_port()
        addresses = [
            f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}",
            two.transport.addresses[0].replace(two.peer, peer),
            f"/dns4/no.such.name.invalid/tcp/1/p2p/{peer}",
        ]
        with pytest.raises(PeerUnreachable) as caught:
            await one.transport.connect(addresses)
        for part in (f"tcp/{port}: Connection refused", "another peer is there", "invalid/tcp/1: "):
            assert part in caught.value.message


async def test_what_failed_is_left_alone_for_a_while_unless_it_is_asked_for(nodes: Nodes) -> None:
    async with nodes("one") as one:
        async with nodes("two") as two:
            await one.transport.connect(two.transport.addresses)
        await eventually(lambda: not one.transport.links())
        for cause in ("refused", "tried again in"):
            with pytest.raises(PeerUnreachable, match=cause):
                await one.transport.ping(two.peer)
        async with nodes("two") as two:
            await one.transport.connect(two.transport.addresses)


async def test_many_who_want_a_peer_share_one_dial(nodes: Nodes) -> None:
    async with nodes("one") as one, nodes("two") as two, two.transport.serve(ECHO, echo):
        one.transport.learn(two.peer, two.transport.addresses)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(answers, one, two.peer)
        assert len(list(two.transport.network)) == 1


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dials", [True, False])
async def test_who_is_shut_out_is_not_connected_to(nodes: Nodes, dials: bool) -> None:
    async with nodes("two") as two, nodes("one") as one:
        one.door.shut.add(two.peer)
        here, there = (one, two) if dials else (two, one)
        if dials:
            with pytest.raises(PeerDenied, match="is blocked here"):
                await here.transport.connect(there.transport.addresses)
            assert not two.transport.links()
        else:
            with pytest.raises((PeerUnreachable, PeerDenied)):
                await here.transport.connect(there.transport.addresses)
                await here.transport.ping(there.peer)
        await eventually(lambda: not two.transport.links() and not one.transport.links())


async def test_the_idle_make_room_and_the_busy_do_not(nodes: Nodes) -> None:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(nodes("hub", max_connections=2))
        await stack.enter_async_context(hub.transport.serve(ECHO, echo))
        one, two, three, four = [
            await stack.enter_async_context(nodes(name)) for name in ("a", "b", "c", "d")
        ]
        await one.transport.connect(hub.transport.addresses)
        stream = await stack.enter_async_context(one.transport.open(hub.peer, ECHO))
        await two.transport.connect(hub.transport.addresses)
        await two.transport.ping(hub.peer)
        await three.transport.connect(hub.transport.addresses)
        await three.transport.ping(hub.peer)
        await eventually(lambda: not two.transport.links())
        await stream.send(b"still")
        assert await stream.receive() == b"still"
        await stack.enter_async_context(three.transport.open(hub.peer, ECHO))
        with pytest.raises((PeerUnreachable, PeerDenied)):
            await four.transport.connect(hub.transport.addresses)
            await four.transport.ping(hub.peer)


async def test_streams_of_one_peer_are_limited_and_others_are_not_hurt(nodes: Nodes) -> None:
    async with (
        nodes("hub", peer_streams=8) as hub,
        nodes("greedy") as greedy,
        nodes("modest") as modest,
        hub.transport.serve(ECHO, echo),
        AsyncExitStack() as stack,
    ):
        for node in (greedy, modest):
            await node.transport.connect(hub.transport.addresses)
        for _ in range(8):
            await stack.enter_async_context(greedy.transport.open(hub.peer, ECHO))
        with pytest.raises(PeerUnreachable):
            await stack.enter_async_context(greedy.transport.open(hub.peer, ECHO))
        await answers(modest, hub.peer)
        await stack.aclose()
        await eventually(lambda: not hub.transport.network.services.serving(greedy.peer))
        await answers(greedy, hub.peer)


async def test_requests_of_one_peer_are_limited(nodes: Nodes) -> None:
    async with nodes.pair(peer_requests=1) as (one, two):
        with pytest.raises(PeerUnreachable):
            for _ in range(10):
                await answers(one, two.peer)


async def test_bytes_of_one_peer_are_limited(nodes: Nodes) -> None:
    async with (
        nodes.pair(peer_bytes=1 << 20) as (one, two),
        one.transport.open(two.peer, ECHO) as stream,
    ):
        began = trio.current_time()
        for _ in range(3):
            await stream.send(bytes(1 << 20))
            await stream.receive()
        assert trio.current_time() - began > 1


# -- loss ------------------------------------------------------------------------------------------


@asynccontextmanager
async def another_process(folder: Path) -> AsyncIterator[tuple[trio.Process, str]]:
    async with trio.open_nursery() as nursery:
        start = [sys.executable, str(PEER), str(folder)]
        run = partial(trio.run_process, start, stdout=subprocess.PIPE, check=False)
        process: trio.Process = await nursery.start(run)
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some()
        yield process, line.decode().strip()
        process.kill()


async def lost_within(stream: Stream) -> float:
    began = trio.current_time()
    with pytest.raises(PeerLost):
        await stream.receive()
    return trio.current_time() - began


async def test_a_killed_peer_is_noticed_at_once(nodes: Nodes, tmp_path: Path) -> None:
    async with nodes("one") as one, another_process(tmp_path) as (process, address):
        peer = await one.transport.connect([address])
        async with one.transport.open(peer, ECHO) as stream:
            process.kill()
            assert await lost_within(stream) < 0.1
        await eventually(lambda: not one.transport.links(), 0.1)


async def test_a_frozen_peer_is_noticed_within_five_seconds(nodes: Nodes, tmp_path: Path) -> None:
    async with nodes("one") as one, another_process(tmp_path) as (process, address):
        peer = await one.transport.connect([address])
        async with one.transport.open(peer, ECHO) as stream:
            process.send_signal(signal.SIGSTOP)
            assert await lost_within(stream) < 5
        assert not one.transport.links()


async def test_who_was_held_up_itself_does_not_blame_its_peers(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_up = trio.Event()

    async def hold_up() -> None:
        held_up.set()
        time.sleep(3.5)  # noqa: ASYNC251 - as a laptop that was shut does, or too much other work

    async def put(self: Outbox, frame: bytes) -> None:
        await stock(self, frame)
        if frame[1] == TYPE_PING and frame[3] == FLAG_SYN and not held_up.is_set():
            trio.lowlevel.spawn_system_task(hold_up)

    stock = Outbox.put
    async with nodes.pair() as (one, two):
        monkeypatch.setattr(Outbox, "put", put)
        await held_up.wait()
        await trio.sleep(0.3)
        assert one.transport.links()
        await answers(one, two.peer)


# -- numbers ---------------------------------------------------------------------------------------


async def test_many_connections_one_after_the_other_and_at_once(nodes: Nodes) -> None:
    async with nodes.pair() as (one, two):
        for _ in range(60):
            await one.transport.disconnect(two.peer)
            await one.transport.connect(two.transport.addresses)
        await answers(one, two.peer)
        async with AsyncExitStack() as stack:
            many = [await stack.enter_async_context(nodes(f"n{n}")) for n in range(10)]
            async with trio.open_nursery() as nursery:
                for node in many:
                    nursery.start_soon(node.transport.connect, two.transport.addresses)
            assert len(two.transport.links()) == 11


async def test_streams_leave_nothing_behind(nodes: Nodes) -> None:
    async with nodes.pair() as (one, two):
        await answers(one, two.peer)
        (connection,) = one.transport.network
        for _ in range(1000):
            await answers(one, two.peer)
        await eventually(lambda: not two.transport.network.services.serving(one.peer))
        for end in (connection, *two.transport.network):
            kept = end.muxer.streams, end.muxer.stream_buffers, end.muxer.stream_events
            await eventually(lambda kept=kept: not any(kept))  # but for what runs in the background


async def test_a_protocol_that_is_not_let_in_looks_like_one_that_is_not_there(
    nodes: Nodes,
) -> None:
    async with nodes.pair() as (one, two):
        two.door.strangers.add(one.peer)
        for protocol in (ECHO, "/kwaai/none/1"):
            with pytest.raises(ProtocolRefused, match="does not serve"):
                async with one.transport.open(two.peer, protocol):
                    pass
