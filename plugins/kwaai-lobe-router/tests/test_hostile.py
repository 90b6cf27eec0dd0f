"""Peers that say what no honest one says: on the status protocol, and on links."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import AnyDoor, Town, chat, town, whole

from kwaai_core import Intent, KwaaiError, NoPeerAvailable, Span, Stream
from kwaai_core.span.frames import PROTOCOL
from kwaai_core.testing import FakeIdentity, Line
from kwaai_core.testing.spans import TOY
from kwaai_lobe_router.agreeing import (
    ACCEPTED,
    MAX_FRAME,
    STATUS,
    STEP_SECONDS,
    Refused,
    Wanted,
    agreed,
)
from kwaai_lobe_router.facts import Batch, provider_key, write_fast, write_slow
from kwaai_lobe_router.serving import _tell

LINE = Line(latency=0.001)
GARBAGE = [b"{}", b"[]", b"\xff" * 100, b"[" * 4000, b'{"model": 5, "exact": true}', b"x" * 100_000]


@pytest.mark.parametrize("frame", GARBAGE, ids=range(len(GARBAGE)))
async def test_hosts_take_no_garbage_and_go_on(
    frame: bytes, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        host = await here.add("0-11")
        gateway = await here.add()
        async with here.network.node(FakeIdentity("hostile", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(host.peer)])
            for protocol in (STATUS, PROTOCOL):
                async with node.open(host.peer, protocol, max_frame=MAX_FRAME) as stream:
                    await stream.send(frame)
                    with pytest.raises(KwaaiError):
                        await stream.receive(seconds=8)
        found = await chat(gateway)
        assert found.text == await whole()


async def test_no_peer_has_more_links_than_it_may(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        host = await here.add("0-11", links=2)
        async with here.network.node(FakeIdentity("greedy", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(host.peer)])
            async with (
                node.open(host.peer, PROTOCOL, max_frame=MAX_FRAME) as one,
                node.open(host.peer, PROTOCOL, max_frame=MAX_FRAME) as two,
                node.open(host.peer, PROTOCOL, max_frame=MAX_FRAME) as three,
            ):
                for stream in (one, two):
                    await agreed(stream, Wanted(TOY.digest, exact=True))
                with pytest.raises(Refused, match="2 links"):
                    await agreed(three, Wanted(TOY.digest, exact=True))


async def test_a_link_for_what_is_not_held_is_refused(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        host = await here.add("0-11", exact=False)
        async with here.network.node(FakeIdentity("asks", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(host.peer)])
            for wanted, words in (
                (Wanted("00" * 32, exact=False), "no blocks of this model"),
                (Wanted(TOY.digest, exact=True), "not exact"),
            ):
                async with node.open(host.peer, PROTOCOL, max_frame=MAX_FRAME) as stream:
                    with pytest.raises(Refused, match=words):
                        await agreed(stream, wanted)


async def _silent(here: Town, stream: Stream) -> None:
    await trio.sleep_forever()


async def _nonsense(here: Town, stream: Stream) -> None:
    await stream.receive()
    await stream.send(b'{"accepted": "perhaps", "refused": 7, "retry_after": -1}')
    await stream.end()


async def _other_model(here: Town, stream: Stream) -> None:
    await stream.receive()
    router = here.members[0].router
    assert router.swarm is not None
    told = router.swarm.serving.told(TOY.digest)
    assert told is not None
    await stream.send(ACCEPTED)
    await stream.send(write_slow(told.slow).replace(b"7070", b"0000"))
    await stream.send(write_fast(told.fast))
    await stream.receive(seconds=100)


@pytest.mark.parametrize("behave", [_silent, _nonsense, _other_model])
async def test_a_host_that_lies_when_it_is_linked_costs_only_itself(
    behave: Callable[[Town, Stream], Awaitable[None]],
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town(tmp_path, LINE) as here:
        honest = await here.add("0-11")
        honest.executor.step_seconds = 0.05  # so that the liar's word is preferred
        async with here.network.node(FakeIdentity("liar", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(honest.peer)])
            gateway = await here.add()
            await node.connect([here.network.address(gateway.peer)])

            async def status(stream: Stream) -> None:
                await stream.receive()
                assert honest.router.swarm is not None
                told = honest.router.swarm.serving.told(TOY.digest)
                assert told is not None
                fast = write_fast(told.fast).replace(b"50000000", b"1000")
                await stream.send(write_slow(told.slow))
                await stream.send(fast)
                await stream.end()

            async def link(stream: Stream) -> None:
                await behave(here, stream)

            async with (
                node.serve(STATUS, status, max_frame=MAX_FRAME),
                node.serve(PROTOCOL, link, max_frame=MAX_FRAME),
            ):
                await node.provide(provider_key(TOY.digest), seconds=600)
                found = await chat(gateway)
        assert found.route != [honest.peer]
        assert found.after == [honest.peer]
        assert found.gap < 2.0
        assert found.text == await whole()


@pytest.mark.parametrize("body", [b"{}", b"[1]", b"\x00" * 20_000])
async def test_announcements_that_are_none_do_not_count(
    body: bytes, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        gateway = await here.add()
        async with here.network.node(FakeIdentity("liar", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(gateway.peer)])

            async def status(stream: Stream) -> None:
                await stream.send(body)

            async with node.serve(STATUS, status, max_frame=MAX_FRAME):
                await node.provide(provider_key(TOY.digest), seconds=600)
                with pytest.raises(NoPeerAvailable, match="nobody in reach"):
                    await gateway.router.route(Intent(TOY.id))


@pytest.mark.parametrize("units", [(Span(0, 1000),), (Span(0, 12), Span(12, 13))])
async def test_who_holds_blocks_that_the_model_has_not_costs_only_itself(
    units: tuple[Span, ...], tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        honest = await here.add("0-11")
        gateway = await here.add()
        async with here.network.node(FakeIdentity("liar", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(gateway.peer)])

            async def status(stream: Stream) -> None:
                await stream.receive()
                assert honest.router.swarm is not None
                told = honest.router.swarm.serving.told(TOY.digest)
                assert told is not None
                times = (1,) * len(units)
                fast = replace(told.fast, batches=(Batch(1, times),), row=times)
                await stream.send(write_slow(replace(told.slow, blocks=1000, units=units)))
                await stream.send(write_fast(fast))
                await stream.end()

            async with node.serve(STATUS, status, max_frame=MAX_FRAME):
                await node.provide(provider_key(TOY.digest), seconds=600)
                found = await chat(gateway)
                shown = await gateway.router.show(TOY.id, planned=True)
        assert (found.route, found.text) == ([honest.peer], await whole())
        assert [peer["peer"] for peer in shown["peers"]] == [honest.peer]


async def test_no_peer_has_more_links_though_it_asks_for_all_at_once_and_reads_slowly(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        host = await here.add("0-11", links=2)
        async with here.network.node(FakeIdentity("greedy", now=here.network.now)) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(host.peer)])
            async with AsyncExitStack() as stack:
                opening = [node.open(host.peer, PROTOCOL, max_frame=MAX_FRAME) for _ in range(6)]
                streams = [await stack.enter_async_context(one) for one in opening]
                for one in streams:
                    await one.send(Wanted(TOY.digest, exact=True).encode())
                await trio.sleep(0.1)
                said = [await one.receive(seconds=1) for one in streams]
            assert said.count(ACCEPTED) == 2
            await trio.sleep(12)  # for those who were given up to be noticed
            async with node.open(host.peer, PROTOCOL, max_frame=MAX_FRAME) as stream:
                await agreed(stream, Wanted(TOY.digest, exact=True))


async def test_hosts_that_are_never_linked_are_not_tried_for_ever(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here, AsyncExitStack() as stack:
        dead, gateway = await here.add("0-11"), await here.add()
        assert dead.router.swarm is not None
        told = dead.router.swarm.serving.told(TOY.digest)
        assert told is not None
        here.kill(dead)

        async def status(stream: Stream) -> None:
            await stream.receive()
            await _tell(stream, told)
            await stream.end()

        async def link(stream: Stream) -> None:
            """Go on for as long as each step of an agreement may take."""
            await trio.sleep(STEP_SECONDS - 0.5)
            await stream.send(ACCEPTED)
            await trio.sleep_forever()

        for number in range(4):
            identity = FakeIdentity(f"liar {number}", now=here.network.now)
            node = await stack.enter_async_context(here.network.node(identity))
            node.guard(AnyDoor())
            await node.connect([here.network.address(gateway.peer)])
            await stack.enter_async_context(node.serve(STATUS, status, max_frame=MAX_FRAME))
            await stack.enter_async_context(node.serve(PROTOCOL, link, max_frame=MAX_FRAME))
        began = trio.current_time()
        with pytest.raises(NoPeerAvailable, match="no link to .* was opened"):
            with trio.fail_after(100):
                await chat(gateway)
        assert trio.current_time() - began < 20
