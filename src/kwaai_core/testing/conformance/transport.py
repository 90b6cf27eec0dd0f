"""What every transport must do."""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from kwaai_core.errors import DeadlinePassed, KwaaiError, PeerDenied, PeerUnreachable
from kwaai_core.peering import DataChannel, Stream
from kwaai_core.testing.conformance.rules import SECONDS, broken, hold, refused, require
from kwaai_core.testing.conformance.swarm import (
    OTHER,
    PROTOCOL,
    Lie,
    Node,
    OpenTransport,
    Swarm,
    answers,
    echo,
    is_lost,
    is_shut_out,
    joined,
    opens,
)
from kwaai_core.testing.conformance.transport_directory import DIRECTORY_RULES
from kwaai_core.testing.conformance.transport_streams import STREAM_RULES
from kwaai_core.testing.identities import FakeIdentity

Rule = Callable[[Swarm], Awaitable[None]]


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


async def a_data_channel_is_of_its_two_ends(swarm: Swarm) -> None:
    """TLS 1.3 with the certificates that both got, fresh each time; or none, at both ends."""
    async with swarm.nodes("one", "two") as (one, two), joined(one, two) as (near, far):
        seen: list[bytes] = []
        for _ in range(2):
            async with _channels((one, near), (two, far)) as (client, server):
                if client is None or server is None:
                    require(client is server, "only one end was given a data channel")
                    break
                servers = client.server, server.server
                require(servers == (False, True), f"which end is the server: {servers}")
                shown = [client.certificate, server.certificate]
                trusted = [server.trusted, client.trusted]
                require(shown == trusted, "an end trusts another certificate than is shown to it")
                seen += shown
                await _talk(client, server)
        require(len(set(seen)) == len(seen), "a certificate was used a second time")
        await near.send(b"after")
        require(await far.receive() == b"after", "the stream is of no use any more")


@asynccontextmanager
async def _channels(
    *ends: tuple[Node, Stream],
) -> AsyncIterator[list[DataChannel | None]]:
    """What both ends of a stream get that ask for a data channel at once."""
    got: list[DataChannel | None] = [None, None]

    async def ask(number: int, node: Node, stream: Stream) -> None:
        got[number] = await node.transport.data_channel(stream)

    try:
        async with trio.open_nursery() as nursery:
            for number, end in enumerate(ends):
                nursery.start_soon(ask, number, *end)
        yield got
    finally:
        for channel in got:
            if channel is not None:
                channel.socket.close()


async def _talk(client: DataChannel, server: DataChannel) -> None:
    """Let both do the handshake, and see that bytes cross."""
    streams = [_secured(client), _secured(server)]
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.do_handshake)
    for sender, receiver in (streams, reversed(streams)):
        await sender.send_all(b"through the channel")
        came = await receiver.receive_some(100)
        require(came == b"through the channel", f"through the data channel came {came!r}")


def _secured(channel: DataChannel) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if channel.server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=channel.trusted.decode("ascii"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(channel.certificate + channel.key)
        file.flush()
        context.load_cert_chain(file.name)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(channel.socket))
    return trio.SSLStream(stream, context, server_side=channel.server)


async def leaving_leaves_nothing_behind(swarm: Swarm) -> None:
    """Neither tasks nor files, however many streams there were; the second time as the first."""

    async def live() -> None:
        async with swarm.nodes("one", "two") as (one, two), two.transport.serve(PROTOCOL, echo):
            for _ in range(300):
                await opens(one, two)
            await one.transport.publish("name", b"body", seconds=swarm.patience)

    await live()
    before = _held()
    await live()
    for what, count in _held().items():
        require(count <= before[what], f"{what} grew from {before[what]} to {count}")


def _held() -> dict[str, int]:
    tasks = trio.lowlevel.current_statistics().tasks_living
    return {"tasks": tasks, "open files": len(os.listdir("/proc/self/fd"))}


TRANSPORT_RULES: tuple[Rule, ...] = (
    the_peer_is_authenticated,
    links_say_who_is_connected,
    a_connection_that_closes_takes_its_streams_along,
    who_is_nowhere_is_unreachable,
    every_operation_has_its_deadline,
    a_ping_takes_a_time,
    the_door_is_asked_for_every_stream,
    who_is_dialled_is_greeted_first,
    who_is_denied_at_the_greeting_is_left,
    *STREAM_RULES,
    *DIRECTORY_RULES,
    a_data_channel_is_of_its_two_ends,
    leaving_leaves_nothing_behind,
)


async def check_transport(
    open_transport: OpenTransport,
    *,
    now: Callable[[], float] = time.time,
    lie: Lie | None = None,
    pace: float = 0.2,
    patience: float = 5.0,
    lifetime: float = 2.0,
    seconds: float = SECONDS,
    rules: Sequence[Rule] = TRANSPORT_RULES,
) -> None:
    """Check every rule of :class:`kwaai_core.Transport` and :class:`kwaai_core.Stream`.

    ``open_transport`` is the ``open`` of an offer. It is opened on up to four hosts at once, with a
    fake identity each and nothing else, in folders that are removed at the end; the nodes have to
    be able to dial one another. ``now`` is their clock. ``lie``, where there is one, makes a
    transport hold a forged record; without it, whether liars are believed is not checked.

    All in seconds: ``pace`` is how long a rule waits for what must not happen, ``patience`` how
    long what must happen may take, ``lifetime`` that of records which are to expire, ``seconds``
    how long one rule may take. ``rules`` are all, or those that a test is about.

    Errors: :class:`Nonconformance`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for rule in rules:
            place = Path(folder) / rule.__name__
            swarm = Swarm(open_transport, place, now, pace, patience, lifetime, lie)
            await hold(partial(rule, swarm), rule.__name__, seconds)
