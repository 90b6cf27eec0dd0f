"""A swarm that falls into two, and a gateway whose own worker dies."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import Chat, Member, Town, chat, town, whole

from kwaai_core import Intent, NoPeerAvailable, UpstreamLost, WorkerLost
from kwaai_core.testing import Line
from kwaai_core.testing.spans import TOY

RELAYED = Line(latency=0.001, direct=False)  # what a wall stops is all that two nodes say
LINES = {"direct": Line(latency=0.001), "relayed": RELAYED}


@pytest.fixture(params=LINES)
def line(request: pytest.FixtureRequest) -> Line:
    return LINES[request.param]


async def soon_known(gateway: Member, peers: set[str]) -> None:
    """Wait until a gateway knows all of these."""
    assert gateway.router.swarm is not None
    known = gateway.router.swarm.known.of(TOY)
    with trio.fail_after(45):
        while not peers <= {one.peer for one in known.candidates()}:  # noqa: ASYNC110
            await trio.sleep(0.1)


async def sides(here: Town) -> tuple[list[Member], list[Member]]:
    """Two whole models, each with a gateway, that all know one another; the first hosts are slower,
    so that both gateways prefer the others."""
    first = [await here.add("0-5"), await here.add("6-11")]
    for member in first:
        member.executor.step_seconds = member.executor.row_seconds = 0.004
    second = [await here.add("0-5"), await here.add("6-11")]
    return [*first, await here.add()], [*second, await here.add()]


async def test_both_sides_of_a_partition_go_on_and_find_one_another_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, RELAYED) as here:
        first, second = await sides(here)
        found: dict[str, Chat] = {}

        async def ask(gateway: Member, then: object = None) -> None:
            found[gateway.peer] = await chat(gateway, at=10, then=then)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, second[-1])
            wall = [member.peer for member in first]
            nursery.start_soon(ask, first[-1], lambda: here.network.partition(*wall))
        for side in (first, second):
            one = found[side[-1].peer]
            assert one.text == await whole()
            assert one.after == [member.peer for member in side[:2]]
            assert one.route == [member.peer for member in second[:2]]
        assert found[first[-1].peer].replayed > 0
        assert (await chat(first[-1])).route == [member.peer for member in first[:2]]

        here.network.heal()
        hosts = {member.peer for member in (*first[:2], *second[:2])}
        for side in (first, second):
            await soon_known(side[-1], hosts)
        again = await chat(first[-1])
        assert again.route == [member.peer for member in second[:2]]
        assert again.text == await whole()
        with trio.fail_after(20):
            while any(member.sessions for member in here.members):  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_side_that_lacks_blocks_says_so_until_it_is_whole_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, RELAYED) as here:
        _, far, gateway = await here.add("0-5"), await here.add("6-11"), await here.add()
        with pytest.raises(UpstreamLost, match="blocks 6–11"):
            await chat(gateway, at=10, then=lambda: here.network.partition(far.peer))
        with pytest.raises(NoPeerAvailable, match="nobody in reach holds blocks 6–11"):
            await gateway.router.route(Intent(TOY.id))
        here.network.heal()
        await soon_known(gateway, {far.peer})
        assert (await chat(gateway)).text == await whole()


async def test_the_death_of_the_gateways_worker_ends_its_answers_and_no_others(
    line: Line, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        hosts = [await here.add("0-5"), await here.add("6-11")]
        gateway, other = await here.add(), await here.add()
        found: list[Chat] = []
        lost: list[WorkerLost] = []

        async def ask(member: Member, then: object = None) -> None:
            try:
                found.append(await chat(member, at=10, then=then))
            except WorkerLost as error:
                lost.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, other)
            nursery.start_soon(ask, gateway)
            nursery.start_soon(ask, gateway, gateway.executor.die)
        assert [one.text for one in found] == [await whole()]
        assert len(lost) == 2
        assert "ask again" in lost[0].message
        assert (await chat(gateway)).text == await whole()
        with trio.fail_after(20):
            while any(host.sessions for host in hosts):  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert gateway.router.swarm is not None
        assert not gateway.router.swarm.blamed


@pytest.mark.parametrize("lost", [{0}, {3}, {5}, {2, 3}], ids=str)
async def test_many_hosts_on_one_route_and_some_of_them_die(
    lost: set[int], line: Line, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        parts = [f"{lo}-{lo + 1}" for lo in range(0, 12, 2)]
        members = {one.peer: one for one in [await here.add(part) for part in parts * 2]}
        gateways = [await here.add(), await here.add()]
        route = (await gateways[0].router.route(Intent(TOY.id))).hops
        struck = [members[hop.peer] for number, hop in enumerate(route) if number in lost]
        found: list[Chat] = []

        async def ask(gateway: Member, then: object = None) -> None:
            found.append(await chat(gateway, at=10, then=then))

        def strike() -> None:
            for member in struck:
                here.kill(member)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, gateways[1])
            nursery.start_soon(ask, gateways[0], strike)
        assert [one.text for one in found] == [await whole()] * 2
        for one in found:
            assert len(one.after) == 6
            assert not set(one.after) & {member.peer for member in struck}
        with trio.fail_after(20):
            while any(m.sessions for m in members.values() if m not in struck):  # noqa: ASYNC110
                await trio.sleep(0.05)
