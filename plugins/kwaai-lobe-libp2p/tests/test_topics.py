"""Topics on a simulated network: who hears what, and what is not listened to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from kwaai_core import Broadcast, Busy, FrameError, NotVerified, PeerLost, RequestError
from kwaai_core.testing.identities import FakeIdentity
from kwaai_core.testing.network import Line, MemoryTransport, Network
from kwaai_lobe_libp2p import gossip, topics
from kwaai_lobe_libp2p.neighbours import KEPT, Subscription
from kwaai_lobe_libp2p.seen import Seen
from kwaai_lobe_libp2p.topics import OWN_BURST, PUSHED, Topics, open_topics

ME = FakeIdentity("me")
NOW = 1_800_000_000.0


class Open:
    async def greet(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()

    def allows(self, peer: str, protocol: str) -> bool:
        return True


@dataclass(frozen=True)
class Node:
    identity: FakeIdentity
    transport: MemoryTransport
    topics: Topics

    @property
    def peer(self) -> str:
        return self.identity.peer_id


@pytest.fixture
def network() -> Network:
    return Network(3, Line(latency=0.01))


@asynccontextmanager
async def swarm(
    network: Network, size: int, *links: tuple[int, int]
) -> AsyncIterator[Sequence[Node]]:
    """Nodes with these connections, or all of them."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for n in range(size):
            identity = FakeIdentity(f"node {n}", now=network.now)
            transport = await stack.enter_async_context(network.node(identity))
            transport.guard(Open())
            topics = await stack.enter_async_context(
                open_topics(identity, transport, now=network.now)
            )
            nodes.append(Node(identity, transport, topics))
        for one, other in links or [(a, b) for a in range(size) for b in range(a)]:
            await nodes[one].transport.connect(nodes[other].transport.addresses)
        yield nodes


async def heard(channel: trio.abc.ReceiveChannel[Broadcast], seconds: float = 5.0) -> bytes | None:
    with trio.move_on_after(seconds):
        return (await channel.receive()).body
    return None


async def test_messages_go_hop_by_hop_with_their_author(
    autojump_clock: MockClock, network: Network
) -> None:
    async with (
        swarm(network, 5, (0, 1), (1, 2), (2, 3), (3, 4)) as nodes,
        AsyncExitStack() as stack,
    ):
        channels = [await stack.enter_async_context(node.topics.subscribe("t")) for node in nodes]
        other = await stack.enter_async_context(nodes[4].topics.subscribe("other"))
        await trio.sleep(3)
        await nodes[0].topics.broadcast("t", b"hello")
        for channel in channels:
            with trio.fail_after(1):
                assert await channel.receive() == Broadcast(nodes[0].peer, b"hello")
            assert await heard(channel) is None  # once
        assert await heard(other) is None


async def test_who_does_not_subscribe_neither_hears_nor_passes_on(
    autojump_clock: MockClock, network: Network
) -> None:
    async with (
        swarm(network, 3, (0, 1), (1, 2)) as nodes,
        nodes[2].topics.subscribe("t") as channel,
    ):
        await trio.sleep(3)
        await nodes[0].topics.broadcast("t", b"one")
        assert await heard(channel) is None
        async with nodes[1].topics.subscribe("t"):
            await trio.sleep(3)
            await nodes[0].topics.broadcast("t", b"two")
            assert await heard(channel) == b"two"


async def test_all_of_many_neighbours_hear(autojump_clock: MockClock, network: Network) -> None:
    links = [(n, 0) for n in range(1, 25)]
    async with swarm(network, 25, *links) as nodes, AsyncExitStack() as stack:
        assert len(links) > PUSHED
        channels = [await stack.enter_async_context(node.topics.subscribe("t")) for node in nodes]
        await trio.sleep(3)
        await nodes[7].topics.broadcast("t", b"hello")
        for channel in channels:
            assert await heard(channel) == b"hello"


async def test_a_neighbour_that_comes_back_hears_again(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 2) as (one, two), two.topics.subscribe("t") as channel:
        await trio.sleep(3)
        await one.transport.disconnect(two.peer)
        await trio.sleep(3)
        await one.topics.broadcast("t", b"lost")
        await one.transport.connect(two.transport.addresses)
        await trio.sleep(5)
        await one.topics.broadcast("t", b"found")
        assert await heard(channel) == b"found"


async def test_a_slow_reader_loses_the_oldest() -> None:
    channel = Subscription()
    for n in range(KEPT + 10):
        channel.put(Broadcast("peer", b"%d" % n))
    assert (await channel.receive()).body == b"10"
    channel.close()
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive()


async def test_what_cannot_be_said(autojump_clock: MockClock, network: Network) -> None:
    async with swarm_of_one(network) as node:
        with pytest.raises(FrameError):
            await node.topics.broadcast("t", bytes(gossip.MAX_BODY + 1))
        for topic in ("", "a\nb", "x" * 257):
            with pytest.raises(RequestError):
                await node.topics.broadcast(topic, b"")
            with pytest.raises(RequestError):
                async with node.topics.subscribe(topic):
                    pass
        with pytest.raises(Busy) as busy:
            for _ in range(int(OWN_BURST) + 1):
                await node.topics.broadcast("t", b"")
        assert busy.value.retry_after
        await trio.sleep(10)
        await node.topics.broadcast("t", bytes(gossip.MAX_BODY))


@asynccontextmanager
async def swarm_of_one(network: Network) -> AsyncIterator[Node]:
    identity = FakeIdentity("alone", now=network.now)
    async with network.node(identity) as transport, open_topics(identity, transport) as topics:
        yield Node(identity, transport, topics)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"?",
        b"M",
        b"Mt\nnonsense",
        b"Mt\ndid:key:zzz x.y.z",
        b"M" + b"x" * 5000,
        b"S" + b"\xff",
        b"S" + b"\n".join([b"t"] * 500),
        b"H" + b"x" * 15,
        b"W" + b"x" * 16 * 300,
    ],
)
async def test_garbage_ends_its_stream_and_nobody_elses(
    autojump_clock: MockClock, network: Network, frame: bytes
) -> None:
    async with (
        swarm(network, 3) as (node, hostile, honest),
        node.topics.subscribe("t") as channel,
    ):
        await trio.sleep(3)
        async with hostile.transport.open(node.peer, gossip.PROTOCOL) as stream:
            await stream.send(frame)
            with pytest.raises(PeerLost):
                await stream.receive(seconds=5)
        await honest.topics.broadcast("t", b"fine")
        assert await heard(channel) == b"fine"


async def test_forged_old_and_repeated_messages_are_not_heard(
    autojump_clock: MockClock, network: Network
) -> None:
    async with (
        swarm(network, 3) as (node, hostile, honest),
        node.topics.subscribe("t") as channel,
    ):
        await trio.sleep(3)
        await honest.topics.broadcast("t", b"once")
        assert await heard(channel) == b"once"
        (sound,) = node.topics._recent.values()

        async def say(frame: bytes) -> None:
            async with hostile.transport.open(node.peer, gossip.PROTOCOL) as stream:
                await stream.send(frame)
                await trio.sleep(1)

        mine = gossip.message(honest.identity, "t", b"forged", at=network.now(), number=9)
        old = gossip.message(
            hostile.identity, "t", b"old", at=network.now() - gossip.OLD - 9, number=1
        )
        ahead = gossip.message(
            hostile.identity, "t", b"ahead", at=network.now() + gossip.OLD + 9, number=2
        )
        elsewhere = gossip.message(hostile.identity, "u", b"u", at=network.now(), number=3)
        await say(sound.frame)
        await say(mine.frame[:-5] + b"AAAAA")
        await say(old.frame)
        await say(ahead.frame)
        await say(elsewhere.frame.replace(b"Mu\n", b"Mt\n"))
        assert await heard(channel) is None
        await trio.sleep(4 * gossip.OLD)
        await say(sound.frame)  # it is forgotten by now, and too old
        assert await heard(channel) is None


async def test_an_author_who_says_too_much_is_cut_short(
    autojump_clock: MockClock, network: Network
) -> None:
    async with (
        swarm(network, 3) as (node, hostile, honest),
        node.topics.subscribe("t") as channel,
    ):
        await trio.sleep(3)
        got = 0
        async with hostile.transport.open(node.peer, gossip.PROTOCOL) as stream:
            for n in range(1000):
                made = gossip.message(hostile.identity, "t", b"", at=network.now(), number=n)
                await stream.send(made.frame)
                while await heard(channel, 0.0001) is not None:
                    got += 1
            await trio.sleep(1)
        assert 0 < got < 600
        await honest.topics.broadcast("t", b"fine")
        while (body := await heard(channel)) != b"fine":
            assert body is not None


async def test_a_flood_does_not_make_old_messages_new(
    autojump_clock: MockClock, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "SEEN", 64)
    async with (
        swarm(network, 3) as (node, hostile, honest),
        node.topics.subscribe("t") as channel,
    ):
        await trio.sleep(3)
        await honest.topics.broadcast("t", b"once")
        assert await heard(channel) == b"once"
        (told,) = node.topics._recent.values()
        async with hostile.transport.open(node.peer, gossip.PROTOCOL) as stream:
            for n in range(200):  # authors cost nothing
                author = FakeIdentity(f"author {n}", now=network.now)
                made = gossip.message(author, "t", b"flood", at=network.now(), number=n)
                await stream.send(made.frame)
            await trio.sleep(5)
            await stream.send(told.frame)
            await trio.sleep(1)
        said = []
        while (body := await heard(channel)) is not None:
            said.append(body)
        assert set(said) == {b"flood"}


def test_who_brought_most_is_forgotten_first() -> None:
    seen = Seen(6)
    for n in range(2):
        seen.add(b"honest %d" % n, "honest", n)
    for n in range(10):
        seen.add(b"flood %d" % n, "hostile", n)
    assert len(seen) == 6
    assert b"honest 0" in seen and b"honest 1" in seen
    assert b"flood 5" not in seen and b"flood 9" in seen
    seen.forget(9)
    assert len(seen) == 1 and b"flood 9" in seen


async def test_a_blocked_author_is_not_heard_whoever_passes_it_on(
    autojump_clock: MockClock, network: Network
) -> None:
    async with (
        swarm(network, 3, (0, 1), (1, 2)) as (node, between, blocked),
        node.topics.subscribe("t") as channel,
        between.topics.subscribe("t") as other,
    ):
        node.topics._allows = lambda peer, protocol: peer != blocked.peer
        await trio.sleep(3)
        await blocked.topics.broadcast("t", b"hear me")
        assert await heard(other) == b"hear me"
        await between.topics.broadcast("t", b"fine")
        assert await heard(channel) == b"fine"


async def test_who_is_not_let_in_is_told_nothing(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 2) as (node, stranger):
        node.topics._allows = lambda peer, protocol: peer != stranger.peer
        async with stranger.topics.subscribe("t") as channel, node.topics.subscribe("t"):
            await trio.sleep(3)
            await node.topics.broadcast("t", b"secret")
            assert await heard(channel) is None


@given(
    topic=st.text(min_size=1, max_size=256).filter(str.isprintable),
    body=st.binary(),
    at=st.floats(NOW, NOW + 9),
)
def test_what_was_said_is_read(topic: str, body: bytes, at: float) -> None:
    made = gossip.message(ME, topic, body, at=at, number=1)
    assert made.frame[:1] == b"M"
    assert gossip.verified(FakeIdentity("other"), made.frame[1:]) == made
    assert made.is_recent(at + 100) and not made.is_recent(at + 121)


def test_the_longest_fits() -> None:
    made = gossip.message(ME, "é" * 256, bytes(gossip.MAX_BODY), at=NOW, number=10**15)
    assert len(made.frame) <= gossip.MAX_FRAME < 60_000


@given(st.binary() | st.binary().map(lambda data: b"t\n" + ME.did.encode() + b" " + data))
def test_garbage_is_no_message(told: bytes) -> None:
    with pytest.raises(NotVerified):
        gossip.verified(ME, told)


@given(payload=st.binary() | st.binary().map(lambda data: b"t\n1\n1\n" + data))
def test_garbage_that_is_signed_is_refused_or_sound(payload: bytes) -> None:
    try:
        found = gossip.verified(ME, f"t\n{ME.did} {ME.sign('topic', payload)}".encode())
    except NotVerified:
        return
    assert found.topic == "t" and payload.endswith(found.body)


@given(listed=st.binary())
def test_lists_of_garbage_are_refused_or_sound(listed: bytes) -> None:
    try:
        assert all(gossip.fit_topic(topic) for topic in gossip.read_subscriptions(listed))
    except FrameError:
        pass
    try:
        assert all(len(one) == gossip.ID for one in gossip.read_ids(listed))
    except FrameError:
        pass


@given(st.frozensets(st.text(min_size=1, max_size=20).filter(str.isprintable), max_size=20))
def test_subscriptions_are_read_as_they_were_written(topics: frozenset[str]) -> None:
    assert gossip.read_subscriptions(gossip.subscriptions(topics)[1:]) == topics
