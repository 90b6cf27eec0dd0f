"""Hosts that are full: nobody waits for ever, and nothing crashes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import Chat, Member, Town, chat, request, town, whole

from kwaai_core import Intent, NoPeerAvailable
from kwaai_core.span.hop import Blame, Trouble
from kwaai_core.testing import Line
from kwaai_core.testing.spans import TOY
from kwaai_lobe_router.answering import ChainExecutor
from kwaai_lobe_router.leaving import NoRoom

NEAR, FAR = Line(latency=0.001, direct=False), Line(latency=0.1, direct=False)


def with_streams(member: Member, streams: int) -> Member:
    member.executor.streams = member.executor.per_peer = streams
    for host in member.executor.hosts:
        host.forget()
    return member


async def crossed(here: Town) -> list[Member]:
    """Two gateways, of which each is near to one half of the model and far from the other."""
    halves = [with_streams(await here.add(blocks), 1) for blocks in ("0-5", "6-11")]
    gateways = [await here.add(), await here.add()]
    for near, far, gateway in zip(halves, reversed(halves), gateways, strict=True):
        here.network.lay(NEAR, gateway.peer, near.peer)
        here.network.lay(FAR, gateway.peer, far.peer)
    return gateways


async def test_two_answers_that_each_hold_what_the_other_waits_for_both_come(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, NEAR) as here:
        gateways = await crossed(here)
        found: list[Chat] = []
        for gateway in gateways:
            route = await gateway.router.route(Intent(TOY.id))
            assert isinstance(route.executor, ChainExecutor)
            _, routing = await route.executor._begin(request())
            await routing(20, [], [])  # links are there before both begin
            routing.close()

        async def ask(gateway: Member) -> None:
            found.append(await chat(gateway))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for gateway in gateways:
                nursery.start_soon(ask, gateway)
        assert [one.text for one in found] == [await whole()] * 2
        assert trio.current_time() - began < 30


async def test_who_finds_a_host_full_at_first_keeps_nothing_elsewhere(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, NEAR) as here:
        _, second = await here.add("0-5"), await here.add("6-11")
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id))).executor
        assert isinstance(executor, ChainExecutor)
        _, routing = await executor._begin(request())
        places = await routing(20, [], [])
        began = trio.current_time()
        with pytest.raises(NoRoom, match=f"{second.peer} .blocks 6–11. is full") as refused:
            await routing(20, places, [Trouble(places[1], Blame.FULL, "no room", 3.0)])
        assert trio.current_time() == began
        assert refused.value.retry_after == 3.0
        with pytest.raises(NoRoom) as refused:
            await routing(20, places, [Trouble(places[1], Blame.FULL, "no room", 4e6)])
        assert refused.value.retry_after == 60.0
        with pytest.raises(NoRoom, match=r"\), \S+ \(blocks 6–11\) are full"):
            await routing(20, places, [Trouble(places[0], Blame.FULL, "no room", 3.0)])
        routing.close()


async def test_an_answer_that_nobody_has_read_yet_goes_on_where_it_was(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, NEAR) as here:
        await here.add("0-5")
        used, spare = await here.add("6-11"), with_streams(await here.add("6-11"), 1)
        used.executor.step_seconds, spare.executor.step_seconds = 0.04, 0.1
        gateway, other = await here.add(), await here.add()
        here.network.lay(FAR, other.peer, used.peer)
        found: list[Chat] = []

        async def fill_the_spare_one() -> None:
            found.append(await chat(other))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill_the_spare_one)
            with trio.fail_after(5):
                while not spare.sessions:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            route = await gateway.router.route(Intent(TOY.id))
            assert route.hops[1].peer == used.peer
            async with route.executor.generate(request()) as deltas:
                await trio.sleep(1)
                assert used.sessions
                here.kill(used)
                await trio.sleep(2)
                assert spare.sessions and not found
                text = "".join([delta.text async for delta in deltas])
        assert found[0].after[1] == spare.peer
        assert text == await whole()


async def test_another_host_takes_what_a_full_one_does_not(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, NEAR) as here:
        hosts = [with_streams(await here.add("0-11"), 1) for _ in range(2)]
        gateway = await here.add()
        found: list[Chat] = []

        async def ask() -> None:
            found.append(await chat(gateway))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert [one.text for one in found] == [await whole()] * 2
        assert {tuple(one.after) for one in found} == {(host.peer,) for host in hosts}
        assert trio.current_time() < 5


async def test_what_stays_full_is_refused_by_name(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, NEAR) as here:
        host = with_streams(await here.add("0-11"), 1)
        gateway, other = await here.add(), await here.add()
        host.executor.step_seconds = 10.0
        refused: list[NoPeerAvailable] = []

        async def ask() -> None:
            try:
                await chat(gateway)
            except NoPeerAvailable as error:
                refused.append(error)

        began = trio.current_time()
        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat, other)
                await trio.sleep(1)
                nursery.start_soon(ask)
                while not refused:  # noqa: ASYNC110
                    await trio.sleep(0.1)
                nursery.cancel_scope.cancel()
        assert 25 < trio.current_time() - began < 50
        (error,) = refused
        assert error.status == 503
        assert error.retry_after is not None and error.retry_after >= 1
        assert "room" in error.message
