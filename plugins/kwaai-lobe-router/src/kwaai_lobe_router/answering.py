"""The executor of a route over spans: an answer whose router follows it from peer to peer."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from math import inf

import trio

from kwaai_core import (
    Delta,
    GenerateRequest,
    HopTiming,
    ModelCard,
    ModelNotFound,
    Prompt,
    Report,
    TokenIds,
    UpstreamLost,
)
from kwaai_lobe_router.gateways import Gateway
from kwaai_lobe_router.leaving import NoRoom
from kwaai_lobe_router.sessions import FULL_PATIENCE_SECONDS, SessionRouting
from kwaai_lobe_router.tasks import tasks

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0
"""Before an answer begins anew whose hosts were full, each time twice as long."""

Begin = Callable[[GenerateRequest], Awaitable[tuple[Gateway, SessionRouting]]]


class ChainExecutor:
    """A :class:`kwaai_core.Executor` of one model over spans, good for one route."""

    def __init__(self, card: ModelCard, begin: Begin) -> None:
        self._card = card
        self._begin = begin

    async def models(self) -> Sequence[ModelCard]:
        """See :meth:`kwaai_core.Executor.models`."""
        await trio.lowlevel.checkpoint()
        return [self._card]

    def ready(self) -> bool:
        """See :meth:`kwaai_core.Executor.ready`."""
        return True

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        """See :meth:`kwaai_core.Executor.generate`."""
        if request.model != self._card:
            raise ModelNotFound(request.model.id, [self._card.id])
        gateway, routing = await self._begin(request)
        answer = _Answer(gateway, routing, request)
        try:
            async with tasks() as nursery:
                await nursery.start(answer.run)
                yield answer
        finally:
            routing.close()


class _Answer(trio.abc.ReceiveChannel[Delta]):
    """The deltas of an answer, with the names of peers in its report.

    :meth:`run` takes them as they come, however slowly they are read, and begins the answer anew
    where its hosts turn out to be full: until its first delta nobody can tell.
    """

    def __init__(self, gateway: Gateway, routing: SessionRouting, request: GenerateRequest) -> None:
        self._gateway = gateway
        self._routing = routing
        self._request = request
        self._times: list[float] = []
        self._error: Exception | None = None
        self._put, self._get = trio.open_memory_channel[Delta](inf)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Until it has ended. What keeps it from being opened at first is raised, later it is
        told."""
        attempt = 0
        with self._put:
            while True:
                opened = attempt > 0
                try:
                    async with self._gateway.head.generate(self._request, self._routing) as deltas:
                        if not opened:
                            task_status.started()
                        opened = True
                        await self._pass_on(deltas)
                        return
                except NoRoom as error:
                    if not opened:
                        raise
                    if self._is_given_up(error):
                        return
                except Exception as error:  # of an executor: told to whoever reads the answer
                    if not opened:
                        raise
                    self._error = error
                    return
                pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
                await trio.sleep(pause * random.uniform(0.5, 1.0))
                attempt += 1

    async def _pass_on(self, deltas: trio.abc.ReceiveChannel[Delta]) -> None:
        with suppress(trio.BrokenResourceError):  # nobody reads it any more
            async for delta in deltas:
                self._times.append(now := trio.current_time())
                self._routing.progress.came(delta.tokens or bool(delta.text), now)
                self._put.send_nowait(delta)

    def _is_given_up(self, error: NoRoom) -> bool:
        """Whether it is not begun anew: text that was given would be given again."""
        if self._routing.progress.started:
            self._error = UpstreamLost(f"a part of the route was lost, and {error.message}")
        elif trio.current_time() - self._routing.began > FULL_PATIENCE_SECONDS:
            self._error = error
        else:
            log.debug("%s: it begins anew", error.message)
        return self._error is not None

    async def receive(self) -> Delta:
        try:
            delta = await self._get.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from None
            raise
        if delta.report is None:
            return delta
        self._log()
        return replace(delta, report=self._told(delta.report))

    def _told(self, report: Report) -> Report:
        same = report.exact and self._routing.same_text
        timings = tuple(map(self._name, report.timings))
        return Report(timings, report.exact, same_text_guaranteed=same)

    def _name(self, timing: HopTiming) -> HopTiming:
        hop = timing.hop
        link = int(hop.peer) if hop.peer.isdecimal() else None
        return replace(timing, hop=replace(hop, peer=self._gateway.peer_of(link)))

    def _log(self) -> None:
        gaps = sorted(b - a for a, b in zip(self._times, self._times[1:], strict=False))
        plan = self._routing.plan
        if gaps and plan is not None:
            took, predicted = gaps[len(gaps) // 2] * 1e3, plan.latency / 1e6
            log.info("a token took %.2f ms (median), %.2f ms were predicted", took, predicted)

    async def aclose(self) -> None:
        await self._get.aclose()


def prompt_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has, one for four bytes, before its head has counted them."""
    if isinstance(prompt, TokenIds):
        return max(1, len(prompt.ids))
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return max(1, sum(len(text.encode()) for text in texts) // 4)
