"""Who holds what of a model now: found, asked and measured for as long as anybody wants to know."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import trio

from kwaai_core import KwaaiError, ModelCard, NotVerified, PeerLost, ProtocolRefused, Transport
from kwaai_lobe_router.agreeing import (
    MAX_FRAME,
    STATUS,
    STEP_SECONDS,
    Told,
    Wanted,
)
from kwaai_lobe_router.candidates import candidate
from kwaai_lobe_router.facts import MAX_AGE, provider_key, read_fast, read_slow
from kwaai_lobe_router.measuring import RoundTrips
from kwaai_lobe_router.newest import Newest
from kwaai_lobe_router.records import Records, worth_asking
from kwaai_lobe_router.swarm import Candidate

log = logging.getLogger(__name__)

FIND_SECONDS, ASK_SECONDS = 5.0, 2.0
ANSWER_SECONDS = 1.5
LEAST_SECONDS = 0.5
IDLE_SECONDS = 60.0
"""A model that nobody has asked for is not looked after any more, once its answers have ended."""

FIRST_SECONDS = 3.0
_LONGEST = 30.0
_MOST_PEERS = 1024
_MOST_FAILURES = 8
_MOST_ASKED = 64
"""Of peers that are not connected for other reasons."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a peer told of itself, when, and when it was asked; ``rtt`` in nanoseconds."""

    peer: str
    told: Told
    rtt: int
    at: float
    asked: float


class Neighbourhood:
    """The holders of one model. :meth:`run` keeps it up to date; ``me`` is this node's peer id.

    ``contradictions`` are of those who say otherwise than they have signed, and are not used.
    ``users`` counts the answers under way, which may need it at any time.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        transport: Transport,
        trips: RoundTrips,
        card: ModelCard,
        me: str,
    ) -> None:
        self.digest = digest = card.digest
        self.known: dict[str, Known] = {}
        self.news = trio.Event()
        self.contradictions = Newest[str, str]()
        self.records = Records(nursery, transport, digest)
        self.wanted = trio.current_time()
        self.users = 0
        self._transport = transport
        self._trips = trips
        self._blocks = card.blocks
        self._me = me
        self._asked: dict[str, trio.Event] = {}
        self._found = trio.Event()
        self._hurries: dict[str, trio.Event] = {}
        self._standing_by = Counter[str]()

    def candidates(self) -> list[Candidate]:
        """Who could compute blocks of it, as far as what is known is fresh."""
        self.wanted = now = trio.current_time()
        fresh = [known for known in self.known.values() if now - known.at <= MAX_AGE]
        return [
            candidate(known.peer, known.told.slow, known.told.fast, rtt=known.rtt, me=self._me)
            for known in fresh
        ]

    def asked(self, peer: str) -> float:
        """When a peer was asked the last question that it has answered, if what it said counts."""
        known = self.known.get(peer)
        return -inf if known is None else known.asked

    async def first(self) -> None:
        """Wait until those that there are have been asked once, or some seconds."""
        self.wanted = trio.current_time()
        with trio.move_on_after(FIRST_SECONDS):
            await self._found.wait()
            for asked in list(self._asked.values()):
                await asked.wait()

    async def until_news(self, seconds: float) -> None:
        """Wait for something that was not known, at most so long; who failed is asked again."""
        for hurry in self._hurries.values():
            hurry.set()
        with trio.move_on_after(seconds):
            await self.news.wait()

    def stand_by(self, peers: Collection[str], before: Collection[str] = ()) -> None:
        """Have room kept at these hosts for one more session, and no more for it where that was
        so ``before``."""
        for peer in set(peers) ^ set(before):
            self._standing_by[peer] += 1 if peer in peers else -1
            if peer in self._hurries:
                self._hurries[peer].set()

    def forget(self, peer: str) -> None:
        """A link to a peer is lost: what it said does not count before it is asked again."""
        self.known.pop(peer, None)

    async def run(self) -> None:
        """Until no answer goes by it, and nobody has wanted to know for a while."""
        async with trio.open_nursery() as nursery:
            while self.users or trio.current_time() - self.wanted < IDLE_SECONDS:
                for peer in await self._find():
                    self._asked[peer] = trio.Event()
                    nursery.start_soon(self._keep_asking, peer)
                self._found.set()
                await trio.sleep(FIND_SECONDS * random.uniform(0.75, 1.0))
            nursery.cancel_scope.cancel()

    async def _find(self) -> Sequence[str]:
        """Those to be asked from now on: who is connected anyway, and of those who say that they
        hold some of it as many as can matter, by the records that they have signed."""
        linked = self._linked()
        found = set[str]()
        with suppress(KwaaiError):
            key = provider_key(self.digest)
            found = set(await self._transport.providers(key, seconds=FIRST_SECONDS))
        asked = self._asked.keys()
        strangers = sorted(found - linked - asked - {self._me})[:_MOST_PEERS]
        signed = await self.records.of_all([*strangers, *(found & asked)] if strangers else [])
        signed = {peer: slow for peer, slow in signed.items() if slow.blocks == self._blocks}
        most = _MOST_ASKED - len(asked - linked)
        chosen = worth_asking(signed, asked, most, self._me)
        return [*sorted(linked - asked - {self._me})[:_MOST_PEERS], *chosen]

    def _linked(self) -> set[str]:
        return {link.peer for link in self._transport.links()}

    async def _keep_asking(self, peer: str) -> None:
        failures, hurried = 0, False
        while True:
            self._hurries[peer] = trio.Event()
            try:
                await self._ask(peer)
                failures = 0
            except KwaaiError as error:
                log.debug("%s tells nothing of %s: %s", peer, self.digest[:12], error)
                self.known.pop(peer, None)
                failures += not hurried  # who is asked often, because it is missed, fails often
                if isinstance(error, ProtocolRefused | NotVerified):
                    failures += 2
            self._asked[peer].set()
            if failures > _MOST_FAILURES and peer not in self._linked():
                del self._asked[peer], self._hurries[peer]
                return
            pause = min(ASK_SECONDS * 2 ** min(failures, 8), _LONGEST) if failures else ASK_SECONDS
            await trio.sleep(LEAST_SECONDS)
            with trio.move_on_after(pause * random.uniform(0.75, 1.0) - LEAST_SECONDS) as waiting:
                await self._hurries[peer].wait()
            hurried = not waiting.cancelled_caught

    async def _ask(self, peer: str) -> None:
        asked = trio.current_time()
        with trio.move_on_after(ANSWER_SECONDS) as scope:
            rtt = await self._trips.of(peer)
            told = await self._status(peer)
        if scope.cancelled_caught:
            raise PeerLost(f"{peer} did not answer within {ANSWER_SECONDS:g} s")
        if told is None:
            self.known.pop(peer, None)
            return
        await self._check(peer, told)
        fresh = peer not in self.known
        self.known[peer] = Known(peer, told, rtt, trio.current_time(), asked)
        if fresh:
            self.news.set()
            self.news = trio.Event()

    async def _check(self, peer: str, told: Told) -> None:
        try:
            await self.records.check(peer, told.slow)
        except NotVerified as error:
            if error.message != self.contradictions.get(peer):
                log.warning("%s: it is not used", error.message)
            self.contradictions[peer] = error.message
            raise
        self.contradictions.pop(peer, None)

    async def _status(self, peer: str) -> Told | None:
        opening = self._transport.open(peer, STATUS, max_frame=MAX_FRAME, seconds=STEP_SECONDS)
        async with opening as stream:
            wanted = Wanted(self.digest, exact=False, reserve=max(0, self._standing_by[peer]))
            await stream.send(wanted.encode(), seconds=STEP_SECONDS)
            body = await stream.receive(seconds=STEP_SECONDS)
            if not body:
                return None
            slow = read_slow(body)
            if slow.digest != self.digest:
                raise NotVerified(f"{peer} tells of another model than it was asked for")
            if slow.blocks != self._blocks:
                there = f"{slow.blocks} blocks of a model that has {self._blocks}"
                raise NotVerified(f"{peer} tells of {there}")
            return Told(slow, read_fast(await stream.receive(seconds=STEP_SECONDS), slow))


class Neighbourhoods:
    """One for each model that was asked for lately; ``nursery`` keeps them up to date."""

    def __init__(
        self, nursery: trio.Nursery, transport: Transport, trips: RoundTrips, me: str
    ) -> None:
        self._nursery = nursery
        self._make = nursery, transport, trips
        self._me = me
        self._all: dict[str, Neighbourhood] = {}

    def of(self, card: ModelCard) -> Neighbourhood:
        """What is known of a model's holders, from now on."""
        one = self._all.get(card.digest)
        if one is None:
            one = self._all[card.digest] = Neighbourhood(*self._make, card, self._me)
            self._nursery.start_soon(self._run, one)
        return one

    async def _run(self, one: Neighbourhood) -> None:
        try:
            await one.run()
        finally:
            del self._all[one.digest]
