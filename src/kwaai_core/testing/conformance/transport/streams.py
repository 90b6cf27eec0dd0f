"""What every transport must do with its streams."""

from __future__ import annotations

import random

import trio

from kwaai_core.errors import (
    DeadlinePassed,
    FrameError,
    KwaaiError,
    PeerLost,
    ProtocolRefused,
    StreamEnded,
)
from kwaai_core.peering import Stream
from kwaai_core.testing.conformance.rules import broken, refused, require
from kwaai_core.testing.conformance.swarm import (
    OTHER,
    PROTOCOL,
    Swarm,
    answers,
    echo,
    is_lost,
    joined,
    opens,
)

LIMIT = 5000
MEBIBYTE = 1 << 20
MOST = 64
"""How many mebibytes a sender may send that nobody reads."""


async def frames_arrive_as_they_were_sent(swarm: Swarm) -> None:
    """Of 0 bytes to the limit, of every kind of buffer, in order, in both directions at once."""
    sent = [b"", b"x", bytes(range(256)) * 16, b"y" * LIMIT, b""]
    kinds = (bytes, bytearray, memoryview)

    async def pour(stream: Stream) -> None:
        for kind in kinds:
            for frame in sent:
                await stream.send(kind(frame))

    async with (
        swarm.nodes("one", "two") as (one, two),
        joined(one, two, limit=LIMIT, other_limit=LIMIT) as ends,
        trio.open_nursery() as nursery,
    ):
        for stream in ends:
            nursery.start_soon(pour, stream)
        for stream in ends:
            for frame in sent * len(kinds):
                came = await stream.receive()
                require(type(came) is bytes, f"receive gave a {type(came).__name__}")
                require(came == frame, f"{frame[:20]!r} was sent, {came[:20]!r} came")


async def a_frame_over_the_limit_is_refused(swarm: Swarm) -> None:
    """By who would send it, and by who would get it; the stream is then of no use at either end."""
    async with swarm.nodes("one", "two") as (one, two):
        async with joined(one, two, limit=LIMIT) as (near, far):
            async with refused(FrameError, "send over the limit"):
                await near.send(bytes(LIMIT + 1))
            await is_lost(far, "from who wanted to send too much")
        async with joined(one, two, other_limit=LIMIT) as (near, far):
            await near.send(bytes(LIMIT + 1))
            async with refused(FrameError, "receive over the limit"):
                await far.receive()
            await is_lost(near, "from who was sent too much")
            async with refused(KwaaiError, "send on a stream that got too much"):
                await far.send(b"more")


async def an_end_ends_one_direction(swarm: Swarm) -> None:
    """What was sent before it arrives, the other direction goes on, and closing changes nothing."""
    async with swarm.nodes("one", "two") as (one, two):
        async with joined(one, two) as (near, far):
            await near.send(b"last")
            await near.end()
            require(await far.receive() == b"last", "a frame before the end came otherwise")
            for _ in range(2):
                async with refused(StreamEnded, "receive after the end"):
                    await far.receive()
            await far.send(b"still")
            require(await near.receive() == b"still", "the other direction gave another frame")
            await far.end()
            async with refused(StreamEnded, "receive after both ends"):
                await near.receive()
        async with joined(one, two) as (near, far):
            await near.send(b"last")
            await near.end()
            await near.aclose()
            require(await far.receive() == b"last", "a frame before end and close came otherwise")
            async with refused(StreamEnded, "receive from who ended and closed"):
                await far.receive()


async def a_stream_given_up_is_lost(swarm: Swarm) -> None:
    """Closed by either end, its context left, its handler gone: without an end it broke off."""
    async with swarm.nodes("one", "two") as (one, two):
        for closing in (0, 1):
            async with joined(one, two) as ends:
                await ends[closing].aclose()
                await is_lost(ends[1 - closing], "from who has closed")
                async with refused(PeerLost, "send to who has closed"):
                    while True:
                        await ends[1 - closing].send(b"x")
        seen = trio.Event()

        async def handle(stream: Stream) -> None:
            if await stream.receive() == b"return":
                return
            await is_lost(stream, "from who has left its context")
            seen.set()

        async with two.transport.serve(PROTOCOL, handle):
            async with one.transport.open(two.peer, PROTOCOL) as stream:
                await stream.send(b"return")
                await is_lost(stream, "after the handler returned")
            async with one.transport.open(two.peer, PROTOCOL) as stream:
                await stream.send(b"stay")
            await seen.wait()


async def a_receive_has_its_deadline(swarm: Swarm) -> None:
    """It passes after that time and not before, and a frame that comes later is there."""
    async with swarm.nodes("one", "two") as (one, two), joined(one, two) as (near, far):
        for seconds in (0.0, swarm.pace):
            began = trio.current_time()
            async with refused(DeadlinePassed, "receive where nothing is sent"):
                await near.receive(seconds=seconds)
            took = trio.current_time() - began
            require(
                seconds * 0.99 <= took <= seconds + swarm.patience, f"{seconds:g} s took {took:g} s"
            )
        await far.send(b"late")
        require(await near.receive() == b"late", "what came late is another frame")
        await answers_both_ways(near, far)


async def answers_both_ways(near: Stream, far: Stream) -> None:
    for sender, receiver in ((near, far), (far, near)):
        await sender.send(b"there")
        require(await receiver.receive() == b"there", "another frame came than was sent")


async def who_never_reads_stops_the_sender(swarm: Swarm) -> None:
    """By its deadline, with bounded memory; the stream is then of no use, and others are."""
    async with (
        swarm.nodes("one", "two") as (one, two),
        two.transport.serve(OTHER, echo),
        joined(one, two) as (near, _),
    ):
        async with refused(DeadlinePassed, f"sending {MOST} MiB to who does not read"):
            for _ in range(MOST):
                await near.send(bytes(MEBIBYTE), seconds=swarm.pace)
        async with refused(KwaaiError, "send after a send that did not finish"):
            await near.send(b"more")
        await opens(one, two, OTHER)


async def a_cancelled_receive_loses_nothing(swarm: Swarm) -> None:
    """Cancelled or too late at any moment, as often as it may be."""
    count, short, chance = 200, swarm.pace / 200, random.Random(0)

    async def pour(stream: Stream) -> None:
        for number in range(count):
            await stream.send(number.to_bytes(2, "big") * 1000)
            await trio.sleep(short * (number % 5 == 0))
        await stream.end()

    async def scoop(stream: Stream) -> None:
        while True:
            for longest in (0.0, short):
                with trio.move_on_after(chance.random() * longest):
                    got.append(await stream.receive())
            try:
                got.append(await stream.receive(seconds=chance.random() * short))
            except DeadlinePassed:
                continue

    got = list[bytes]()
    async with (
        swarm.nodes("one", "two") as (one, two),
        joined(one, two) as (near, far),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pour, near)
        async with refused(StreamEnded, "receive after all"):
            await scoop(far)
    came = [int.from_bytes(frame[:2], "big") for frame in got]
    require(came == list(range(count)), f"of {count} frames these came: {came}")


async def a_cancelled_send_harms_no_other_stream(swarm: Swarm) -> None:
    """Wherever it was cancelled."""
    async with (
        swarm.nodes("one", "two") as (one, two),
        two.transport.serve(OTHER, echo),
        one.transport.open(two.peer, OTHER) as other,
    ):
        for part in range(5):
            async with joined(one, two) as (near, _):
                with trio.move_on_after(swarm.pace * part / 20) as scope:
                    for _ in range(MOST):
                        await near.send(bytes(MEBIBYTE))
                require(scope.cancelled_caught, f"{MOST} MiB were taken that nobody reads")
                await answers(other)
                async with refused(KwaaiError, "send after a send that was cancelled"):
                    await near.send(b"more")
        await answers(other)


async def a_handler_s_error_ends_its_own_stream(swarm: Swarm) -> None:
    """And no other: neither one that is open nor one that is opened later."""

    async def handle(stream: Stream) -> None:
        if await stream.receive() == b"fail":
            raise ValueError("on purpose")
        await echo(stream)

    async with swarm.nodes("one", "two") as (one, two), two.transport.serve(PROTOCOL, handle):
        async with (
            one.transport.open(two.peer, PROTOCOL) as good,
            one.transport.open(two.peer, PROTOCOL) as bad,
        ):
            await good.send(b"go on")
            await bad.send(b"fail")
            await is_lost(bad, "from a handler that failed")
            await answers(good)
        async with one.transport.open(two.peer, PROTOCOL) as later:
            await later.send(b"go on")
            await answers(later)


async def leaving_serve_ends_its_handlers(swarm: Swarm) -> None:
    """At once, with their streams; from then on the protocol is refused, as one never served."""
    async with swarm.nodes("one", "two") as (one, two):
        ended = trio.Event()

        async def handle(stream: Stream) -> None:
            try:
                await echo(stream)
            finally:
                ended.set()

        stop, stopped = trio.Event(), trio.Event()

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            async with two.transport.serve(PROTOCOL, handle):
                task_status.started()
                await stop.wait()
            require(ended.is_set(), "serve was left while a handler still ran")
            stopped.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            async with one.transport.open(two.peer, PROTOCOL) as stream:
                await answers(stream)
                stop.set()
                await is_lost(stream, "after serve was left")
            await stopped.wait()
        for protocol in (PROTOCOL, OTHER):
            async with (
                refused(ProtocolRefused, f"open {protocol}, which is not served"),
                one.transport.open(two.peer, protocol),
            ):
                broken("a stream of a protocol that is not served was opened")


async def many_streams_are_apart(swarm: Swarm) -> None:
    """A hundred at once between two nodes, each with its own frames."""
    async with swarm.nodes("one", "two") as (one, two), two.transport.serve(PROTOCOL, echo):
        ready, everybody = 0, trio.Event()

        async def talk(number: int) -> None:
            nonlocal ready
            async with one.transport.open(two.peer, PROTOCOL) as stream:
                await answers(stream, bytes([number]) * 500)
                ready += 1
                if ready == 100:
                    everybody.set()
                await everybody.wait()
                await answers(stream, bytes([255, number]) * 500)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(talk, number)


STREAM_RULES = (
    frames_arrive_as_they_were_sent,
    a_frame_over_the_limit_is_refused,
    an_end_ends_one_direction,
    a_stream_given_up_is_lost,
    a_receive_has_its_deadline,
    who_never_reads_stops_the_sender,
    a_cancelled_receive_loses_nothing,
    a_cancelled_send_harms_no_other_stream,
    a_handler_s_error_ends_its_own_stream,
    leaving_serve_ends_its_handlers,
    many_streams_are_apart,
)
