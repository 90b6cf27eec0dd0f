"""Concurrent chats over nodes that are killed, frozen, slowed and sent away, from seeds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from simulated import Chat, Member, Town, chat, town, whole

from kwaai_core.testing import Line

FAULTS = ("kill", "freeze", "slow", "leave")


async def _harm(here: Town, member: Member, fault: str, random: Random) -> None:
    if fault == "slow":
        member.executor.slowness = 50.0
        await trio.sleep(random.uniform(1, 3))
        member.executor.slowness = 1.0
    elif fault == "leave":
        member.leave.set()
        await member.left.wait()
    else:
        getattr(here, fault)(member)
        await trio.sleep(random.uniform(0.5, 4))
        if fault == "kill":
            here.network.revive(member.peer)
        else:
            here.network.thaw(member.peer)
            member.executor.thaw()


@pytest.mark.parametrize("seed", range(12))
async def test_every_chat_has_the_text_of_the_undivided_run(
    seed: int, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    random = Random(seed)
    line = Line(latency=0.002, jitter=0.002, direct=bool(seed % 2))
    async with town(tmp_path, line) as here:
        spans = ["0-5", "6-11", "0-5", "6-11", "0-11"]
        members = [await here.add(blocks, unit=6) for blocks in spans]
        gateway = await here.add()
        harmed = set[str]()
        chats = list[Chat]()

        async def ask(after: float) -> None:
            await trio.sleep(after)
            chats.append(await chat(gateway))

        async def storm() -> None:
            faults = [*random.choices(FAULTS[:-1], k=2), random.choice(FAULTS)]
            for member, fault in zip(random.sample(members, 3), faults, strict=True):
                await trio.sleep(random.uniform(0.0, 1.5))
                harmed.add(member.peer)
                await _harm(here, member, fault, random)

        await chat(gateway)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm)
            for _ in range(6):
                nursery.start_soon(ask, random.uniform(0, 3))
        assert {one.text for one in chats} == {await whole()}
        assert len(chats) == 6
        assert gateway.router.swarm is not None
        assert set(gateway.router.swarm.blamed) <= harmed
        with trio.fail_after(30):
            while any(member.sessions for member in members):  # noqa: ASYNC110
                await trio.sleep(0.1)
