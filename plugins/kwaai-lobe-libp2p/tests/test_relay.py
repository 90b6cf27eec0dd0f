"""Connections through a third node, for those that cannot reach one another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from kwaai_core import PeerLost, PeerUnreachable
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p.relay import HOP, Relay

from .conftest import ECHO, Node, Nodes, echo


async def has_place(node: Node) -> str:
    """The node's address through its relay, once it has one."""
    with trio.fail_after(10):
        while not (  # noqa: ASYNC110 - addresses tell nobody that they change
            there := [one for one in node.transport.addresses if "circuit" in one]
        ):
            await trio.sleep(0.01)
    return there[0]


@asynccontextmanager
async def behind(nodes: Nodes) -> AsyncIterator[tuple[Node, Node, Node, str]]:
    """A relay; a node that listens nowhere but there; one that wants to talk to it; its address."""
    async with nodes("relay", relay=True) as relay:
        place = relay.transport.addresses[0]
        async with (
            nodes("hidden", listen=(), relays=(place,), hole_punching=False) as hidden,
            nodes("outside") as outside,
            hidden.transport.serve(ECHO, echo),
        ):
            yield relay, hidden, outside, await has_place(hidden)


async def test_who_listens_nowhere_is_reached_through_its_relay(nodes: Nodes) -> None:
    async with behind(nodes) as (relay, hidden, outside, address):
        assert f"/p2p/{relay.peer}/p2p-circuit/p2p/{hidden.peer}" in address
        assert await outside.transport.connect([address]) == hidden.peer
        (link,) = [one for one in outside.transport.links() if one.peer == hidden.peer]
        assert link.relayed
        async with outside.transport.open(hidden.peer, ECHO) as stream:
            for size in (10, 1 << 20):
                await stream.send(bytes(size))
                assert len(await stream.receive()) == size
        (back,) = [one for one in hidden.transport.links() if one.peer == outside.peer]
        assert back.relayed
        assert back.inbound


async def test_the_relay_s_end_is_the_connection_s(nodes: Nodes) -> None:
    async with behind(nodes) as (relay, hidden, outside, address):
        await outside.transport.connect([address])
        async with outside.transport.open(hidden.peer, ECHO) as stream:
            await relay.transport.disconnect(hidden.peer)
            with pytest.raises(PeerLost):
                await stream.receive(seconds=10)


async def test_who_has_no_place_is_not_reached(nodes: Nodes) -> None:
    async with nodes("relay", relay=True) as relay, nodes("outside") as outside:
        nobody = FakeIdentity("nobody").peer_id
        address = f"{relay.transport.addresses[0]}/p2p-circuit/p2p/{nobody}"
        with pytest.raises(PeerUnreachable, match="no reservation"):
            await outside.transport.connect([address])


async def test_a_relay_serves_whom_its_door_lets_in(nodes: Nodes) -> None:
    async with behind(nodes) as (relay, _, outside, address):
        relay.door.strangers.add(outside.peer)
        with pytest.raises(PeerUnreachable, match="does not serve"):
            await outside.transport.connect([address])


async def test_a_node_is_no_relay_unless_it_is_told_to(nodes: Nodes) -> None:
    async with nodes("one") as one, nodes("two") as two:
        assert HOP not in one.transport.network.services.protocols
        address = f"{one.transport.addresses[0]}/p2p-circuit/p2p/{FakeIdentity('x').peer_id}"
        with pytest.raises(PeerUnreachable, match="does not serve"):
            await two.transport.connect([address])


async def test_a_relay_forgets_whose_circuits_are_over(nodes: Nodes) -> None:
    async with nodes("relay") as node:
        relay = Relay(node.transport.network)
        place = node.transport.addresses[0]
        async with (
            node.transport.network.services.serve(HOP, relay.serve),
            nodes("hidden", listen=(), relays=(place,), hole_punching=False) as hidden,
            nodes("outside") as outside,
        ):
            await outside.transport.connect([await has_place(hidden)])
            assert relay.circuits == {outside.peer: 1}
            await outside.transport.disconnect(hidden.peer)
            with trio.fail_after(10):
                while relay.circuits.get(outside.peer):  # noqa: ASYNC110 - it tells nobody
                    await trio.sleep(0.01)
            assert dict(relay.circuits) == {}
