"""A whole model of this node: measured like any route, and held to the limits of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from simulated import request

from kwaai_core import Delta, GenerateRequest, Intent, ModelCard, NoPeerAvailable, Usage
from kwaai_core.testing import FakeHost
from kwaai_core.testing.spans import TOY
from kwaai_core.testing.spans.answers import tokens_of
from kwaai_lobe_router.router import SpanRouter
from kwaai_lobe_router.settings import SpansSettings

LOAD, STEP, ROW = 5.0, 0.02, 0.001


class Steady:
    """An executor that takes as long as it is told, and longer for the first answer."""

    def __init__(self) -> None:
        self.step, self.row = STEP, ROW
        self.answers = 0

    async def models(self) -> Sequence[ModelCard]:
        await trio.lowlevel.checkpoint()
        return [TOY]

    def ready(self) -> bool:
        return True

    @asynccontextmanager
    async def generate(
        self, wanted: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        self.answers += 1
        prompt, most = len(tokens_of(wanted.prompt)), wanted.max_tokens or 1
        put, get = trio.open_memory_channel[Delta](0)

        async def tell() -> None:
            if self.answers == 1:
                await trio.sleep(LOAD)
            await trio.sleep(self.row * prompt)
            async with put:
                for _ in range(most):
                    await trio.sleep(self.step)
                    await put.send(Delta("word ", 1))
                await put.send(Delta("", finish="length", usage=Usage(prompt, most)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            yield get
            nursery.cancel_scope.cancel()


@pytest.fixture
def executor() -> Steady:
    return Steady()


@pytest.fixture
def router(executor: Steady, tmp_path: Path) -> SpanRouter:
    return SpanRouter(FakeHost(tmp_path, executors=[executor]), SpansSettings())


async def test_without_limits_nothing_is_measured(executor: Steady, router: SpanRouter) -> None:
    route = await router.route(Intent(TOY.id))
    assert route.executor is executor
    assert not executor.answers


async def test_a_token_within_the_limit(
    executor: Steady, router: SpanRouter, autojump_clock: trio.testing.MockClock
) -> None:
    route = await router.route(Intent(TOY.id, max_latency_ms=21))
    assert route.executor is executor
    with pytest.raises(NoPeerAvailable, match="takes 20 ms per token, 19 ms were asked") as refused:
        await router.route(Intent(TOY.id, max_latency_ms=19))
    assert refused.value.status == 503
    assert executor.answers == 2  # one to load it, one to measure it


async def test_what_was_measured_is_good_for_a_minute(
    executor: Steady, router: SpanRouter, autojump_clock: trio.testing.MockClock
) -> None:
    await router.route(Intent(TOY.id, max_latency_ms=21))
    executor.step = 0.03
    await trio.sleep(50)
    await router.route(Intent(TOY.id, max_latency_ms=21))
    await trio.sleep(11)
    with pytest.raises(NoPeerAvailable, match="takes 30 ms per token"):
        await router.route(Intent(TOY.id, max_latency_ms=21))


async def test_the_first_token_is_predicted_for_the_prompt(
    router: SpanRouter, autojump_clock: trio.testing.MockClock
) -> None:
    wanted = request()  # some 60 tokens at four bytes each
    for most, refused in ((200, False), (50, True)):
        route = await router.route(Intent(TOY.id, max_first_token_ms=most))
        words, count = "", 0
        try:
            async with route.executor.generate(wanted) as deltas:
                async for delta in deltas:
                    count += delta.tokens
        except NoPeerAvailable as error:
            words = error.message
        assert bool(words) is refused and bool(count) is not refused
        assert words == "" or f"{most} ms were asked" in words
