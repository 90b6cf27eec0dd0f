"""How every transport must keep to its door."""

from __future__ import annotations

import trio

from kwaai_core.errors import PeerDenied, PeerUnreachable
from kwaai_core.peering import Stream
from kwaai_core.testing.conformance.rules import broken, refused, require
from kwaai_core.testing.conformance.swarm import (
    OTHER,
    PROTOCOL,
    Swarm,
    echo,
    is_shut_out,
    opens,
)


async def the_door_is_asked_for_every_stream(swarm: Swarm) -> None:
    """Before there is one nobody gets in; then whom it lets, protocol by protocol."""
    handled: list[str] = []

    async def handle(stream: Stream) -> None:
        handled.append(stream.protocol)
        await echo(stream)

    async with (
        swarm.node("one") as one,
        swarm.node("two", guarded=False) as two,
        two.transport.serve(PROTOCOL, handle),
        two.transport.serve(OTHER, handle),
    ):
        try:
            await one.transport.connect(two.transport.addresses)
            await is_shut_out(one, two)
        except PeerUnreachable:
            pass  # that it does not even let anybody connect is stricter, and right
        require(not handled, "a handler ran before there was a door")
        two.transport.guard(two.door)

        async def lets_in() -> bool:
            try:
                await one.transport.connect(two.transport.addresses)
            except PeerUnreachable:
                return False
            return True

        await swarm.eventually("that who has a door now can be connected to", lets_in)
        await opens(one, two)
        await opens(one, two)
        asked = two.door.asked.count((one.peer, PROTOCOL))
        require(asked >= 2, f"the door was asked {asked} times for 2 streams")
        two.door.shut.add((one.peer, PROTOCOL))
        handled.clear()
        await is_shut_out(one, two)
        await opens(one, two, OTHER)
        require(handled == [OTHER], f"handlers ran for {handled}")


async def who_is_dialled_is_greeted_first(swarm: Swarm) -> None:
    """Once for each connection, by streams too if need be; nobody else gets to use it before."""
    async with (
        swarm.node("one") as one,
        swarm.node("two") as two,
        two.transport.serve(PROTOCOL, echo),
    ):
        go_on, greeting, opened = trio.Event(), trio.Event(), trio.Event()

        async def greet(peer: str) -> None:
            await opens(one, two)
            greeting.set()
            await go_on.wait()

        async def open_too() -> None:
            await opens(one, two)
            opened.set()

        one.door.greeting = greet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.transport.connect, two.transport.addresses)
            await greeting.wait()
            nursery.start_soon(open_too)
            with trio.move_on_after(swarm.pace):
                await opened.wait()
                broken("a stream was opened on a connection that was still being greeted on")
            go_on.set()
        await opens(one, two)
        greeted = one.door.greeted, two.door.greeted
        require(greeted == ([two.peer], []), f"greeted were {greeted}")


async def who_is_denied_at_the_greeting_is_left(swarm: Swarm) -> None:
    """The error comes out of whatever wanted the connection, which is closed."""
    async with swarm.node("one") as one, swarm.node("two") as two:

        async def deny(peer: str) -> None:
            raise PeerDenied(f"{peer} is denied on purpose")

        one.door.greeting = deny
        async with refused(PeerDenied, "connect to who is denied"):
            await one.transport.connect(two.transport.addresses)
        for node, other in ((one, two), (two, one)):
            await swarm.eventually_linked(node, other, linked=False)
        async with (
            refused(PeerDenied, "open to who is denied"),
            one.transport.open(two.peer, PROTOCOL),
        ):
            broken("a stream to who is denied was opened")


DOOR_RULES = (
    the_door_is_asked_for_every_stream,
    who_is_dialled_is_greeted_first,
    who_is_denied_at_the_greeting_is_left,
)
