"""A whole model of this node as a route: measured, and held to the limits that a request sets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from kwaai_core import (
    Delta,
    Executor,
    GenerateRequest,
    Intent,
    Message,
    ModelCard,
    NoPeerAvailable,
    Sampling,
)
from kwaai_lobe_router.answering import prompt_tokens
from kwaai_lobe_router.measuring import nanoseconds
from kwaai_lobe_router.refusals import Late

FRESH_SECONDS = 60.0
_TOKENS = 16
_PROMPT = (Message("user", "Count from one to one hundred, in words. " * 12),)


@dataclass(frozen=True, slots=True)
class Speed:
    """Nanoseconds of a token, and of a token of the prompt; as of ``at``."""

    step: int
    row: int
    at: float

    def first_token(self, prompt: int) -> int:
        """The predicted time to the first token after a prompt of so many."""
        return prompt * self.row + self.step


@dataclass(slots=True)
class _Measuring:
    lock: trio.Lock = field(default_factory=trio.Lock)
    speed: Speed | None = None


class Alone:
    """How fast this node's executors run whole models. A request that sets limits has the model
    measured, beside whatever else it does, where that was not done within a minute."""

    def __init__(self) -> None:
        self._all: dict[tuple[int, str, bool | None], _Measuring] = {}

    async def within(self, executor: Executor, card: ModelCard, intent: Intent) -> Executor:
        """The executor for an intent; one that holds a request to the limit on the first token.

        Errors: :class:`NoPeerAvailable` where a token takes longer than the intent allows; those
        of :meth:`Executor.generate` where the model cannot be measured.
        """
        first, latency = _limit(intent.max_first_token_ms), _limit(intent.max_latency_ms)
        if first is None and latency is None:
            return executor
        speed = await self._speed(executor, card, intent.exact)
        if latency is not None and speed.step > latency:
            raise _late(Late(card.id, "token", speed.step, latency))
        return executor if first is None else _Limited(executor, speed, first)

    async def _speed(self, executor: Executor, card: ModelCard, exact: bool | None) -> Speed:
        key = id(executor), card.digest or card.id, exact
        measuring = self._all.setdefault(key, _Measuring())
        async with measuring.lock:
            speed = measuring.speed
            if speed is None or trio.current_time() - speed.at > FRESH_SECONDS:
                if speed is None:  # it may have to be loaded first, which does not count
                    await _measure(executor, card, exact, tokens=1)
                speed = measuring.speed = await _measure(executor, card, exact, tokens=_TOKENS)
        return speed


async def _measure(executor: Executor, card: ModelCard, exact: bool | None, tokens: int) -> Speed:
    request = GenerateRequest(
        card, _PROMPT, Sampling(temperature=0), max_tokens=tokens, exact=exact
    )
    began = trio.current_time()
    times, counts, prompt = list[float](), list[int](), 1
    async with executor.generate(request) as deltas:
        async for delta in deltas:
            if delta.tokens or delta.text:
                times.append(trio.current_time())
                counts.append(delta.tokens or 1)
            if delta.usage is not None:
                prompt = max(1, delta.usage.prompt_tokens)
    ended = trio.current_time()
    if not times:
        raise NoPeerAvailable(f"{card.id} gave no token by which to measure it", retry_after=1)
    after = sum(counts[1:])
    step = (times[-1] - times[0]) / after if after else 0.0
    row = max(0.0, times[0] - began - step) / prompt
    return Speed(nanoseconds(step), nanoseconds(row), ended)


class _Limited:
    """An executor that refuses a prompt after which the first token would come too late."""

    def __init__(self, executor: Executor, speed: Speed, most: int) -> None:
        self._executor = executor
        self._speed = speed
        self._most = most

    async def models(self) -> Sequence[ModelCard]:
        """See :meth:`kwaai_core.Executor.models`."""
        return await self._executor.models()

    def ready(self) -> bool:
        """See :meth:`kwaai_core.Executor.ready`."""
        return self._executor.ready()

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        """See :meth:`kwaai_core.Executor.generate`. Errors: :class:`NoPeerAvailable` besides."""
        first = self._speed.first_token(prompt_tokens(request.prompt))
        if first > self._most:
            raise _late(Late(request.model.id, "first token", first, self._most))
        async with self._executor.generate(request) as deltas:
            yield deltas


def _late(late: Late) -> NoPeerAvailable:
    return NoPeerAvailable(f"this node runs the whole model itself, and {late}")


def _limit(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else int(milliseconds * 1e6)
