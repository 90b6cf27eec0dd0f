"""A node of lobes that fail at random, on a clock that jumps: what must hold whatever happens."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from kwaai_core import Host, LobeFailed, Offer, RoleName
from kwaai_core.config import Config
from kwaai_core.lobes import Lobe
from kwaai_core.node import Node, open_node
from kwaai_core.supervise import LONGEST_DELAY, OPEN_SECONDS

STORM = 300.0
"""Seconds in which things go wrong."""

CHAIN = [RoleName.IDENTITY, RoleName.TRUST, RoleName.SETTLEMENT, RoleName.EMBEDDER]


@dataclass
class Weather:
    """What goes wrong, drawn from a seed; and who is open."""

    seed: int
    open: list[RoleName] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def stormy(self) -> bool:
        return trio.current_time() < STORM

    def lobe(self, role: RoleName) -> Lobe:
        return Lobe(role.value, "1", object(), {role: Offer(role.value, Rough(self, role).open)})


@dataclass
class Rough:
    """Needs the role before it, opens slowly or not at all, and crashes."""

    weather: Weather
    role: RoleName

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[Rough]:
        weather, place = self.weather, CHAIN.index(self.role)
        if place:
            getattr(host, CHAIN[place - 1].value)
        if weather.stormy:
            await trio.sleep(weather.random.choice([0, 0.1, 5, 2 * OPEN_SECONDS]))
            if weather.random.random() < 0.4:
                raise OSError("rough weather")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._crash_sometimes)
            weather.open.append(self.role)
            try:
                yield self
            finally:
                weather.open.remove(self.role)
            nursery.cancel_scope.cancel()

    async def _crash_sometimes(self) -> None:
        while self.weather.stormy:
            await trio.sleep(self.weather.random.expovariate(1 / 20))
            if self.weather.stormy and self.weather.random.random() < 0.5:
                raise ExceptionGroup("crash", [OSError("struck by lightning")])

    async def ask(self) -> RoleName:
        await trio.sleep(self.weather.random.choice([0, 1, 10]))
        return self.role


async def ask_all_the_time(node: Node, role: RoleName, answers: list[RoleName]) -> None:
    """Whoever asks gets the answer or the failure, and never waits for what is not open."""
    while True:
        began = trio.current_time()
        try:
            one = getattr(node, role.value)
            answer = await one.ask()
            assert answer is role
            answers.append(answer)
        except LobeFailed as error:
            assert error.lobe == role.value
            assert error.retry_after is not None
            assert 0 < error.retry_after <= LONGEST_DELAY * 1.25
            assert trio.current_time() - began <= 10
        await trio.sleep(1)


@pytest.mark.parametrize("seed", range(25))
async def test_after_the_storm_all_is_well(
    seed: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    weather, answers = Weather(seed), list[RoleName]()
    config = Config(tmp_path / "kwaai.toml", tmp_path / "state")
    lobes = [weather.lobe(role) for role in CHAIN]
    async with open_node(config, lobes) as node, trio.open_nursery() as nursery:
        for role in CHAIN:
            nursery.start_soon(ask_all_the_time, node, role, answers)
        while weather.stormy:
            await trio.sleep(7)
            for status in node.statuses():
                assert status.state in ("ready", "failed", "waiting", "opening")
                assert bool(status.cause) == (status.state in ("failed", "waiting"))
        await trio.sleep(OPEN_SECONDS * 2 + LONGEST_DELAY * 1.25 + 1)
        assert {status.state for status in node.statuses()} == {"ready"}
        assert sorted(weather.open, key=CHAIN.index) == CHAIN
        answers.clear()
        await trio.sleep(12)
        assert set(answers) == set(CHAIN)
        nursery.cancel_scope.cancel()
    assert weather.open == []


async def test_reaching_to_the_right_is_said_and_stays_failed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    @asynccontextmanager
    async def open_(host: Host) -> AsyncIterator[object]:
        yield host.trust

    lobes = [Lobe("eager", "1", object(), {RoleName.IDENTITY: Offer("eager", open_)})]
    async with open_node(Config(tmp_path / "kwaai.toml", tmp_path / "state"), lobes) as node:
        await trio.sleep(300)
        (status,) = [status for status in node.statuses() if status.lobe == "eager"]
        assert status.state == "failed"
        assert "“eager” reaches for the role trust, which opens after" in status.cause
        with pytest.raises(LobeFailed):
            _ = node.identity
