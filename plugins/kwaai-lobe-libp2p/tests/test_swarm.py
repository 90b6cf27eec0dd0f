"""Directory, topics and data channels of real nodes on loopback, and what hostile peers get."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio

from kwaai_core import Broadcast, DataChannel, PeerLost, ProtocolRefused, Stream
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p import gossip, messages
from kwaai_lobe_libp2p.statements import Statement, key_of, seal

from .conftest import ECHO, Node, Nodes


@asynccontextmanager
async def swarm(nodes: Nodes, *names: str) -> AsyncIterator[Sequence[Node]]:
    """Nodes each of which is connected to the first."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(nodes(name)) for name in names]
        for node in found[1:]:
            await node.transport.connect(found[0].transport.addresses)
        yield found


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(10):
        while not await holds():  # noqa: ASYNC110 - what is asked tells nobody of itself
            await trio.sleep(0.05)


def statement_of(who: str, /, **changes: object) -> Statement:
    facts: dict[str, object] = {
        "kind": "record",
        "name": "status",
        "body": b"forged",
        "sequence": 1 << 60,
        "expires": time.time() + 60,
    }
    return seal(FakeIdentity(f"libp2p {who}"), **{**facts, **changes})  # type: ignore[arg-type]


async def ask(asker: Node, peer: str, message: bytes) -> bytes:
    async with asker.transport.open(peer, messages.PROTOCOL) as stream:
        await stream.send(message)
        return await stream.receive(seconds=5)


def forged_by(hostile: str, subject: str) -> Statement:
    """What one has signed, and says that another has."""
    made = statement_of(hostile)
    did = FakeIdentity(f"libp2p {subject}").did
    peer = FakeIdentity(f"libp2p {subject}").peer_id
    sealed = made.sealed.replace(f"{made.subject} ", f"{did} ")
    return replace(made, subject=did, peer=peer, sealed=sealed)


async def test_hostile_statements_are_not_held(nodes: Nodes) -> None:
    async with swarm(nodes, "one", "two", "hostile") as (one, two, hostile):
        await two.transport.publish("status", b"true", seconds=60)
        shelf = one.transport.directory.kademlia.shelf
        before = [held.sealed for held in shelf]
        assert before
        sound = statement_of("hostile")
        for sealed in (
            statement_of("two").sealed,  # sound, but not the sender's
            forged_by("hostile", "two").sealed,
            sound.sealed[:-6] + "AAAAAA",
            statement_of("hostile", expires=time.time() - 1).sealed,
            statement_of("hostile", expires=time.time() + 1e9).sealed,
            statement_of("hostile", body=bytes(20_000)).sealed,
            "nonsense",
        ):
            message = messages.store(replace(sound, sealed=sealed), None)
            with pytest.raises(PeerLost):
                await ask(hostile, one.peer, message)
        assert [held.sealed for held in shelf] == before
        await ask(hostile, one.peer, messages.store(sound, None))
        assert [held.sealed for held in shelf] == [*before, sound.sealed]


async def test_liars_are_asked_and_not_believed(nodes: Nodes) -> None:
    async with swarm(nodes, "one", "two", "hostile") as (one, two, hostile):
        await two.transport.publish("status", b"true", seconds=60)
        asked: list[bytes] = []

        def lie(key: bytes) -> list[Statement]:
            lies = [forged_by("hostile", "two"), statement_of("hostile", name="x")]
            asked.append(key)
            return lies

        hostile.transport.directory.kademlia.own = lie
        found = await one.transport.lookup(two.peer, "status")
        assert found is not None and found.body == b"true"
        assert found.sequence < 1 << 60
        assert key_of("record", two.peer, "status") in asked


@pytest.mark.parametrize("protocol", [messages.PROTOCOL, gossip.PROTOCOL])
async def test_garbage_on_our_protocols_harms_nobody(nodes: Nodes, protocol: str) -> None:
    async with swarm(nodes, "one", "two", "hostile") as (one, two, hostile):
        for frame in (b"", b"\0" * 1000, b"\xff" * 1000, b"[" * 40_000, b"M" * 40_000):
            async with hostile.transport.open(one.peer, protocol) as stream:
                await stream.send(frame)
                with pytest.raises(PeerLost):
                    await stream.receive(seconds=5)
        for length in (b"\xff\xff\xff\xfe", b"\x7f\xff\xff\xff", b"\0\0\0\5abc"):
            wire = await hostile.transport.network.open(one.peer, protocol)
            await wire.write(length)
            await wire.reset()
        await two.transport.publish("status", b"fine", seconds=60)
        found = await one.transport.lookup(two.peer, "status")
        assert found is not None and found.body == b"fine"


async def test_who_asks_and_never_says_what_is_left_soon(nodes: Nodes) -> None:
    async with swarm(nodes, "one", "hostile") as (one, hostile), AsyncExitStack() as stack:
        for _ in range(100):
            opened = hostile.transport.open(one.peer, messages.PROTOCOL)
            await stack.enter_async_context(opened)
        await hostile.transport.directory.nearest("key", 1, seconds=5)
        network = one.transport.network

        async def is_free() -> bool:
            return not network.services.serving(hostile.peer)

        await eventually(is_free)


async def test_messages_reach_everybody_and_garbage_nobody(nodes: Nodes) -> None:
    async with (
        swarm(nodes, "one", "two", "three", "hostile") as (one, two, three, hostile),
        one.transport.subscribe("t") as at_one,
        three.transport.subscribe("t") as at_three,
    ):
        async with hostile.transport.open(one.peer, gossip.PROTOCOL) as stream:
            author = FakeIdentity("libp2p two")
            made = gossip.message(author, "t", b"forged", at=time.time(), number=1)
            await stream.send(made.frame[:-4] + b"AAAA")
            with pytest.raises(PeerLost):
                await stream.receive(seconds=5)

        async def came() -> bool:
            await two.transport.broadcast("t", b"true")
            for channel in (at_one, at_three):
                with trio.move_on_after(0.3) as scope:
                    assert await channel.receive() == Broadcast(two.peer, b"true")
                if scope.cancelled_caught:
                    return False
            return True

        await eventually(came)


async def test_a_stranger_has_no_part_in_it(nodes: Nodes) -> None:
    async with nodes("one") as one, nodes("two") as two:
        one.door.strangers.add(two.peer)
        await two.transport.connect(one.transport.addresses)
        asked: list[bytes] = []
        two.transport.directory.kademlia.own = lambda key: asked.append(key) or []  # type: ignore[func-returns-value]
        assert await one.transport.lookup(two.peer, "status") is None
        assert not asked
        for protocol in (messages.PROTOCOL, gossip.PROTOCOL):
            with pytest.raises(ProtocolRefused):
                async with two.transport.open(one.peer, protocol):
                    pass
        async with two.transport.subscribe("t") as channel:
            await trio.sleep(1)
            await one.transport.broadcast("t", b"secret")
            with trio.move_on_after(1):
                raise AssertionError(await channel.receive())


@asynccontextmanager
async def channels(nodes: Nodes) -> AsyncIterator[tuple[Node, DataChannel, DataChannel]]:
    """The second node, and a data channel from the first to it."""
    served: list[DataChannel | None] = []
    done = trio.Event()

    async with nodes("one") as one, nodes("two") as two:

        async def handle(stream: Stream) -> None:
            served.append(await two.transport.data_channel(stream))
            done.set()

        async with two.transport.serve(ECHO, handle):
            await one.transport.connect(two.transport.addresses)
            async with one.transport.open(two.peer, ECHO) as stream:
                near = await one.transport.data_channel(stream)
                await done.wait()
            (far,) = served
            assert near is not None and far is not None
            with near.socket, far.socket:
                yield two, near, far


async def test_a_data_channel_outlives_its_stream(nodes: Nodes) -> None:
    async with channels(nodes) as (_, near, far):
        near.socket.sendall(b"x" * 100)
        assert await trio.to_thread.run_sync(far.socket.recv, 100) == b"x" * 100
        assert near.certificate == far.trusted
        ssl.PEM_cert_to_DER_cert(near.trusted.decode())


async def test_strangers_on_the_port_of_data_channels_get_nothing(nodes: Nodes) -> None:
    async with channels(nodes) as (two, _, _):
        port = two.transport.channels.ports[4]
        flood = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(150)]
        for stranger in flood[::2]:
            await send(stranger.socket, b"\x16\x03\x01\x02\x00\x01" + bytes(100))
        assert two.transport.channels.half_open <= 64

        async def all_closed() -> bool:
            return two.transport.channels.half_open == 0

        await eventually(all_closed)
        for stranger in flood:
            stranger.socket.close()


async def send(sock: trio.socket.SocketType, data: bytes) -> None:
    try:
        await sock.send(data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it was closed already, which is right
