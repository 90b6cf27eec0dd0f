"""The directory on a simulated network: what is told, what is found, what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from kwaai_core import (
    DeadlinePassed,
    FrameError,
    PeerLost,
    PeerUnreachable,
    RequestError,
)
from kwaai_core.testing.identities import FakeIdentity
from kwaai_core.testing.network import Line, MemoryTransport, Network
from kwaai_lobe_libp2p import kademlia, messages
from kwaai_lobe_libp2p.directory import Directory, open_directory
from kwaai_lobe_libp2p.rates import Rates
from kwaai_lobe_libp2p.statements import MAX_LIFE, Kind, Statement, key_of, seal


class Open:
    """A door that lets everybody in."""

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class Node:
    identity: FakeIdentity
    transport: MemoryTransport
    directory: Directory

    @property
    def peer(self) -> str:
        return self.identity.peer_id


def numbers(start: int = 0) -> Callable[[int], Awaitable[int]]:
    last = start

    async def number(above: int) -> int:
        nonlocal last
        await trio.lowlevel.checkpoint()
        last = max(last, above) + 1
        return last

    return number


@pytest.fixture
def network() -> Network:
    return Network(7, Line(latency=0.01))


@asynccontextmanager
async def opened(network: Network, name: str, *, start: int = 0) -> AsyncIterator[Node]:
    identity = FakeIdentity(name, now=network.now)
    async with network.node(identity) as transport:
        transport.guard(Open())
        async with open_directory(identity, transport, numbers(start), now=network.now) as made:
            yield Node(identity, transport, made)


@asynccontextmanager
async def swarm(network: Network, size: int) -> AsyncIterator[Sequence[Node]]:
    """Nodes that each know the first of them, and what they learn from there."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(opened(network, f"node {n}")) for n in range(size)]
        for node in nodes[1:]:
            await node.transport.connect(nodes[0].transport.addresses)
        await trio.sleep(30)
        yield nodes


async def ask(asker: Node, peer: str, message: bytes) -> bytes:
    async with asker.transport.open(peer, messages.PROTOCOL) as stream:
        await stream.send(message)
        return await stream.receive()


async def tell(asker: Node, peer: str, statement: Statement) -> messages.Held:
    return messages.answer_held(await ask(asker, peer, messages.store(statement, None)))


def made(
    node: Node,
    network: Network,
    *,
    kind: Kind = "record",
    name: str = "status",
    body: bytes = b"",
    sequence: int = 1,
    seconds: float = 60.0,
) -> Statement:
    return seal(node.identity, kind, name, body, sequence=sequence, expires=network.now() + seconds)


async def test_a_record_is_found_by_all(autojump_clock: MockClock, network: Network) -> None:
    async with swarm(network, 10) as nodes:
        await nodes[3].directory.publish("status", b"free", seconds=60)
        for node in nodes:
            record = await node.directory.lookup(nodes[3].peer, "status", seconds=5)
            assert record is not None
            assert (record.subject, record.name, record.body) == (nodes[3].peer, "status", b"free")
            assert record.expires > network.now()


async def test_a_record_outlives_its_publisher_but_not_its_time(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 10) as nodes:
        await nodes[3].directory.publish("status", b"free", seconds=60)
        for node in (nodes[0], nodes[3], nodes[5], nodes[7]):
            network.kill(node.peer)
        async with opened(network, "late") as late:
            await late.transport.connect(nodes[1].transport.addresses)
            began = trio.current_time()
            record = await late.directory.lookup(nodes[3].peer, "status", seconds=5)
            assert record is not None and record.body == b"free"
            assert trio.current_time() < began + 1
            await trio.sleep(61)
            assert await late.directory.lookup(nodes[3].peer, "status", seconds=5) is None


async def test_a_living_publisher_keeps_it_alive_and_the_newest_wins(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 6) as nodes:
        await nodes[0].directory.publish("status", b"old", seconds=20)
        first = await nodes[1].directory.lookup(nodes[0].peer, "status", seconds=5)
        network.partition(nodes[4].peer, nodes[5].peer)
        await nodes[0].directory.publish("status", b"new", seconds=20)
        network.heal()
        # two holders still have the old one, and answer with it
        for node in nodes:
            record = await node.directory.lookup(nodes[0].peer, "status", seconds=5)
            assert record is not None and record.body == b"new"
            assert first is not None and record.sequence > first.sequence
        await trio.sleep(500)
        again = await nodes[1].directory.lookup(nodes[0].peer, "status", seconds=5)
        assert again is not None and again.body == b"new"
        assert again.sequence > record.sequence


async def test_of_two_who_publish_at_once_the_later_counts(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 3) as nodes:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for body in (b"first", b"second", b"third"):
                    nursery.start_soon(partial(publish, nodes[0], body))
                    await trio.testing.wait_all_tasks_blocked()
        record = await nodes[1].directory.lookup(nodes[0].peer, "status", seconds=5)
        assert record is not None and record.body == b"third"


async def publish(node: Node, body: bytes) -> None:
    await node.directory.publish("status", body, seconds=60)


async def test_newcomers_come_to_hold_what_was_published_before(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 2) as nodes:
        await nodes[0].directory.publish("status", b"here", seconds=6000)
        async with opened(network, "new") as new, opened(network, "newer") as newer:
            for one in (new, newer):
                await one.transport.connect(nodes[1].transport.addresses)
            await trio.sleep(5)
            for node in nodes:
                network.kill(node.peer)
            record = await newer.directory.lookup(nodes[0].peer, "status", seconds=5)
            assert record is not None and record.body == b"here"


async def test_what_reached_nobody_is_told_again_to_who_comes(
    autojump_clock: MockClock, network: Network
) -> None:
    async with opened(network, "alone") as alone:
        await alone.directory.publish("status", b"here", seconds=600)
        assert alone.directory.facts()["published"] == {"record status": 0}
        await trio.sleep(200)
        async with opened(network, "other") as other:
            await other.transport.connect(alone.transport.addresses)
            await trio.sleep(2)
            await other.directory.nearest("anything", 1, seconds=5)
            await trio.sleep(1)
            assert alone.directory.facts()["published"] == {"record status": 1}
            network.kill(alone.peer)
            record = await other.directory.lookup(alone.peer, "status", seconds=5)
            assert record is not None and record.body == b"here"


async def test_a_node_that_lost_its_state_goes_above_what_it_signed(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 4) as nodes:
        async with opened(network, "forgetful", start=1000) as node:
            await node.transport.connect(nodes[0].transport.addresses)
            await node.directory.publish("status", b"before", seconds=6000)
        async with opened(network, "forgetful") as node:
            await node.transport.connect(nodes[0].transport.addresses)
            await node.directory.publish("status", b"after", seconds=6000)
            record = await nodes[2].directory.lookup(node.peer, "status", seconds=5)
            assert record is not None and record.body == b"after"
            assert record.sequence > 1000


class Counting(Rates):
    """Rates that count the questions."""

    asked = 0

    def take(self, peer: str, tokens: float = 1.0) -> bool:
        self.asked += 1
        return super().take(peer, tokens)


async def test_many_who_come_at_once_do_not_drown_one_another_in_questions(
    autojump_clock: MockClock, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kademlia, "Rates", Counting)
    size = 40
    async with swarm(network, size) as nodes:
        rates = [node.directory.kademlia._rates for node in nodes]
        asked = sum(one.asked for one in rates if isinstance(one, Counting))
        assert len(nodes[1].directory.kademlia.table) > size // 2
        # each looks for two places, and introduces itself to those to whom it is connected
        assert asked <= 4 * size * size
        await trio.sleep(100)
        assert sum(one.asked for one in rates if isinstance(one, Counting)) == asked


async def test_providers_of_a_key(autojump_clock: MockClock, network: Network) -> None:
    async with swarm(network, 8) as nodes:
        await nodes[1].directory.provide("model x", seconds=60)
        await nodes[2].directory.provide("model x", seconds=6000)
        await nodes[3].directory.provide("model y", seconds=60)
        found = await nodes[5].directory.providers("model x", seconds=5)
        assert sorted(found) == sorted([nodes[1].peer, nodes[2].peer])
        assert await nodes[2].directory.providers("model x", seconds=5) == [nodes[1].peer]
        network.kill(nodes[1].peer)
        await trio.sleep(61)
        assert await nodes[5].directory.providers("model x", seconds=5) == [nodes[2].peer]


async def test_the_nearest_are_the_nearest_of_all(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 12) as nodes:
        for key in ("one", "another", "a third"):
            found = await nodes[2].directory.nearest(key, 4, seconds=5)
            others = [node.transport for node in nodes if node is not nodes[2]]
            at = int.from_bytes(hashlib.sha256(key.encode()).digest(), "big")
            right = sorted(others, key=lambda other: other.position ^ at)[:4]
            assert found == [other.peer for other in right]


async def test_a_lookup_alone_finds_nothing_and_one_that_nobody_answers_says_so(
    autojump_clock: MockClock,
    network: Network,
) -> None:
    async with opened(network, "alone") as alone:
        assert await alone.directory.lookup(alone.peer, "status", seconds=5) is None
    async with swarm(network, 3) as nodes:
        for node in nodes[1:]:
            network.kill(node.peer)
        with pytest.raises(PeerUnreachable):
            await nodes[0].directory.lookup(nodes[1].peer, "status", seconds=20)


async def test_frozen_peers_cost_no_more_than_the_deadline(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 4) as nodes:
        for node in nodes[1:]:
            network.freeze(node.peer)
        began = trio.current_time()
        with pytest.raises((DeadlinePassed, PeerUnreachable)):
            await nodes[0].directory.lookup(nodes[1].peer, "status", seconds=1)
        assert trio.current_time() <= began + 1


@pytest.mark.parametrize(
    ("name", "body", "seconds", "error"),
    [
        ("status", bytes(16 * 1024 + 1), 60.0, FrameError),
        ("", b"", 60.0, RequestError),
        ("a\nb", b"", 60.0, RequestError),
        ("x" * 257, b"", 60.0, RequestError),
        ("status", b"", 0.0, RequestError),
        ("status", b"", MAX_LIFE + 1, RequestError),
    ],
)
async def test_what_cannot_be_published(
    autojump_clock: MockClock,
    network: Network,
    name: str,
    body: bytes,
    seconds: float,
    error: type[Exception],
) -> None:
    async with opened(network, "node") as node:
        with pytest.raises(error):
            await node.directory.publish(name, body, seconds=seconds)


async def test_the_largest_record_fits(autojump_clock: MockClock, network: Network) -> None:
    async with swarm(network, 3) as nodes:
        await nodes[0].directory.publish("é" * 256, bytes(range(256)) * 64, seconds=60)
        record = await nodes[2].directory.lookup(nodes[0].peer, "é" * 256, seconds=5)
        assert record is not None and record.body == bytes(range(256)) * 64


async def test_only_sound_statements_of_the_sender_are_held(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 3) as (holder, sender, other):
        shelf = holder.directory.kademlia.shelf
        sound = made(sender, network, sequence=5)
        assert (await tell(sender, holder.peer, sound)).statement == sound.sealed
        lower = made(sender, network, sequence=4, body=b"older")
        assert (await tell(sender, holder.peer, lower)).statement == sound.sealed
        bad = [
            made(other, network),  # of another subject
            made(sender, network, sequence=6, seconds=-1),
            made(sender, network, sequence=6, seconds=MAX_LIFE + 3600),
            made(sender, network, sequence=-1),
            made(sender, network, sequence=1 << 63),
            made(sender, network, sequence=6, body=bytes(16 * 1024 + 1)),
            made(sender, network, sequence=6, name="x" * 257),
            made(sender, network, sequence=6, name="a\x00"),
            made(sender, network, sequence=6, kind="contact"),
            made(sender, network, sequence=6, kind="rumour"),  # type: ignore[arg-type]
        ]
        for statement in bad:
            with pytest.raises(PeerLost):
                await tell(sender, holder.peer, statement)
        assert [held.sealed for held in shelf] == [sound.sealed]


async def test_a_record_kept_under_another_key_is_not_believed(
    autojump_clock: MockClock, network: Network
) -> None:
    async with opened(network, "liar") as liar, opened(network, "asker") as asker:
        await asker.transport.connect(liar.transport.addresses)
        lie = made(liar, network, name="other", body=b"a lie")
        liar.directory.kademlia.own = lambda key: [lie]
        assert await asker.directory.lookup(liar.peer, "status", seconds=5) is None
        assert await asker.directory.lookup(liar.peer, "other", seconds=5) is not None


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"find": 5}',
        b'{"find": "' + b"zz" * 32 + b'"}',
        b'{"find": "' + b"0" * 63 + b" " + b'"}',
        b'{"store": null}',
        b'{"store": {"a": 1}}',
        b'{"store": "did:key:zzz abc"}',
    ],
)
async def test_garbage_is_not_answered_and_harms_nobody(
    autojump_clock: MockClock, network: Network, frame: bytes
) -> None:
    async with swarm(network, 3) as (node, hostile, honest):
        with pytest.raises(PeerLost):
            await ask(hostile, node.peer, frame)
        await honest.directory.publish("status", b"fine", seconds=60)
        record = await node.directory.lookup(honest.peer, "status", seconds=5)
        assert record is not None and record.body == b"fine"


async def test_garbage_as_answer_is_of_no_use_and_harms_nobody(
    autojump_clock: MockClock, network: Network
) -> None:
    answers = [
        b"",
        b"{}",
        b'{"found": 1, "nearer": []}',
        json.dumps({"found": ["x"] * 1000, "nearer": [None] * 1000}).encode(),
        json.dumps({"found": [], "nearer": [], "from": "no"}).encode(),
    ]
    async with (
        swarm(network, 3) as (asker, honest, _),
        network.node(FakeIdentity("hostile", now=network.now)) as hostile,
    ):
        hostile.guard(Open())
        queue = list(answers)

        async def answer(stream: object) -> None:
            await stream.receive()  # type: ignore[attr-defined]
            await stream.send(queue[0])  # type: ignore[attr-defined]

        await honest.directory.publish("status", b"fine", seconds=60)
        async with hostile.serve(messages.PROTOCOL, answer):
            while queue:
                await asker.transport.connect(hostile.addresses)
                record = await asker.directory.lookup(honest.peer, "status", seconds=5)
                assert record is not None and record.body == b"fine"
                queue.pop(0)


async def test_who_asks_too_often_is_not_answered_and_others_are(
    autojump_clock: MockClock, network: Network
) -> None:
    async with swarm(network, 3) as (node, flood, honest):
        key = key_of("record", node.peer, "status")
        answered = 0

        async def flood_once() -> None:
            nonlocal answered
            with suppress(PeerLost):
                await ask(flood, node.peer, messages.find(key, None))
                answered += 1

        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(flood_once)
        assert 400 <= answered < 600
        await ask(honest, node.peer, messages.find(key, None))
