"""Routes over what peers hold, and the same text whatever dies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import Chat, chat, request, town, whole

from kwaai_core import Intent, NoPeerAvailable, RequestError, Span, UpstreamLost
from kwaai_core.roles import Reaches
from kwaai_core.span.hop import Blame, Trouble
from kwaai_core.testing import Line, check_router
from kwaai_core.testing.spans import TOY
from kwaai_core.testing.spans.answers import tokens_of
from kwaai_lobe_router import newest
from kwaai_lobe_router.answering import ChainExecutor, prompt_tokens
from kwaai_lobe_router.commands import plan_lines, status_lines
from kwaai_lobe_router.gateways import LOOK_SECONDS, WARM_SECONDS
from kwaai_lobe_router.router import open_router

LINES = {"direct": Line(latency=0.001), "relayed": Line(latency=0.001, direct=False)}


@pytest.fixture(params=LINES)
def line(request: pytest.FixtureRequest) -> Line:
    return LINES[request.param]


async def test_a_route_over_two_peers(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        one, two = await here.add("0-5"), await here.add("6-11")
        gateway = await here.add()
        found = await chat(gateway)
        assert found.text == await whole()
        assert found.route == found.after == [one.peer, two.peer]
        assert found.same
        with trio.fail_after(5):
            while one.sessions or two.sessions:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_who_holds_blocks_tells_how_many_sessions_use_them(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        holder = await here.add("0-11")
        gateway = await here.add()
        told: list[tuple[int, int]] = []

        def look() -> None:
            (held,) = holder.router.describe()["holds"]
            told.append((held["sessions"], held["free"]))

        look()
        await chat(gateway, at=4, then=look)
        with trio.fail_after(5):
            while holder.sessions:  # noqa: ASYNC110
                await trio.sleep(0.01)
        look()
        (_, all_free), during, after = told
        assert all_free > 1
        assert (told[0], during, after) == ((0, all_free), (1, all_free - 1), (0, all_free))


async def test_blocks_of_this_node_serve_whoever_does_not_ask_for_exactness(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        far = await here.add("6-11")
        asked = await here.add("0-5", whole=False)
        for exact in (False, True, None, False):
            found = await chat(asked, exact=exact)
            assert (found.text, found.after) == (await whole(), ["local", far.peer])


async def test_what_requests_do_not_say_of_exactness_is_in_the_settings(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        far = await here.add("6-11", exact=False)
        loose = await here.add("0-5", whole=False, exact=False)
        shown = await loose.router.show(TOY.id, planned=True)
        assert [hop["peer"] for hop in shown["route"]] == ["local", far.peer]
        assert (await chat(loose)).text == await whole()
        with pytest.raises(NoPeerAvailable, match=r"a request with kwaai\.exact = false can use"):
            await loose.router.route(Intent(TOY.id, exact=True))


async def test_a_model_that_is_run_whole_is_shown_as_that(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        alone = await here.add()
        alone.executor.fits_whole = True
        shown = await alone.router.show(TOY.id, planned=True)
        assert shown["whole"] and shown["route"] == [{"peer": "local", "lo": 0, "hi": TOY.blocks}]
        assert "this node runs the model whole" in plan_lines(shown)[-1]
        assert "which this node runs whole" in status_lines(shown)[0]


async def test_the_rules_of_a_router(autojump_clock: trio.testing.MockClock) -> None:
    await check_router(open_router)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_peer_that_is_lost_is_replaced(
    which: int,
    fault: str,
    line: Line,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with town(tmp_path, line) as here:
        members = [await here.add(blocks) for blocks in ("0-5", "6-11", "0-5", "6-11")]
        gateway = await here.add()

        def lose() -> None:
            getattr(here, fault)(first[which])

        route = await gateway.router.route(Intent(TOY.id))
        first = [one for hop in route.hops for one in members if one.peer == hop.peer]
        found = await chat(gateway, at=10, then=lose)
        assert found.text == await whole()
        assert found.after[which] not in (found.route[which], "nobody")
        assert found.after[1 - which] == found.route[1 - which]
        assert found.replayed > 0
        assert found.gap < (0.5 if fault == "kill" else 2.0)
        assert gateway.router.swarm is not None
        blamed = set(gateway.router.swarm.blamed)
        assert blamed == {found.route[which]} or (fault == "freeze" and not blamed)  # it was slow
        with trio.fail_after(20):
            while any(one.sessions for one in members if one is not first[which]):  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_a_peer_whose_link_is_lost_is_left_though_only_its_neighbour_is_complained_of(
    line: Line, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        parts = ("0-3", "4-7", "8-11") * 2
        members = {one.peer: one for one in [await here.add(blocks) for blocks in parts]}
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id))).executor
        assert isinstance(executor, ChainExecutor)
        gateway, routing = await executor._begin(request())
        before = await routing(20, [], [])
        frozen = [gateway.peer_of(place.link) for place in before[1:]]
        for peer in frozen:
            here.freeze(members[peer])
        with trio.fail_after(5):
            while not all(gateway.head.lost(place.link) for place in before[1:]):  # noqa: ASYNC110
                await trio.sleep(0.05)
        began = trio.current_time()
        after = await routing(20, before, [Trouble(before[1], Blame.LOST, "it is silent")])
        assert trio.current_time() - began < 0.5
        assert after[0] == before[0]
        assert not {gateway.peer_of(place.link) for place in after} & set(frozen)
        assert asked.router.swarm is not None
        assert set(asked.router.swarm.blamed) == set(frozen)
        routing.close()


async def test_a_peer_that_is_lost_after_minutes_is_replaced(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        members = {one.peer: one for one in [await here.add("0-11") for _ in range(2)]}
        for one in members.values():
            one.executor.step_seconds = 2.0
        gateway = await here.add()
        route = await gateway.router.route(Intent(TOY.id))
        used = members.pop(route.hops[0].peer)
        (spare,) = members.values()
        reserved: list[object] = []

        def lose() -> None:
            (held,) = spare.router.describe()["holds"]
            reserved.append(held["reserved"])
            here.kill(used)

        began = trio.current_time()
        found = await chat(gateway, at=35, then=lose)
        assert trio.current_time() - began > 130  # nobody asked for the model meanwhile
        assert (found.text, found.route, found.after) == (await whole(), [used.peer], [spare.peer])
        assert reserved == [1]


async def test_a_node_that_leaves_moves_its_sessions_first(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        members = [await here.add("0-11") for _ in range(2)]
        gateway = await here.add()
        route = await gateway.router.route(Intent(TOY.id))
        (used,) = [one for one in members if one.peer == route.hops[0].peer]
        found = await chat(gateway, at=10, then=used.leave.set)
        assert found.text == await whole()
        assert found.after != found.route
        assert gateway.router.swarm is not None
        assert not gateway.router.swarm.blamed
        with trio.fail_after(5):
            await used.left.wait()


async def test_a_node_reaches_a_model_once_all_of_its_blocks_are_held(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        first = await here.add("0-5", whole=False)
        assert isinstance(first.router, Reaches)
        assert await first.router.unreachable() == (
            "nobody in reach holds blocks 6–11 of toy/model; “kwaai swarm status toy/model” shows "
            "who holds what"
        )
        second = await here.add("6-11", whole=False)
        with trio.fail_after(20):
            while await first.router.unreachable():  # noqa: ASYNC110
                await trio.sleep(0.5)
        here.kill(second)
        with trio.fail_after(60):
            while not await first.router.unreachable():  # noqa: ASYNC110
                await trio.sleep(0.5)


async def test_a_model_that_fits_whole_is_always_in_reach(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        alone = await here.add("0-5")
        alone.executor.fits_whole = True
        assert await alone.router.unreachable() == ""


async def test_without_another_path_the_answer_ends_and_says_what_is_missing(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        _, second = await here.add("0-5"), await here.add("6-11")
        gateway = await here.add()
        began = trio.current_time()
        with pytest.raises(UpstreamLost, match="blocks 6–11 of model toy/model") as ended:
            await chat(gateway, at=10, then=lambda: here.kill(second))
        assert f"; lost during this answer: …{second.peer[-6:]}; " in ended.value.message
        assert "ask again once a node with these blocks is back" in ended.value.message
        assert ended.value.message.endswith("kwaai swarm status toy/model")
        assert trio.current_time() - began < 20


async def test_a_replacement_that_comes_in_time_is_used(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        _, second = await here.add("0-5"), await here.add("6-11")
        gateway = await here.add()

        async def replace() -> None:
            here.kill(second)
            await trio.sleep(2)
            await here.add("6-11")

        async with trio.open_nursery() as nursery:
            found = await chat(gateway, at=10, then=lambda: nursery.start_soon(replace))
        assert found.text == await whole()
        assert found.after[1] == here.members[-1].peer


async def test_a_peer_that_was_waited_for_in_vain_is_soon_known_when_it_comes_back(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        _, second = await here.add("0-5"), await here.add("6-11")
        gateway = await here.add()
        with pytest.raises(UpstreamLost):
            await chat(gateway, at=10, then=lambda: here.freeze(second))
        here.network.thaw(second.peer)
        second.executor.thaw()
        assert gateway.router.swarm is not None
        known = gateway.router.swarm.known.of(TOY).known
        with trio.fail_after(6):
            while second.peer not in known:  # noqa: ASYNC110
                await trio.sleep(0.1)


async def test_a_peer_whose_link_was_just_lost_is_used_as_soon_as_it_may_be_linked_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        only = await here.add("0-11")
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id))).executor
        assert isinstance(executor, ChainExecutor)
        gateway, routing = await executor._begin(request())
        began = trio.current_time()
        gateway._delays[only.peer] = 0.5, began + 0.3
        (place,) = await routing(20, [], [])
        assert gateway.peer_of(place.link) == only.peer
        assert 0.3 <= trio.current_time() - began < 0.7
        routing.close()


async def test_a_head_is_told_what_each_host_has_found_to_be_exact(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        hosts = [await here.add(blocks) for blocks in ("0-5", "6-11")]
        for rows, host in enumerate(hosts, 3):
            (held,) = host.executor.hosts
            held.facts = replace(held.facts, replay_rows=rows)
        gateway = await here.add()
        await chat(gateway)
        (head,) = gateway.executor.heads
        assert {head.replay_rows[link] for link in head.lines} == {3, 4}


async def test_a_head_is_told_what_a_lone_row_takes_at_each_host(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        quick, slow = [await here.add(blocks, unit=3) for blocks in ("0-5", "6-11")]
        quick.executor.row_seconds = 0.001
        slow.executor.step_seconds, slow.executor.row_seconds = 0.08, 0.01
        gateway = await here.add()
        await chat(gateway)
        (head,) = gateway.executor.heads
        chunk = head.facts.chunk
        lone = dict[Span, float]()
        for rtt, units in (head.told[link] for link in head.lines):
            assert 0 < rtt < 0.1
            lone |= units
        waits = (0.002 + chunk * 0.001) / 4  # for one chunk of somebody else
        others = 0.08  # its steps take longer than that
        spans = Span(0, 3), Span(3, 6), Span(6, 9), Span(9, 12)
        assert lone == pytest.approx(dict(zip(spans, (waits, waits, others, others), strict=True)))


async def test_a_link_is_not_closed_as_unused_while_it_is_asked_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        only = await here.add("0-11")
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id))).executor
        assert isinstance(executor, ChainExecutor)
        gateway, routing = await executor._begin(request())
        routing.close()
        number = await gateway.link(only.peer)
        await trio.sleep(WARM_SECONDS - 0.1)
        assert await gateway.link(only.peer) == number
        await trio.sleep(1)
        assert not gateway.gone(number)
        await trio.sleep(WARM_SECONDS)
        assert gateway.gone(number)


async def test_whose_link_it_is_is_known_though_many_were_made_after_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest, "MOST", 2)
    async with town(tmp_path, LINES["direct"]) as here:
        only, asked = await here.add("0-11"), await here.add()
        executor = (await asked.router.route(Intent(TOY.id))).executor
        assert isinstance(executor, ChainExecutor)
        gateway, routing = await executor._begin(request())
        routing.close()
        link = await gateway.link(only.peer)
        for other in range(link + 1, link + 5):
            gateway._names[other] = "another"
            await trio.sleep(2 * LOOK_SECONDS)
            assert gateway.peer_of(link) == only.peer


async def test_who_was_lost_is_used_again_at_once_where_it_lives_and_nobody_else_does(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        await here.add("0-5")
        holders = {one.peer: one for one in [await here.add("6-11") for _ in range(2)]}
        gateway = await here.add()

        async def lose_both() -> None:
            used = second_of()
            holders[used].executor.die()  # its node lives on
            while (now := second_of()) == used:  # noqa: ASYNC110
                await trio.sleep(0.001)
            here.kill(holders[now])  # it has begun to replay

        def second_of() -> str:
            (head,) = gateway.executor.heads
            ((_, place),) = head.places()
            gateways = gateway.router.swarm.gateways._all.values()  # type: ignore[union-attr]
            (opening,) = gateways
            assert opening.gateway is not None
            return opening.gateway.peer_of(place.link)

        async with trio.open_nursery() as nursery:
            found = await chat(gateway, at=10, then=lambda: nursery.start_soon(lose_both))
        assert found.text == await whole()
        assert found.after == found.route  # where it was at first
        assert found.gap < 2.5


async def test_an_answer_ends_though_its_last_host_comes_back_again_and_again(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        await here.add("0-5")
        crashing = await here.add("6-11")
        gateway = await here.add()

        async def crash_at_every_replay() -> None:
            while True:
                crashing.executor.die()
                while not crashing.sessions:  # noqa: ASYNC110
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            with (
                trio.fail_after(25),
                pytest.raises(UpstreamLost, match="blocks 6–11 of model toy/model"),
            ):
                await chat(gateway, at=10, then=lambda: nursery.start_soon(crash_at_every_replay))
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("others", [0, 1])
async def test_a_link_that_takes_long_is_waited_for_where_no_other_host_is_fast_enough(
    others: int, tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        only = await here.add("0-11")
        for _ in range(others):
            (await here.add("0-11")).executor.row_seconds = 1.0
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id, max_first_token_ms=1000))).executor
        assert isinstance(executor, ChainExecutor)
        gateway, routing = await executor._begin(request())
        here.network.freeze(only.peer)
        began = trio.current_time()

        async def thaw() -> None:
            await trio.sleep(2)
            here.network.thaw(only.peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thaw)
            (place,) = await routing(20, [], [])
        assert gateway.peer_of(place.link) == only.peer
        assert 2 <= trio.current_time() - began < 4
        routing.close()


async def test_what_cannot_be_had_is_refused(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        await here.add("0-3")
        gateway = await here.add()
        with pytest.raises(NoPeerAvailable, match="nobody in reach holds blocks 4–11"):
            await gateway.router.route(Intent(TOY.id))
        await here.add("4-11")
        await trio.sleep(8)
        await gateway.router.route(Intent(TOY.id))
        with pytest.raises(NoPeerAvailable, match="tier ≥ verified; the best known is unknown"):
            await gateway.router.route(Intent(TOY.id, min_tier="verified"))
        with pytest.raises(NoPeerAvailable, match="local_blocks = 2 keeps"):
            await gateway.router.route(Intent(TOY.id, local_blocks=2))
        with pytest.raises(NoPeerAvailable, match="1 ms were asked"):
            await gateway.router.route(Intent(TOY.id, max_latency_ms=1))
        with pytest.raises(RequestError, match="price"):
            await gateway.router.route(Intent(TOY.id, max_price=1))


async def test_its_own_blocks_are_used_without_a_link(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        await here.add("2-9", unit=2)
        other = await here.add("2-9", unit=2)
        gateway = await here.add("0-11", unit=2)
        found = await chat(gateway, local_blocks=2)
        assert found.text == await whole()
        assert set(found.route) == {"local"}
        assert not other.sessions


async def test_a_whole_local_model_passes_through(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        await here.add("0-11")
        gateway = await here.add()
        gateway.executor.fits_whole = True
        route = await gateway.router.route(Intent(TOY.id))
        assert route.executor is gateway.executor
        assert [hop.peer for hop in route.hops] == ["local"]


async def test_a_full_host_is_waited_for(
    tmp_path: Path, line: Line, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, line) as here:
        host = await here.add("0-11")
        gateway = await here.add()
        host.executor.per_peer = 2
        for held in host.executor.hosts:
            held.forget()
        found: list[Chat] = []

        async def ask() -> None:
            found.append(await chat(gateway))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert {one.text for one in found} == {await whole()}
        assert len(found) == 5


@pytest.mark.parametrize("limit", [40, None])
async def test_the_tokens_of_a_prompt_are_those_that_the_head_has_counted(
    limit: int | None, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINES["direct"]) as here:
        await here.add("0-11")
        asked = await here.add()
        executor = (await asked.router.route(Intent(TOY.id, max_first_token_ms=300))).executor
        assert isinstance(executor, ChainExecutor)
        wanted = replace(request(), max_tokens=limit)
        counted = len(tokens_of(wanted.prompt))
        gateway, routing = await executor._begin(wanted)
        await routing(counted + limit if limit else gateway.head.facts.cells, [], [])
        assert routing.progress.prompt == (counted if limit else prompt_tokens(wanted.prompt))
        assert routing.plan is not None
        rows = routing.progress.prompt * 2 * 2_000_000
        assert rows < routing.plan.first_token < rows + 20_000_000
        routing.close()
        wanted = replace(wanted, prompt="word " * 100, max_tokens=40)
        began = trio.current_time()
        with pytest.raises(NoPeerAvailable, match="earliest first token .* 300 ms were asked"):
            async with executor.generate(wanted) as deltas:
                await deltas.receive()
        assert trio.current_time() - began < 1
