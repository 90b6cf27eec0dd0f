"""What is said on the topics of every transport, and who hears it."""

from __future__ import annotations

import trio

from kwaai_core.errors import FrameError
from kwaai_core.peering import HELLO, Broadcast
from kwaai_core.testing.conformance.rules import broken, refused, require
from kwaai_core.testing.conformance.swarm import Node, Swarm

LONGEST_MESSAGE = 32 << 10


async def messages_reach_who_subscribes(swarm: Swarm) -> None:
    """With their author, also where another passed them on; on their own topic and no other."""
    async with swarm.node("one") as one, swarm.nodes("two", "three") as (two, three):
        await one.transport.connect(two.transport.addresses)
        async with (
            two.transport.subscribe("topic") as at_two,
            three.transport.subscribe("topic") as at_three,
            three.transport.subscribe("another") as elsewhere,
        ):
            numbers = iter(range(1_000_000))

            async def speak() -> None:
                while True:
                    await one.transport.broadcast("topic", b"message %d" % next(numbers))
                    await trio.sleep(swarm.pace)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak)
                for channel in (at_two, at_three):
                    said = [await channel.receive() for _ in range(3)]
                    _check_said(said, one)
                nursery.cancel_scope.cancel()
            with trio.move_on_after(swarm.pace):
                broken(f"another topic gave {await elsewhere.receive()}")
            async with refused(FrameError, "broadcast of more than 32 KiB"):
                await one.transport.broadcast("topic", bytes(LONGEST_MESSAGE + 1))
            await one.transport.broadcast("topic", bytes(LONGEST_MESSAGE))
            while len((await at_two.receive()).body) < LONGEST_MESSAGE:
                pass


def _check_said(said: list[Broadcast], author: Node) -> None:
    bodies = [message.body for message in said]
    require(all(message.peer == author.peer for message in said), f"another author: {said}")
    require(all(body.startswith(b"message ") for body in bodies), f"what came was {bodies}")
    require(len(set(bodies)) == len(bodies), f"a message came twice: {bodies}")


async def who_is_shut_out_is_not_heard(swarm: Swarm) -> None:
    """The door is asked about the transport's own protocols too, so about those of topics."""
    async with (
        swarm.node("one") as one,
        swarm.node("two") as two,
        one.transport.subscribe("topic") as heard,
    ):

        async def speak() -> None:
            while True:
                await two.transport.broadcast("topic", b"message")
                await trio.sleep(swarm.pace / 5)

        one.door.strangers.add(two.peer)
        await two.transport.connect(one.transport.addresses)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            with trio.move_on_after(swarm.pace * 2):
                broken(f"who is shut out was heard: {await heard.receive()}")
            one.door.strangers.clear()
            await two.transport.disconnect(one.peer)
            await swarm.eventually_linked(two, one, linked=False)
            await two.transport.connect(one.transport.addresses)
            await heard.receive()
            nursery.cancel_scope.cancel()


async def who_is_shut_out_is_not_heard_through_others(swarm: Swarm) -> None:
    """The door is asked about the author as well, whoever brings the message."""
    async with (
        swarm.node("one") as one,
        swarm.node("two") as two,
        swarm.node("three") as three,
        one.transport.subscribe("topic") as heard,
        two.transport.subscribe("topic") as between,
    ):

        async def speak() -> None:
            while True:
                await three.transport.broadcast("topic", b"message")
                await trio.sleep(swarm.pace / 5)

        one.door.shut.add((three.peer, HELLO))
        await two.transport.connect(one.transport.addresses)
        await three.transport.connect(two.transport.addresses)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            await between.receive()
            with trio.move_on_after(swarm.pace * 2):
                broken(f"who is shut out was heard through another: {await heard.receive()}")
            one.door.shut.clear()
            await heard.receive()
            nursery.cancel_scope.cancel()


TOPIC_RULES = (
    messages_reach_who_subscribes,
    who_is_shut_out_is_not_heard,
    who_is_shut_out_is_not_heard_through_others,
)
