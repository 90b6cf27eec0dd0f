"""Direct connections in place of relayed ones; the routers are in the tests of whole systems."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from kwaai_core import Link, PeerLost
from kwaai_lobe_libp2p import hole_punching
from kwaai_lobe_libp2p.addresses import parse
from kwaai_lobe_libp2p.connection import Connection
from kwaai_lobe_libp2p.hole_punching import DCUTR, EACH
from kwaai_lobe_libp2p.identify import message, read_message
from kwaai_lobe_libp2p.outside import may_be_dialled
from kwaai_lobe_libp2p.streams import ByteStream

from .conftest import ECHO, Node, Nodes, echo
from .test_relay import has_place


@dataclass(frozen=True, slots=True)
class Met:
    """``dialler`` has dialled ``hidden`` through ``relay``; no end asks for more by itself."""

    relay: Node
    hidden: Node
    dialler: Node

    @property
    def relayed(self) -> Connection:
        """The connection through the relay, at the end that is to ask."""
        found = self.hidden.transport.network.relayed(self.dialler.peer)
        assert found is not None
        return found

    async def upgrade(self) -> None:
        with trio.fail_after(30):
            await self.hidden.transport.puncher.upgrade(self.relayed)


@asynccontextmanager
async def met(nodes: Nodes, **dialler: object) -> AsyncIterator[Met]:
    """``dialler`` are settings of who dials; it listens nowhere unless they say so."""
    async with nodes("relay", relay=True) as relay:
        place = relay.transport.addresses[0]
        table = {"listen": (), **dialler}
        async with (
            nodes("hidden", listen=(), relays=(place,), hole_punching=False) as hidden,
            nodes("dialler", **table) as other,
            hidden.transport.serve(ECHO, echo),
        ):
            await other.transport.connect([await has_place(hidden)])
            found = Met(relay, hidden, other)
            await until(lambda: hidden.transport.network.relayed(other.peer) is not None)
            yield found


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - links tell nobody that they change
            await trio.sleep(0.01)


def link(here: Node, there: Node) -> Link:
    (found,) = [one for one in here.transport.links() if one.peer == there.peer]
    return found


def connections(here: Node, there: Node) -> list[Connection]:
    return [one for one in here.transport.network if one.peer == there.peer]


async def echoes(here: Node, there: Node) -> None:
    async with here.transport.open(there.peer, ECHO) as stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"


def told(kind: HolePunch.Type.ValueType, *addresses: str) -> bytes:
    raw = [Multiaddr(one).to_bytes() for one in addresses]
    return message(HolePunch(type=kind, ObsAddrs=raw).SerializeToString())


async def test_two_that_listen_nowhere_are_connected_directly(nodes: Nodes) -> None:
    async with met(nodes) as two:
        assert link(two.dialler, two.hidden).relayed
        await two.upgrade()
        await until(lambda: not link(two.dialler, two.hidden).relayed)
        assert not link(two.hidden, two.dialler).relayed
        # the one that was asked is the client, as the specification has it
        assert not link(two.dialler, two.hidden).inbound
        assert link(two.hidden, two.dialler).inbound
        await echoes(two.dialler, two.hidden)


async def test_it_happens_by_itself(nodes: Nodes) -> None:
    async with nodes("relay", relay=True) as relay:
        place = relay.transport.addresses[0]
        async with (
            nodes("one", listen=(), relays=(place,)) as one,
            nodes("two", listen=(), relays=(place,)) as two,
        ):
            await two.transport.connect([await has_place(one)])
            await until(lambda: not link(two, one).relayed)
            await until(lambda: not link(one, two).relayed)


async def test_who_can_be_dialled_is_dialled_instead(nodes: Nodes) -> None:
    async with met(nodes, listen=("/ip4/127.0.0.1/tcp/0",), hole_punching=False) as two:
        await until(lambda: two.hidden.transport.network.book.of(two.dialler.peer))
        await two.upgrade()
        direct = link(two.hidden, two.dialler)
        assert not direct.relayed
        assert not direct.inbound


async def test_a_private_network_s_key_is_on_direct_connections_too(nodes: Nodes) -> None:
    key = nodes.folder / "swarm.key"
    key.write_text("/key/swarm/psk/1.0.0/\n/base16/\n" + "ab" * 32)
    network = {"network_key_file": str(key), "listen": ()}
    async with nodes("relay", relay=True, network_key_file=str(key)) as relay:
        place = relay.transport.addresses[0]
        async with (
            nodes("one", relays=(place,), **network) as one,
            nodes("two", **network) as two,
            one.transport.serve(ECHO, echo),
        ):
            await two.transport.connect([await has_place(one)])
            await until(lambda: not link(two, one).relayed)
            await echoes(two, one)


async def test_the_relayed_connection_goes_when_nothing_runs_on_it(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "GRACE", 0.05)
    async with met(nodes) as two:
        async with two.dialler.transport.open(two.hidden.peer, ECHO) as old:
            relayed = two.relayed
            await two.upgrade()
            await until(lambda: not link(two.dialler, two.hidden).relayed)
            for _ in range(5):
                await trio.sleep(0.05)
                await old.send(b"still here")
                assert await old.receive() == b"still here"
            assert relayed.is_up
        await until(lambda: len(connections(two.dialler, two.hidden)) == 1)
        await until(lambda: len(connections(two.hidden, two.dialler)) == 1)
        assert not relayed.is_up
        await echoes(two.dialler, two.hidden)


async def test_what_runs_for_too_long_over_the_relay_is_cut(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "GRACE", 0.05)
    monkeypatch.setattr(hole_punching, "LONGEST", 0.2)
    async with met(nodes) as two, two.dialler.transport.open(two.hidden.peer, ECHO) as old:
        await two.upgrade()
        with pytest.raises(PeerLost):
            await old.receive(seconds=10)


async def test_the_relayed_connection_stays_when_the_direct_one_is_lost(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "GRACE", 0.3)
    async with met(nodes) as two:
        relayed = two.relayed
        await two.upgrade()
        for connection in connections(two.hidden, two.dialler):
            if connection is not relayed:
                connection.close()
        await until(lambda: link(two.hidden, two.dialler).relayed)
        await trio.sleep(0.5)
        assert relayed.is_up


async def test_both_may_ask_at_once(nodes: Nodes) -> None:
    async with met(nodes) as two:
        way = two.dialler.transport.network.relayed(two.hidden.peer)
        assert way is not None
        serving = two.hidden.transport.network.services.serve(
            DCUTR, two.hidden.transport.puncher.serve
        )
        async with serving, trio.open_nursery() as nursery:
            nursery.start_soon(two.hidden.transport.puncher.upgrade, two.relayed)
            nursery.start_soon(two.dialler.transport.puncher.upgrade, way)
        for here, there in ((two.hidden, two.dialler), (two.dialler, two.hidden)):
            await until(lambda here=here, there=there: not link(here, there).relayed)
            direct = [one for one in connections(here, there) if not one.address.relay]
            assert len(direct) == 1


async def test_who_is_not_let_in_is_not_asked(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "LET_IN", 0.3)
    async with met(nodes) as two:
        two.hidden.door.strangers.add(two.dialler.peer)
        await two.upgrade()
        assert link(two.hidden, two.dialler).relayed


async def test_who_is_not_let_in_gets_no_answer(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "PAUSE", 0.01)
    async with met(nodes) as two:
        two.dialler.door.strangers.add(two.hidden.peer)
        await two.upgrade()
        assert "is not served" in link(two.hidden, two.dialler).why_relayed


GARBAGE = {
    "noise": b"\x05\xff\xff\xff\xff\xff",
    "too long": b"\x81\x20" + bytes(4097),
    "never ends": b"\xff\xff\xff\xff\xff",
    "out of turn": told(HolePunch.SYNC),
    "no address": told(HolePunch.CONNECT),
    "a name": told(HolePunch.CONNECT, "/dns4/example.org/tcp/4001"),
    "a service": told(HolePunch.CONNECT, "/ip4/127.0.0.1/tcp/22"),
    "another network's": told(HolePunch.CONNECT, "/ip4/10.0.0.1/tcp/4001"),
    "all the world": told(HolePunch.CONNECT, "/ip4/224.0.0.1/tcp/4001"),
    "not an address": message(b"\x08\x64\x12\x02xx"),
    "no type": message(b"\x12\x01x"),
}


@pytest.mark.parametrize("frame", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_from_who_asks_ends_the_stream(nodes: Nodes, frame: bytes) -> None:
    async with met(nodes) as two:
        stream = await two.relayed.open(DCUTR)
        await stream.write(frame)
        with trio.fail_after(5), pytest.raises(PeerLost):
            await stream.read(1)
        assert "no hole was punched" in link(two.dialler, two.hidden).why_relayed
        await echoes(two.dialler, two.hidden)


@pytest.mark.parametrize("frame", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_from_who_is_asked_leaves_the_relay(
    nodes: Nodes, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "PAUSE", 0.01)
    asked = 0

    async def answer(stream: ByteStream) -> None:
        nonlocal asked
        asked += 1
        await read_message(stream)
        await stream.write(frame)
        await stream.finish()

    async with (
        met(nodes, hole_punching=False) as two,
        two.dialler.transport.network.services.serve(DCUTR, answer),
    ):
        await two.upgrade()
        assert asked == hole_punching.TRIES
        assert "no hole was punched" in link(two.hidden, two.dialler).why_relayed
        await echoes(two.dialler, two.hidden)


async def test_another_peer_at_a_told_address_is_not_taken(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "WINDOW", 0.5)
    async with met(nodes) as two, nodes("third") as third:
        place = third.transport.addresses[0].partition("/p2p/")[0]
        stream = await two.relayed.open(DCUTR)
        await stream.write(told(HolePunch.CONNECT, place))
        await read_message(stream)
        await stream.write(told(HolePunch.SYNC))
        await until(lambda: link(two.dialler, two.hidden).why_relayed)
        assert "another peer is there" in link(two.dialler, two.hidden).why_relayed
        assert [one.peer for one in two.dialler.transport.links()].count(third.peer) == 0


async def asked(two: Met) -> HolePunch:
    """What is answered to who asks for a direct connection, and then leaves."""
    stream = await two.relayed.open(DCUTR)
    try:
        with trio.fail_after(5):
            await stream.write(told(HolePunch.CONNECT, "/ip4/127.0.0.1/tcp/4001"))
            return HolePunch.FromString(await read_message(stream))
    finally:
        await stream.reset()


async def test_who_asks_too_often_gets_no_answer(nodes: Nodes) -> None:
    async with met(nodes) as two:
        for _ in range(EACH):
            assert (await asked(two)).type == HolePunch.CONNECT
        with pytest.raises(PeerLost):
            await asked(two)


async def test_who_is_connected_directly_has_nothing_to_ask(nodes: Nodes) -> None:
    async with nodes.pair() as (one, two):
        stream = await one.transport.network.open(two.peer, DCUTR)
        with trio.fail_after(5), pytest.raises(PeerLost):
            await stream.read(1)


async def test_a_relay_that_tells_nonsense_is_not_believed(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_punching, "PAUSE", 0.01)
    async with met(nodes) as two:
        lie = [replace(link(two.relay, two.hidden), address="/ip4/203.0.113.9/tcp/22")]
        monkeypatch.setattr(two.relay.transport, "links", lambda: lie)
        await two.upgrade()
        assert "does not say where" in link(two.hidden, two.dialler).why_relayed


@pytest.mark.parametrize(
    ("relay", "address", "dialled"),
    [
        ("198.41.0.4", "/ip4/8.8.8.8/tcp/4001", True),
        ("198.41.0.4", "/ip6/2620:fe::fe/tcp/4001", True),
        ("198.41.0.4", "/ip4/8.8.8.8/tcp/443", False),
        ("198.41.0.4", "/ip4/192.168.0.1/tcp/8080", False),
        ("198.41.0.4", "/ip4/127.0.0.1/tcp/8080", False),
        ("198.41.0.4", "/ip6/::1/tcp/8080", False),
        ("198.41.0.4", "/ip6/::ffff:127.0.0.1/tcp/8080", False),
        ("198.41.0.4", "/ip4/169.254.169.254/tcp/8080", False),
        ("198.41.0.4", "/ip6/fe80::1/tcp/8080", False),
        ("198.41.0.4", "/ip4/0.0.0.0/tcp/8080", False),
        ("198.41.0.4", "/ip4/255.255.255.255/tcp/8080", False),
        ("198.41.0.4", "/ip4/224.0.0.1/tcp/8080", False),
        ("198.41.0.4", "/dns4/example.org/tcp/8080", False),
        ("192.168.7.1", "/ip4/192.168.0.1/tcp/8080", True),
        ("192.168.7.1", "/ip4/8.8.8.8/tcp/8080", True),
        ("192.168.7.1", "/ip4/127.0.0.1/tcp/8080", False),
        ("127.0.0.1", "/ip4/127.0.0.1/tcp/8080", True),
        ("127.0.0.1", "/ip4/192.168.0.1/tcp/8080", False),
    ],
)
def test_only_what_could_be_a_router_s_outside_is_dialled(
    relay: str, address: str, dialled: bool
) -> None:
    assert may_be_dialled(parse(address), parse(f"/ip4/{relay}/tcp/4001")) is dialled
