"""The executor of a route over spans: an answer whose router follows it from peer to peer."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from kwaai_core import Delta, GenerateRequest, HopTiming, ModelCard, ModelNotFound, Prompt, Report
from kwaai_lobe_router.gateways import Gateway
from kwaai_lobe_router.sessions import SessionRouting

log = logging.getLogger(__name__)

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
        try:
            async with gateway.head.generate(request, routing) as deltas:
                yield _Named(deltas, gateway, routing)
        finally:
            routing.close()


class _Named(trio.abc.ReceiveChannel[Delta]):
    """The deltas of an answer, with the names of peers in its report."""

    def __init__(
        self, deltas: trio.abc.ReceiveChannel[Delta], gateway: Gateway, routing: SessionRouting
    ) -> None:
        self._deltas = deltas
        self._gateway = gateway
        self._routing = routing
        self._times: list[float] = []

    async def receive(self) -> Delta:
        delta = await self._deltas.receive()
        self._times.append(trio.current_time())
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
        await self._deltas.aclose()


def prompt_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has: one for four bytes."""
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return max(1, sum(len(text.encode()) for text in texts) // 4)
