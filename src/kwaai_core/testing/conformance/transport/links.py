"""What every transport must do with its connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from kwaai_core.errors import DeadlinePassed, KwaaiError, PeerUnreachable
from kwaai_core.testing.conformance.rules import broken, refused, require
from kwaai_core.testing.conformance.swarm import (
    PROTOCOL,
    Node,
    Swarm,
    answers,
    echo,
    is_lost,
    joined,
    opens,
)
from kwaai_core.testing.identities import FakeIdentity


async def the_peer_is_authenticated(swarm: Swarm) -> None:
    """Both ends of a stream know who the other is, and an address of another does not connect."""
    async with swarm.nodes("one", "two") as (one, two), swarm.node("three") as three:
        async with joined(one, two) as (near, far):
            peers = near.peer, far.peer
            require(peers == (two.peer, one.peer), f"the ends say that the peers are {peers}")
            require((near.protocol, far.protocol) == (PROTOCOL, PROTOCOL), "another protocol")
        wrong = [address.replace(two.peer, one.peer) for address in two.transport.addresses]
        async with refused(PeerUnreachable, "connect to an address where another peer is"):
            await three.transport.connect(wrong)
        came = await three.transport.connect(two.transport.addresses)
        require(came == two.peer, f"connect to {two.peer} gave {came}")


async def links_say_who_is_connected(swarm: Swarm) -> None:
    """At both ends, and who dialled; none is left when one end has disconnected."""
    async with swarm.nodes("one", "two") as (one, two):
        for node, other, inbound in ((one, two, True), (two, one, False)):
            await swarm.eventually_linked(node, other, linked=True)
            (link,) = node.transport.links()
            require((link.peer, link.inbound) == (other.peer, inbound), f"the link is {link}")
            require(link.address.startswith("/"), f"{link.address} is no multiaddress")
            for address in node.transport.addresses:
                require(address.endswith(f"/p2p/{node.peer}"), f"{address} lacks the peer id")
        await one.transport.disconnect(two.peer)
        for node, other in ((one, two), (two, one)):
            await swarm.eventually_linked(node, other, linked=False)


async def a_connection_that_closes_takes_its_streams_along(swarm: Swarm) -> None:
    """Disconnected or left by its node: no end was said. A new one is made when it is needed."""
    async with swarm.nodes("one", "two") as (one, two):
        async with joined(one, two) as (near, far):
            await two.transport.disconnect(one.peer)
            for end in (near, far):
                await is_lost(end, "after the connection was closed")
        async with two.transport.serve(PROTOCOL, echo):
            await opens(one, two)
        stop = trio.Event()

        async def come_and_go(task_status: trio.TaskStatus[Node]) -> None:
            async with swarm.node("three") as three, three.transport.serve(PROTOCOL, echo):
                await three.transport.connect(one.transport.addresses)
                task_status.started(three)
                await stop.wait()

        async with trio.open_nursery() as nursery:
            three: Node = await nursery.start(come_and_go)
            async with one.transport.open(three.peer, PROTOCOL) as stream:
                await answers(stream)
                stop.set()
                await is_lost(stream, "after the peer's node was left")
        await swarm.eventually_linked(one, three, linked=False)


async def who_is_nowhere_is_unreachable(swarm: Swarm) -> None:
    """A peer that nobody knows, one that has gone, and an address that is none."""
    async with swarm.node("one") as one:
        async with swarm.node("two") as two:
            addresses = two.transport.addresses
        nobody = FakeIdentity("transport nobody").peer_id
        async with (
            refused(PeerUnreachable, "open to a peer that nobody knows"),
            one.transport.open(nobody, PROTOCOL),
        ):
            broken("a stream to nobody was opened")
        async with refused(PeerUnreachable, "ping of a peer that nobody knows"):
            await one.transport.ping(nobody)
        async with refused(PeerUnreachable, "connect to a peer that has gone"):
            await one.transport.connect(addresses)
        async with refused(KwaaiError, "connect to what is no address"):
            await one.transport.connect(["nonsense"])


async def every_operation_has_its_deadline(swarm: Swarm) -> None:
    """None of them waits longer than it may."""
    async with swarm.nodes("one", "two") as (one, two), two.transport.serve(PROTOCOL, echo):
        transport = one.transport

        async def open_() -> None:
            async with transport.open(two.peer, PROTOCOL, seconds=0.0):
                broken("a stream was opened in no time")

        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "open": open_,
            "ping": lambda: transport.ping(two.peer, seconds=0.0),
            "lookup": lambda: transport.lookup(two.peer, "name", seconds=0.0),
            "providers": lambda: transport.providers("key", seconds=0.0),
            "nearest": lambda: transport.nearest("key", 1, seconds=0.0),
        }
        for name, call in calls.items():
            async with refused(DeadlinePassed, f"{name} within no time at all"):
                await call()
        await opens(one, two)


async def a_ping_takes_a_time(swarm: Swarm) -> None:
    """Which is a number of seconds, and the link then has it; no door is asked."""
    async with swarm.nodes("one", "two") as (one, two):
        two.door.asked.clear()
        took = await one.transport.ping(two.peer)
        require(0 <= took <= swarm.patience, f"a ping took {took!r}")
        (link,) = one.transport.links()
        require(link.rtt is not None, "the link does not know its round-trip time")
        asked = [protocol for _, protocol in two.door.asked if "ping" in protocol]
        require(not asked, f"the door was asked about {asked}")


LINK_RULES = (
    the_peer_is_authenticated,
    links_say_who_is_connected,
    a_connection_that_closes_takes_its_streams_along,
    who_is_nowhere_is_unreachable,
    every_operation_has_its_deadline,
    a_ping_takes_a_time,
)
