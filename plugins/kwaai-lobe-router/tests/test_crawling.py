"""A host that takes much longer than it says, from its first step on."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import Member, Town, chat, request, town, whole
from test_router import LINES

from kwaai_core import Intent
from kwaai_core.span.hop import Blame, Trouble
from kwaai_core.testing.spans import TOY
from kwaai_lobe_router.answering import ChainExecutor


async def hosts(here: Town) -> tuple[Member, Member]:
    """One that says it is fast and takes 0.4 s for a lone row, and another."""
    slow, other = [await here.add("0-11") for _ in range(2)]
    slow.executor.row_seconds = other.executor.row_seconds = 0.00002
    other.executor.step_seconds = 0.004
    slow.executor.slowness = 0.4 / slow.executor.step_seconds
    return slow, other


async def test_a_host_that_crawls_from_its_first_step_on_is_left(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        slow, other = await hosts(here)
        found = await chat(await here.add())
        assert (found.route, found.after) == ([slow.peer], [other.peer])
        assert found.gap < 1.0
        assert found.text == await whole()


@pytest.mark.parametrize("at", [0, 10])
async def test_where_all_crawl_an_answer_does_not_go_to_and_fro(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, at: int
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        members = await hosts(here)
        gateway = await here.add()

        def crawl(*who: Member) -> None:
            for member in who or members:
                member.executor.slowness = 0.4 / member.executor.step_seconds

        if at == 0:
            crawl()
        else:  # each has been seen to be fast
            members[0].executor.slowness = 1.0
            moved = await chat(gateway, at=at, then=lambda: crawl(members[0]))
            assert moved.after == [members[1].peer]
            members[0].executor.slowness = 1.0
        with trio.fail_after(40):  # at 0.4 s each, 40 tokens alone take 16
            found = await chat(gateway, at=at, then=crawl)
        assert found.text == await whole()
        assert found.replayed <= 3 * (40 + at)  # a move replays the prompt of 40 words as well


async def test_an_answer_does_not_go_back_before_it_has_come_further(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        members = await hosts(here)
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id))).executor
        assert isinstance(executor, ChainExecutor)
        gateway, routing = await executor._begin(request())
        try:
            route = await routing(80, [], [])
            gone = [route]
            for tokens in (0, 15, 1):  # 16 are expected, and each time the other seems to be sooner
                routing.progress.came(tokens, trio.current_time())
                slow = [Trouble(place, Blame.SLOW, "it takes long", took=5.0) for place in route]
                route = await routing(80, route, slow)
                gone.append(route)
            names = [[gateway.peer_of(place.link) for place in route] for route in gone]
            slow_one, other = [[member.peer] for member in members]
            assert names == [slow_one, other, other, slow_one]
        finally:
            routing.close()
