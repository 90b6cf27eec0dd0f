"""What has come of an answer at once, and several answers at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import trio
from trio.abc import ReceiveChannel

from kwaai_core.errors import WorkerLost
from kwaai_core.types import CallPiece, Delta, FinishReason, Report, TokenLogprob, Usage

T = TypeVar("T")

MAX_AT_ONCE = 32
"""Answers of one call that are computed, or wait for it, at a time: fewer than a queue holds."""


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended."""

    finish: FinishReason
    usage: Usage
    report: Report | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Text with the probabilities of its tokens, then pieces of calls of tools, and the end of the
    answer after the last."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    end: End | None = None
    calls: tuple[CallPiece, ...] = ()


class Batches:
    """The text of an answer, all that is ready at once, up to its end."""

    def __init__(self, deltas: ReceiveChannel[Delta]) -> None:
        self._receive = deltas.receive
        # Only a memory channel can say that nothing is ready; others are read one by one.
        self._receive_nowait: Callable[[], Delta] | None = getattr(deltas, "receive_nowait", None)

    async def next(self) -> Batch:
        """Wait for text or the end; may be cancelled, and nothing is lost.

        Errors:
          WorkerLost: the stream ended without saying how, and without the usage.
        """
        try:
            delta = await self._receive()
        except trio.EndOfChannel:
            raise WorkerLost("the answer broke off before its end: ask again") from None
        text, logprobs, calls = delta.text, delta.logprobs, delta.calls
        if self._receive_nowait is not None:
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while delta.finish is None:
                    delta = self._receive_nowait()
                    text += delta.text
                    logprobs += delta.logprobs
                    calls += delta.calls
        if delta.finish is None:
            return Batch(text, logprobs, None, calls)
        if delta.usage is None:
            raise WorkerLost("the answer ended without its usage: this is a bug of the executor")
        return Batch(text, logprobs, End(delta.finish, delta.usage, delta.report), calls)


async def each(work: Callable[[int], Awaitable[T]], number: int) -> list[T]:
    """Do something for 0, 1, …, many at once, and give what came of each; the first that fails
    ends all.

    Errors: those of ``work``, not wrapped in a group.
    """
    if number == 1:
        return [await work(0)]
    results = dict[int, T]()
    failure: Exception | None = None
    places = trio.CapacityLimiter(MAX_AT_ONCE)
    async with trio.open_nursery() as nursery:

        async def one(index: int) -> None:
            nonlocal failure
            try:
                async with places:
                    results[index] = await work(index)
            except Exception as error:  # noqa: BLE001 - raised below, past the nursery's grouping
                failure = failure or error
                nursery.cancel_scope.cancel()

        for index in range(number):
            nursery.start_soon(one, index)
    if failure is not None:
        raise failure
    return [results[index] for index in range(number)]
