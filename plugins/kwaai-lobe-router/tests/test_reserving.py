"""Room for the route that stands by: kept for who asked, within limits, and for no longer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import AnyDoor, Member, Town, chat, town, whole
from test_full import with_streams

from kwaai_core import NoPeerAvailable, NotVerified
from kwaai_core.span.roles import SpanLoad
from kwaai_core.testing import FakeIdentity, Line
from kwaai_core.testing.spans import TOY
from kwaai_lobe_router.agreeing import MAX_FRAME, STATUS, Wanted, read_wanted, told
from kwaai_lobe_router.facts import FastFacts
from kwaai_lobe_router.reserving import MOST_PER_PEER, RESERVED_SECONDS, Reservations

LINE = Line(latency=0.001)


def load(free: int, sessions: int = 0) -> SpanLoad:
    return SpanLoad(free, sessions, 0, (1.0,), (1.0,))


def test_a_reservation_ends_by_itself() -> None:
    kept = Reservations()
    assert kept.ask("ann", 1, load(8), 0.0) == 1
    assert kept.at(RESERVED_SECONDS - 0.1) == {"ann": 1}
    assert kept.ask("ann", 1, load(8), 4.0) == 1
    assert kept.at(RESERVED_SECONDS + 0.1) == {"ann": 1}
    assert kept.at(4 + RESERVED_SECONDS) == {}


def test_one_peer_gets_little_and_all_peers_get_half() -> None:
    kept = Reservations()
    assert kept.ask("greedy", 1000, load(16), 0.0) == MOST_PER_PEER
    granted = [kept.ask(f"sybil {number}", 1000, load(16), 0.0) for number in range(10)]
    assert sum(granted) + MOST_PER_PEER == 8
    assert kept.ask("ann", 1, load(16), 0.0) == 0
    assert kept.ask("ann", 1, load(16), RESERVED_SECONDS) == 1
    assert kept.ask("ann", 0, load(16), RESERVED_SECONDS) == 0
    assert kept.at(RESERVED_SECONDS) == {}


@pytest.mark.parametrize("streams", range(1, 6))
def test_never_more_than_is_free(streams: int) -> None:
    for free in range(streams + 1):
        granted = Reservations().ask("ann", 9, load(free, streams - free), 0.0)
        assert granted == min(MOST_PER_PEER, free, streams // 2)


def test_sessions_that_would_make_room_are_not_counted_twice() -> None:
    idle = SpanLoad(4, 4, 0, (1.0,), (1.0,), idle=4)
    kept = Reservations()
    assert [kept.ask(peer, 2, idle, 0.0) for peer in ("ann", "bob")] == [2, 0]


@pytest.mark.parametrize("reserve", [-1, 1 << 40, True, 1.5, "1", None])
def test_a_wish_for_no_number_is_refused(reserve: object) -> None:
    frame = Wanted("00" * 32, False, reserve).encode()  # type: ignore[arg-type]
    with pytest.raises(NotVerified, match="reserve"):
        read_wanted(frame)
    assert read_wanted(b'{"model": "0", "exact": false}').reserve == 0


async def standing_by(here: Town) -> tuple[Member, Member, Member]:
    """A host that is fast, one that is slow and has two streams, and a gateway."""
    fast = await here.add("0-11")
    spare = with_streams(await here.add("0-11"), 2)
    spare.executor.step_seconds, spare.executor.row_seconds = 0.004, 0.0001
    return fast, spare, await here.add()


def kept_at(member: Member) -> int:
    (held,) = member.router.describe()["holds"]
    return int(held["reserved"])


async def test_room_is_kept_at_the_backup_and_given_back(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        fast, spare, gateway = await standing_by(here)
        gateway_2 = await here.add()
        fast.executor.slowness = 40  # so that there is time to look
        seen: list[tuple[int, int]] = []

        async def look() -> None:
            await trio.sleep(1)
            seen.append((kept_at(fast), kept_at(spare)))
            assert gateway_2.router.swarm is not None
            others = gateway_2.router.swarm.known.of(TOY)
            await others.first()
            rooms = {one.peer: one.room for one in others.candidates()}
            assert rooms[spare.peer] == TOY.context_length  # one of two streams

        async with trio.open_nursery() as nursery:
            found = await chat(gateway, at=1, then=lambda: nursery.start_soon(look))
        assert found.text == await whole()
        assert seen == [(0, 1)]
        with trio.fail_after(1):
            while kept_at(spare):  # noqa: ASYNC110
                await trio.sleep(0.05)


async def test_who_stands_by_has_room_when_it_is_needed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        fast, spare, gateway = await standing_by(here)
        near = await here.add()
        here.network.lay(Line(latency=0.5), near.peer, fast.peer)
        spare.executor.slowness = fast.executor.slowness = 50

        async def try_to(near: Member) -> None:
            with suppress(NoPeerAvailable):
                await chat(near)

        async def crowd() -> None:
            await trio.sleep(0.5)
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(try_to, near)
                with trio.fail_after(5):
                    while not spare.sessions:  # noqa: ASYNC110
                        await trio.sleep(0.05)
                await trio.sleep(1)
                assert spare.sessions == 1
                here.kill(fast)
                with trio.fail_after(0.5):
                    while spare.sessions < 2:  # noqa: ASYNC110
                        await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            found = await chat(gateway, at=1, then=lambda: nursery.start_soon(crowd))
            assert found.route == [fast.peer] and found.after == [spare.peer]
            assert found.text == await whole()
            nursery.cancel_scope.cancel()


async def ask(here: Town, member: Member, name: str, reserve: int) -> FastFacts:
    async with here.network.node(FakeIdentity(name, now=here.network.now)) as node:
        node.guard(AnyDoor())
        await node.connect([here.network.address(member.peer)])
        async with node.open(member.peer, STATUS, max_frame=MAX_FRAME) as stream:
            await stream.send(Wanted(TOY.digest, False, reserve).encode())
            return (await told(stream, TOY.digest)).fast


async def test_strangers_cannot_reserve_everything(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        host = with_streams(await here.add("0-11"), 8)
        gateway = await here.add()
        reserved = [(await ask(here, host, f"stranger {n}", 1000)).reserved for n in range(8)]
        assert reserved == [2, 2, 0, 0, 0, 0, 0, 0]
        fast = await ask(here, host, "honest", 0)
        assert fast.room == 4 * (TOY.context_length or 0) and fast.reserved == 0
        assert (await chat(gateway)).text == await whole()
        await trio.sleep(RESERVED_SECONDS + 2)
        assert kept_at(host) == 0
        assert host.executor.hosts[0].host.reserved == {}
