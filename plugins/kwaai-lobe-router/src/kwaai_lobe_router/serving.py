"""The host's side: units held, announced, and served to peers that ask for a link."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import trio

from kwaai_core import KwaaiError, ModelCard, Stream, Transport
from kwaai_core.span.frames import PROTOCOL
from kwaai_core.span.roles import SpanHost
from kwaai_lobe_router.agreeing import (
    ACCEPTED,
    MAX_FRAME,
    STATUS,
    STEP_SECONDS,
    Told,
    Wanted,
    carried,
    read_wanted,
    refusal,
)
from kwaai_lobe_router.facts import provider_key, write_fast, write_slow
from kwaai_lobe_router.measuring import RoundTrips, fast_facts, slow_facts
from kwaai_lobe_router.reserving import Reservations

log = logging.getLogger(__name__)

LAPSE_SECONDS = 1.0
RECORD_SECONDS = 600.0
RENEW_SECONDS = 120.0
"""How often, about, a node says again what it holds."""


@dataclass(eq=False, slots=True)
class Holding:
    """Units of a model that this node holds, and for which peers it keeps room there."""

    card: ModelCard
    host: SpanHost
    reservations: Reservations = field(default_factory=Reservations)
    told: dict[str, int] = field(default_factory=dict)

    def kept(self) -> Mapping[str, int]:
        """For how many more sessions of which peers room is kept now; the worker knows too."""
        kept = dict(self.reservations.at(trio.current_time()))
        if kept != self.told:
            self.repeat()
        return kept

    def reserve(self, peer: str, sessions: int) -> None:
        """A peer wants room for so many more sessions, or for none any more."""
        self.reservations.ask(peer, sessions, self.host.load(), trio.current_time())
        if sessions or self.told:
            self.repeat()

    def repeat(self) -> None:
        """Tell the worker, which forgets it when it is started again."""
        self.told = dict(self.reservations.at(trio.current_time()))
        self.host.reserve(self.told)


class Serving:
    """What this node holds, and the peers that use it."""

    def __init__(self, transport: Transport, trips: RoundTrips, links: int) -> None:
        self.holdings: dict[str, Holding] = {}
        self.draining = False
        self._transport = transport
        self._trips = trips
        self._most = links
        self._links = Counter[str]()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Answer peers while the context is open."""
        serve = self._transport.serve
        async with (
            serve(PROTOCOL, self._answer_link, max_frame=MAX_FRAME),
            serve(STATUS, self._answer_status, max_frame=MAX_FRAME),
        ):
            yield

    def told(self, digest: str, peer: str = "") -> Told | None:
        """What this node says to a peer of a model of which it holds units; None where it serves
        none."""
        holding = self.holdings.get(digest)
        if holding is None or self.draining:
            return None
        fast = fast_facts(digest, holding.host, self._trips.all(), holding.kept(), peer)
        return None if fast is None else Told(slow_facts(holding.card, holding.host), fast)

    async def _answer_status(self, stream: Stream) -> None:
        wanted = read_wanted(await stream.receive(seconds=STEP_SECONDS))
        self._trips.measure_soon(stream.peer)
        holding = self.holdings.get(wanted.model)
        if holding is not None:
            holding.reserve(stream.peer, wanted.reserve)
        told = self.told(wanted.model, stream.peer)
        if told is None:
            await stream.send(b"", seconds=STEP_SECONDS)
        else:
            await _tell(stream, told)
        await stream.end(seconds=STEP_SECONDS)

    async def _answer_link(self, stream: Stream) -> None:
        wanted = read_wanted(await stream.receive(seconds=STEP_SECONDS))
        told = self.told(wanted.model, stream.peer)
        holding = self.holdings.get(wanted.model)
        words = self._objection(stream.peer, wanted, told)
        if told is None or holding is None or words:
            await stream.send(refusal(words, retry_after=1.0), seconds=STEP_SECONDS)
            await stream.end(seconds=STEP_SECONDS)
            return
        with self._counted(stream.peer, holding):
            await stream.send(ACCEPTED, seconds=STEP_SECONDS)
            await _tell(stream, told)
            async with carried(self._transport, stream) as channel:
                await holding.host.serve(stream.peer, channel)

    @contextmanager
    def _counted(self, peer: str, holding: Holding) -> Iterator[None]:
        """Count a link from when it is admitted, or many could be at once; with the last one ends
        the room that is kept for its peer."""
        self._links[peer] += 1
        try:
            yield
        finally:
            self._links[peer] -= 1
            if not self._links[peer]:
                del self._links[peer]
                holding.reserve(peer, 0)

    def _objection(self, peer: str, wanted: Wanted, told: Told | None) -> str:
        if self.draining:
            return "this node is about to leave"
        if told is None:
            return "no blocks of this model are held here"
        if wanted.exact and not told.slow.exact:
            return "what is held here is not exact"
        if self._links[peer] >= self._most:
            return f"a peer may have {self._most} links here"
        return ""

    async def keep_room(self, holding: Holding) -> None:
        """Give back in time what nobody asks for any more."""
        while True:
            await trio.sleep(LAPSE_SECONDS)
            holding.kept()

    async def announce(self, digest: str) -> None:
        """Say again and again that units of a model are held here, for as long as they are."""
        while (told := self.told(digest)) or not self.draining:
            if told is not None:
                try:
                    key = provider_key(digest)
                    body = write_slow(told.slow)
                    await self._transport.publish(key, body, seconds=RECORD_SECONDS)
                    await self._transport.provide(key, seconds=RECORD_SECONDS)
                except KwaaiError as error:
                    log.warning("what is held of %s is not announced: %s", digest[:12], error)
            await trio.sleep(RENEW_SECONDS * random.uniform(0.75, 1.0) if told else 1.0)

    async def drain(self, seconds: float) -> None:
        """Have every session moved elsewhere, for at most so long."""
        self.draining = True
        with trio.move_on_after(seconds) as scope:
            async with trio.open_nursery() as nursery:
                for holding in self.holdings.values():
                    nursery.start_soon(_drained, holding.host)
        if scope.cancelled_caught:
            log.warning("sessions of peers were still here after %g s", seconds)


async def _drained(host: SpanHost) -> None:
    with suppress(KwaaiError):
        await host.drain()


async def _tell(stream: Stream, told: Told) -> None:
    await stream.send(write_slow(told.slow), seconds=STEP_SECONDS)
    await stream.send(write_fast(told.fast), seconds=STEP_SECONDS)
