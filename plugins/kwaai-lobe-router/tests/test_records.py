"""What hosts have signed: looked up before they are asked, and what they are held to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from simulated import AnyDoor, Town, ask_for, chat, town, whole

from kwaai_core import Intent, NoPeerAvailable, Span, Stream
from kwaai_core.testing import FakeIdentity, Line
from kwaai_core.testing.spans import TOY
from kwaai_lobe_router.agreeing import MAX_FRAME, STATUS
from kwaai_lobe_router.facts import SlowFacts, provider_key, write_fast, write_slow
from kwaai_lobe_router.records import worth_asking

LINE = Line(latency=0.001)
FACTS = SlowFacts(TOY.digest, "toy", 12, 8, (Span(0, 12),), "toy", True, 8, 16, 512)


def holding(lo: int, hi: int) -> SlowFacts:
    return replace(FACTS, units=(Span(lo, hi),))


def blocks(facts: SlowFacts) -> list[int]:
    return [block for unit in facts.units for block in range(unit.lo, unit.hi)]


def test_the_scarcest_blocks_are_asked_for_first() -> None:
    slow = {f"many {n}": holding(0, 6) for n in range(100)}
    slow |= {"rare": holding(6, 9), "rarest": holding(9, 12)}
    chosen = worth_asking(slow, [], 4, "me")
    assert {"rare", "rarest"} < set(chosen) and len(chosen) == 4
    assert worth_asking(slow, ["rare"], 2, "me")[-1:] != ["rare"]
    assert "rare" not in worth_asking(slow, ["rare"], 200, "me")


def test_not_all_nodes_ask_the_same() -> None:
    slow = {f"many {n}": holding(0, 12) for n in range(100)}
    assert worth_asking(slow, [], 8, "me") != worth_asking(slow, [], 8, "you")
    assert worth_asking(slow, [], 8, "me") == worth_asking(slow, [], 8, "me")


def drawn(draw: Random) -> SlowFacts:
    """A peer that holds some blocks, with gaps."""
    borders = sorted(draw.sample(range(13), draw.choice([2, 4, 6])))
    units = [Span(lo, hi) for lo, hi in zip(borders[::2], borders[1::2], strict=True)]
    return replace(FACTS, units=tuple(units))


def test_each_that_is_asked_has_what_was_scarcest_before_it() -> None:
    draw = Random(7)
    slow = {f"peer {n}": drawn(draw) for n in range(60)}
    known = [f"peer {n}" for n in range(10)]
    left = {peer: facts for peer, facts in slow.items() if peer not in known}
    held = Counter(block for peer in known for block in blocks(slow[peer]))
    for peer in worth_asking(slow, known, 40, "me"):
        scarce = {p: min(held[block] for block in blocks(facts)) for p, facts in left.items()}
        assert scarce[peer] == min(scarce.values())
        held.update(blocks(left.pop(peer)))
    assert len(left) == 10


async def test_a_host_that_is_not_connected_is_found_by_its_record(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        await here.add()
        host, silent = await here.add("0-11"), FakeIdentity("no record", now=here.network.now)
        gateway = await here.add()
        asked = False
        async with here.network.node(silent) as node:
            node.guard(AnyDoor())
            await node.connect([here.network.address(here.members[0].peer)])

            async def status(stream: Stream) -> None:
                nonlocal asked
                asked = True

            async with node.serve(STATUS, status, max_frame=MAX_FRAME):
                await node.provide(provider_key(TOY.digest), seconds=600)
                transport = here.network.at(gateway.peer)
                assert transport is not None
                await transport.disconnect(host.peer)
                found = await chat(gateway)
        assert found.route == [host.peer] and found.text == await whole()
        assert not asked  # it provides, and has signed nothing


async def _asked(here: Town, signed: SlowFacts, said: SlowFacts) -> tuple[list[float], str]:
    """When a host that signed one thing and says another was asked, and what came of it."""
    honest = await here.add("0-5")
    asked = list[float]()
    async with here.network.node(FakeIdentity("liar", now=here.network.now)) as node:
        node.guard(AnyDoor())
        await node.connect([here.network.address(honest.peer)])
        gateway = await here.add()
        await node.connect([here.network.address(gateway.peer)])

        async def status(stream: Stream) -> None:
            asked.append(trio.current_time())
            await stream.receive()
            assert honest.router.swarm is not None
            told = honest.router.swarm.serving.told(TOY.digest)
            assert told is not None
            await stream.send(write_slow(said_of(told.slow, said)))
            await stream.send(write_fast(told.fast))
            await stream.end()

        async with node.serve(STATUS, status, max_frame=MAX_FRAME):
            assert honest.router.swarm is not None
            told = honest.router.swarm.serving.told(TOY.digest)
            assert told is not None
            body = write_slow(said_of(told.slow, signed))
            await node.publish(provider_key(TOY.digest), body, seconds=600)
            await node.provide(provider_key(TOY.digest), seconds=600)
            try:
                await gateway.router.route(Intent(TOY.id))
                words = ""
            except NoPeerAvailable as error:
                words = error.message
            shown = await ask_for(gateway)
    assert isinstance(shown["contradictions"], dict)
    return asked, words + " ".join(shown["contradictions"].values())


def said_of(told: SlowFacts, other: SlowFacts) -> SlowFacts:
    return replace(told, units=other.units, fingerprint=other.fingerprint)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (holding(5, 11), "units"),
        (replace(holding(6, 12), fingerprint="other"), "fingerprint"),
    ],
)
async def test_a_host_is_held_to_what_it_has_signed(
    said: SlowFacts, names: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        asked, words = await _asked(here, holding(6, 12), said)
        assert asked
        assert "nobody in reach holds blocks 6–11" in words
        assert f"says otherwise than it has signed: {names}" in words


async def test_a_host_that_says_what_it_has_signed_is_used(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        asked, words = await _asked(here, holding(6, 12), holding(6, 12))
        assert asked and not words
