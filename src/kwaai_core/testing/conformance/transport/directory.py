"""What every transport must do with records and providers."""

from __future__ import annotations

import trio

from kwaai_core.errors import FrameError
from kwaai_core.peering import Record
from kwaai_core.testing.conformance.rules import refused, require
from kwaai_core.testing.conformance.swarm import Node, Swarm

MINUTE = 60.0
LONGEST_RECORD = 16 << 10


async def _found(swarm: Swarm, by: Node, of: Node, name: str, body: bytes) -> Record:
    """The record that is found with this body in the end."""
    found: list[Record] = []

    async def holds() -> bool:
        record = await by.transport.lookup(of.peer, name)
        if record is not None and record.body == body:
            found.append(record)
        return bool(found)

    await swarm.eventually(f"that lookup of {name} finds the body {str(body)[:20]}", holds)
    return found[0]


async def the_newest_record_is_read(swarm: Swarm) -> None:
    """Fresh from the network, also by who has read an older one; sequence numbers rise."""
    async with swarm.nodes("one", "two", "three") as nodes:
        last = 0
        for body in (b"", b"first", b"x" * LONGEST_RECORD):
            began = swarm.now()
            await nodes[0].transport.publish("name", body, seconds=MINUTE)
            sequences = set()
            for node in nodes:
                record = await _found(swarm, node, nodes[0], "name", body)
                require((record.subject, record.name) == (nodes[0].peer, "name"), f"{record}")
                late = swarm.now() + MINUTE + swarm.patience
                require(began < record.expires <= late, f"it expires at {record.expires:.0f}")
                sequences.add(record.sequence)
            require(min(sequences) > last, f"sequence numbers {sequences} came after {last}")
            last = max(sequences)
        async with refused(FrameError, "publish of more than 16 KiB"):
            await nodes[0].transport.publish("name", bytes(LONGEST_RECORD + 1), seconds=MINUTE)


async def a_record_is_of_its_subject(swarm: Swarm) -> None:
    """One name is another record for each peer, and none for who has not published it."""
    async with swarm.nodes("one", "two", "three") as (one, two, three):
        await one.transport.publish("name", b"of one", seconds=MINUTE)
        await two.transport.publish("name", b"of two", seconds=MINUTE)
        await _found(swarm, three, one, "name", b"of one")
        await _found(swarm, three, two, "name", b"of two")
        await _found(swarm, one, two, "name", b"of two")
        for peer, name in ((three.peer, "name"), (one.peer, "another name")):
            found = await two.transport.lookup(peer, name)
            require(found is None, f"lookup of a record that was never published gave {found}")


async def nobody_believes_a_liar(swarm: Swarm) -> None:
    """A record that another has signed is no record of its subject, whatever its number."""
    if swarm.lie is None:
        return
    async with swarm.nodes("one", "two", "liar") as (one, two, liar):
        await swarm.lie(liar.transport, one.peer, "name")
        require(await two.transport.lookup(one.peer, "name") is None, "a liar was believed")
        await one.transport.publish("name", b"true", seconds=MINUTE)
        await swarm.lie(liar.transport, one.peer, "name")
        await _found(swarm, two, one, "name", b"true")


async def a_record_lives_as_long_as_its_node(swarm: Swarm) -> None:
    """Much longer than it says, while the node is there; then until it expires, and no longer."""
    async with swarm.nodes("one", "two") as (one, two):
        async with swarm.node("three") as three:
            for other in (one, two):
                await three.transport.connect(other.transport.addresses)
            await three.transport.publish("name", b"body", seconds=swarm.lifetime)
            await three.transport.provide("key", seconds=swarm.lifetime)
            await trio.sleep(1.6 * swarm.lifetime)
            for node in (one, two):
                await _found(swarm, node, three, "name", b"body")
                there = await node.transport.providers("key")
                require(list(there) == [three.peer], f"the providers are {there}")
        require(await two.transport.lookup(three.peer, "name") is not None, "it went with its node")

        async def holds() -> bool:
            record = await two.transport.lookup(three.peer, "name")
            return record is None and not await two.transport.providers("key")

        what = "that record and provider are gone with their time"
        await swarm.eventually(what, holds, more=swarm.lifetime)


async def what_is_published_alone_is_found_later(swarm: Swarm) -> None:
    """A node announces when it starts, before it is connected to anybody."""
    async with swarm.node("one") as one, swarm.nodes("two", "three") as (two, three):
        await one.transport.publish("name", b"early", seconds=MINUTE)
        await one.transport.provide("key", seconds=MINUTE)
        await one.transport.connect(two.transport.addresses)
        await _found(swarm, three, one, "name", b"early")

        async def holds() -> bool:
            return list(await three.transport.providers("key")) == [one.peer]

        await swarm.eventually("that an early provider is found", holds)


async def providers_are_the_others_who_have_it(swarm: Swarm) -> None:
    """Each once, without the one who asks; and nobody for what nobody has."""
    async with swarm.nodes("one", "two", "three") as nodes:
        for node in nodes[:2]:
            await node.transport.provide("key", seconds=MINUTE)
        for node in nodes:
            expected = sorted(other.peer for other in nodes[:2] if other is not node)

            async def holds(node: Node = node, expected: list[str] = expected) -> bool:
                return sorted(await node.transport.providers("key")) == expected

            await swarm.eventually(f"that {len(expected)} other nodes provide the key", holds)
        others = await nodes[2].transport.providers("another key")
        require(not others, f"{others} provide what nobody has")


async def nearest_is_one_order(swarm: Swarm) -> None:
    """Whoever asks: the same peers in the same order, itself left out; and as many as asked for."""
    async with swarm.nodes("one", "two", "three", "four") as nodes:
        for key in ("a", "b", "c"):
            orders = {node.peer: await _order(swarm, node, key, len(nodes) - 1) for node in nodes}
            for one in nodes:
                for other in nodes:
                    pair = one.peer, other.peer
                    first, second = ([p for p in orders[by] if p not in pair] for by in pair)
                    require(first == second, f"two nodes see two orders: {first} and {second}")


async def _order(swarm: Swarm, node: Node, key: str, others: int) -> list[str]:
    """All the others by their distance to a key, as one node sees it."""
    order: list[str] = []

    async def holds() -> bool:
        order[:] = await node.transport.nearest(key, 10)
        return len(order) == others

    await swarm.eventually(f"that {others} other peers are near a key", holds)
    require(len({*order, node.peer}) == others + 1, f"one is there twice, or asks itself: {order}")
    two = list(await node.transport.nearest(key, 2))
    require(two == order[:2], f"the nearest two of {order} are said to be {two}")
    return order


DIRECTORY_RULES = (
    the_newest_record_is_read,
    a_record_is_of_its_subject,
    nobody_believes_a_liar,
    a_record_lives_as_long_as_its_node,
    what_is_published_alone_is_found_later,
    providers_are_the_others_who_have_it,
    nearest_is_one_order,
)
