"""What a node holds: by its settings, and by what the swarm lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import chat, town, whole

from kwaai_core import ModelLoading, Span
from kwaai_core.testing import Line
from kwaai_core.testing.spans import TOY

LINE = Line(latency=0.001)
BLOCK = TOY.size // TOY.blocks


async def test_memory_takes_what_the_swarm_lacks(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        await here.add("0-7", unit=4)
        second = await here.add(models=(TOY.id,), memory=4 * BLOCK, unit=4)
        (host,) = second.executor.hosts
        assert host.units == (Span(8, 12),)
        gateway = await here.add()
        assert (await chat(gateway)).text == await whole()


async def test_what_is_held_is_told_in_blocks_as_people_count_them(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kwaai_lobe_router.holding")
    async with town(tmp_path, LINE) as here:
        await here.add("3-8", unit=4)
    assert caplog.messages == [f"held for the swarm, of {TOY.id}: block 3, blocks 4–7, block 8"]


async def test_what_cannot_be_loaded_now_is_tried_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with town(tmp_path, LINE) as here:
        host = await here.add("0-11", refuses=ModelLoading("no memory now", retry_after=1))
        assert not host.executor.hosts
        await trio.sleep(3)
        host.executor.refuses = None
        await trio.sleep(20)
        gateway = await here.add()
        assert (await chat(gateway)).text == await whole()
