"""The attacks of ``benchmarks.door``, a small number of each: nobody else is kept waiting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from benchmarks import door
from benchmarks.door import ATTACKS, Attack, Target, ask
from kwaai_core.http.keys import Keys

from .conftest import CARD, FakeNode, serving

MOST_SECONDS = 20.0  # of an honest client's request; 0.1 on two cores with nothing else to do
MOST_MORE = 60e6  # bytes of memory, attackers and node together, when far more is sent
CONNECTIONS = 64


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_honest_client_does_not_notice_much(
    node: FakeNode, tmp_path: Path, attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercorn.Config.keep_alive_timeout", 0.5)
    monkeypatch.setattr(door, "DRIP_SECONDS", 0.05)
    _, key = Keys(tmp_path).create("mine")
    told: list[str] = []
    times: list[float] = []
    count, may = ATTACKS[attack]
    limits = {"max_body": 1 << 20, "body_timeout": 2.0, "connections": CONNECTIONS}
    async with serving(node, tmp_path, **limits) as served:
        target = Target(served.port, key, CARD.id)
        await warmed_up(target)
        before = resident()

        async def strike() -> None:
            told.append(await attack(target))

        async with trio.open_nursery() as attackers:
            for _ in range(max(4, count * CONNECTIONS // 256)):
                attackers.start_soon(strike)
            for _ in range(5):
                began = trio.current_time()
                status, body = await ask(target, target.chat())
                times.append(trio.current_time() - began)
                assert (status, b"Hello" in body) == ("200", True)
        after = resident()
        await warmed_up(target)
    assert max(times) < MOST_SECONDS
    assert set(told) <= may | {"408"}, told  # which is for those whom a busy machine slows down
    assert after - before < MOST_MORE


async def warmed_up(target: Target) -> None:
    answers: Sequence[tuple[str, bytes]] = [await ask(target, target.chat()) for _ in range(3)]
    assert {status for status, _ in answers} == {"200"}
