"""The fake as a whole: an executor of the toy model, in one piece or in spans."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from kwaai_core.errors import KwaaiError, ModelNotFound
from kwaai_core.peering import DataChannel
from kwaai_core.span.roles import SpanFacts
from kwaai_core.testing.network.tasks import background
from kwaai_core.testing.spans.answers import Teller, Telling, most_of, tokens_of
from kwaai_core.testing.spans.heading import FakeSpanHead
from kwaai_core.testing.spans.hosting import FakeSpanHost, serve_quietly
from kwaai_core.testing.spans.lines import FrameLine
from kwaai_core.testing.toy import BLOCKS, WIDTH, plain
from kwaai_core.types import Delta, GenerateRequest, ModelCard, Span

TOY = ModelCard(
    "toy/model", digest="70" * 32, architecture="toy", size=BLOCKS << 20, blocks=BLOCKS,
    context_length=512,
)  # fmt: skip


class FakeSpanExecutor:
    """A :class:`kwaai_core.span.roles.SpanExecutor`, and an executor, of the toy model.

    ``fits_whole``: it could run the whole model. ``streams`` sessions at once, ``per_peer`` of them
    for one peer, with ``cells`` tokens each. ``step_seconds`` a lone row takes through each unit,
    ``row_seconds`` a row of a chunk; both times ``slowness``, which it does not tell. ``refuses``
    is what ``hold`` and ``head`` raise.

    :meth:`freeze` stops it as SIGSTOP does, :meth:`thaw` lets it go on, :meth:`die` loses all
    sessions, links and answers, as a process does that is killed and started again.
    """

    def __init__(
        self,
        cards: Sequence[ModelCard] = (TOY,),
        *,
        fits_whole: bool = False,
        streams: int = 8,
        cells: int = 512,
        fingerprint: str = "toy",
    ) -> None:
        self.cards = list(cards)
        self.fits_whole = fits_whole
        self.streams = self.per_peer = streams
        self.cells = cells
        self.fingerprint = fingerprint
        self.step_seconds = self.row_seconds = 0.0
        self.slowness = 1.0
        self.retry = 0.5
        self.journal_bytes = 1 << 26
        self.refuses: KwaaiError | None = None
        self.frozen = False
        self.hosts: list[FakeSpanHost] = []
        self.heads: list[FakeSpanHead] = []
        self._thawed = trio.Event()

    async def models(self) -> Sequence[ModelCard]:
        """See :meth:`kwaai_core.Executor.models`."""
        await trio.lowlevel.checkpoint()
        return list(self.cards)

    def ready(self) -> bool:
        """See :meth:`kwaai_core.Executor.ready`."""
        return True

    async def fits(self, card: ModelCard, *, exact: bool) -> bool:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.fits`."""
        await trio.lowlevel.checkpoint()
        return self.fits_whole and card in self.cards

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        """See :meth:`kwaai_core.Executor.generate`: the undivided run."""
        self._check(request.model)
        prompt = tokens_of(request.prompt)
        most = most_of(request, self.cells - len(prompt))
        teller, telling = Teller(request, len(prompt), most), Telling()
        for token in plain(prompt, most):
            telling.tell(teller.take(token))
            if teller.finish is not None:
                break
        telling.tell(teller.last())
        telling.end()
        yield telling

    def _check(self, card: ModelCard) -> None:
        if card not in self.cards:
            raise ModelNotFound(card.id, [known.id for known in self.cards])
        if self.refuses is not None:
            raise self.refuses

    def _facts(self, *, exact: bool) -> SpanFacts:
        return SpanFacts(WIDTH, BLOCKS, exact, self.fingerprint, 16, 8, self.cells)

    @asynccontextmanager
    async def hold(
        self, card: ModelCard, units: Sequence[Span], *, exact: bool
    ) -> AsyncIterator[FakeSpanHost]:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.hold`."""
        self._check(card)
        host = FakeSpanHost(self, units, self._facts(exact=exact))
        self.hosts.append(host)
        try:
            async with background() as nursery:
                nursery.start_soon(host.compute)
                yield host
        finally:
            self.hosts.remove(host)
            host.forget()

    @asynccontextmanager
    async def head(self, card: ModelCard, *, exact: bool) -> AsyncIterator[FakeSpanHead]:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.head`."""
        self._check(card)
        async with background() as nursery:
            head = FakeSpanHead(self, self._facts(exact=exact), nursery)
            self.heads.append(head)
            try:
                yield head
            finally:
                self.heads.remove(head)

    def line_to_itself(self, facts: SpanFacts, nursery: trio.Nursery) -> FrameLine | None:
        """A line to the units that this executor holds in the same mode, where it holds any."""
        host = next((host for host in self.hosts if host.facts == facts), None)
        if host is None:
            return None
        near, far = socket.socketpair()
        channel = DataChannel(far, b"", b"", b"", server=True)
        nursery.start_soon(serve_quietly, host, "local", channel)
        return FrameLine(trio.SocketStream(trio.socket.from_stdlib_socket(near)), "local")

    # -- what goes wrong

    async def going(self) -> None:
        """Wait while it is frozen."""
        while self.frozen:
            await self._thawed.wait()

    def freeze(self) -> None:
        """Stop: nothing is read, computed or sent, no heartbeat either."""
        self.frozen, self._thawed = True, trio.Event()

    def thaw(self) -> None:
        """Go on."""
        self.frozen = False
        self._thawed.set()

    def die(self) -> None:
        """Lose what a process has: sessions, lines, answers. What it holds it has again at once."""
        for host in self.hosts:
            host.forget()
        for head in list(self.heads):
            head.die()
