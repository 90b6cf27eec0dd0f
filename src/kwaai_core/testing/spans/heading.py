"""The head's side of the fake: links to hosts, and answers over them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

import trio

from kwaai_core.errors import ContextLengthExceeded, PeerLost, WorkerLost
from kwaai_core.peering import DataChannel
from kwaai_core.span.chain import Chain, Settings
from kwaai_core.span.frames import Frame, Kind
from kwaai_core.span.hop import Place
from kwaai_core.span.journal import Budget
from kwaai_core.span.roles import LOCAL, Routing, SpanFacts
from kwaai_core.span.watch import Pace, Silence
from kwaai_core.testing.network.tasks import background
from kwaai_core.testing.spans.answers import TICK_SECONDS, Answer, Teller, most_of, tokens_of
from kwaai_core.testing.spans.lines import FrameLine, line_over
from kwaai_core.testing.toy import embed
from kwaai_core.types import Delta, GenerateRequest, Span

if TYPE_CHECKING:
    from kwaai_core.testing.spans.executor import FakeSpanExecutor


class FakeSpanHead:
    """A :class:`kwaai_core.span.roles.SpanHead` of the toy model; made by the executor's ``head``.

    ``lines`` are those to hosts, by the number of the link, and ``told`` is what was said of each:
    its round trip, and what a lone row takes through its units; ``answers`` are under way.
    """

    def __init__(self, executor: FakeSpanExecutor, facts: SpanFacts, nursery: trio.Nursery) -> None:
        self.facts = facts
        self.lines: dict[Hashable, FrameLine] = {}
        self.replay_rows: dict[Hashable, int] = {LOCAL: facts.replay_rows}
        self.answers: list[Answer] = []
        self._executor = executor
        self._nursery = nursery
        self._budget = Budget(executor.journal_bytes)
        self._paces: dict[Place, Pace] = {}
        self.told: dict[Hashable, tuple[float, Mapping[Span, float]]] = {}
        self._numbers = count(LOCAL + 1)
        self._scopes: dict[trio.CancelScope, None] = {}

    def die(self) -> None:
        """Lose every line and every answer, as with the process that had them."""
        for answer in self.answers:
            answer.telling.tell(WorkerLost("the toy's process died: ask again"))
            answer.telling.end()
        self.answers.clear()
        for scope in self._scopes:
            scope.cancel()

    @asynccontextmanager
    async def link(
        self,
        peer: str,
        channel: DataChannel,
        *,
        replay_rows: int = 1,
        rtt: float = 0.0,
        lone: Mapping[Span, float] | None = None,
    ) -> AsyncIterator[int]:
        """See :meth:`kwaai_core.span.roles.SpanHead.link`."""
        line = await line_over(channel, peer)
        number = next(self._numbers)
        self.replay_rows[number] = replay_rows
        self.told[number] = rtt, lone or {}
        async with background() as nursery:
            nursery.start_soon(self.carry, number, line)
            self.lines[number] = line
            try:
                yield number
            finally:
                self._lose(number, "the link was closed")

    def lost(self, link: int) -> bool:
        """See :meth:`kwaai_core.span.roles.SpanHead.lost`."""
        return link not in self.lines

    async def carry(self, number: int, line: FrameLine) -> None:
        """Take frames of a host until its link is lost."""
        silence = Silence(trio.current_time())

        def take(frame: Frame) -> None:
            silence.heard(trio.current_time())
            self._take(number, frame)

        self.lines[number] = line
        reason = "it has fallen silent"
        async with trio.open_nursery() as nursery:
            self._scopes[nursery.cancel_scope] = None
            nursery.start_soon(self._watch, silence, nursery.cancel_scope)
            try:
                await line.run(take, self._executor.going)
            except PeerLost as error:
                reason = error.message
            finally:
                del self._scopes[nursery.cancel_scope]
            nursery.cancel_scope.cancel()
        self._lose(number, reason)

    async def _watch(self, silence: Silence, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            if not self._executor.frozen and silence.lost(trio.current_time()):
                scope.cancel()

    def _take(self, number: Hashable, frame: Frame) -> None:
        for answer in list(self.answers):
            if frame.kind is Kind.HEARTBEAT:
                answer.chain.beat(number, frame)
            elif frame.kind is Kind.DRAIN:
                answer.leave(number)
            else:
                answer.receive(number, frame)

    def _lose(self, number: Hashable, reason: str) -> None:
        if self.lines.pop(number, None) is not None:
            for answer in list(self.answers):
                answer.lose(number, reason)

    def _send(self, link: Hashable, frame: Frame) -> None:
        if link == LOCAL and link not in self.lines:
            line = self._executor.line_to_itself(self.facts, self._nursery)
            if line is not None:
                self.lines[LOCAL] = line
                self._nursery.start_soon(self.carry, LOCAL, line)
        if link in self.lines:
            self.lines[link].send(frame)
        elif frame.kind is not Kind.CLOSE:
            for answer in self.answers:
                answer.lose(link, "there is no such link")

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest, routing: Routing
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        """See :meth:`kwaai_core.span.roles.SpanHead.generate`."""
        prompt, cells = tokens_of(request.prompt), self.facts.cells
        if len(prompt) >= cells:
            raise ContextLengthExceeded(len(prompt), cells, param="messages")
        most = most_of(request, cells - len(prompt))
        room = len(prompt) + most
        facts = self.facts
        settings = Settings(facts.width, room, facts.chunk)
        chain = Chain(
            settings,
            embed,
            self._send,
            self._budget,
            pace=self._pace,
            replay_rows=lambda place: self.replay_rows.get(place.link, 1),
        )
        answer = Answer(chain, prompt, room, Teller(request, len(prompt), most), routing)
        self.answers.append(answer)
        try:
            async with background() as nursery:
                nursery.start_soon(answer.run, self._executor.going)
                yield answer.telling
        finally:
            with suppress(ValueError):
                self.answers.remove(answer)

    def _pace(self, place: Place) -> Pace:
        if place not in self._paces:
            self._paces[place] = Pace.told(place.span, *self.told.get(place.link, (0.0, {})))
        return self._paces[place]

    def places(self) -> Sequence[Sequence[Place]]:
        """Where every answer is now."""
        return [[hop.place for hop in answer.chain.hops] for answer in self.answers]
