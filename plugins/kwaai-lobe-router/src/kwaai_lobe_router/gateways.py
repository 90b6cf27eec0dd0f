"""The gateway's side: the head of a model, and a link to each host that its answers use."""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass, field

import trio

from kwaai_core import KwaaiError, ModelCard, PeerUnreachable, Span, Transport
from kwaai_core.errors import cause_of
from kwaai_core.span.frames import PROTOCOL
from kwaai_core.span.roles import LOCAL as LOCAL_LINK
from kwaai_core.span.roles import SpanExecutor, SpanHead
from kwaai_lobe_router.agreeing import MAX_FRAME, STEP_SECONDS, Told, Wanted, agreed, carried
from kwaai_lobe_router.newest import Newest
from kwaai_lobe_router.swarm import LOCAL

log = logging.getLogger(__name__)

WARM_SECONDS = 120.0
"""For how long a link that no answer uses is kept."""

LOOK_SECONDS = 0.25
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0


@dataclass(eq=False, slots=True)
class _Linking:
    """A link, from the first attempt on; ``number`` is None until it is there, ``used`` is when it
    was asked for the last time, or a session went over it."""

    number: int | None = None
    used: float = field(default_factory=trio.current_time)
    error: KwaaiError | None = None
    settled: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Gateway:
    """The head of one model in one mode, and its links, which tasks of ``nursery`` keep.

    ``users`` counts, by peer, the sessions that go over it or hold it warm.
    """

    def __init__(
        self, nursery: trio.Nursery, transport: Transport | None, head: SpanHead, wanted: Wanted
    ) -> None:
        self.head = head
        self.users = Counter[str]()
        self._nursery = nursery
        self._transport = transport
        self._wanted = wanted
        self._links: dict[str, _Linking] = {}
        self._names = Newest[int, str]()
        self._delays = Newest[str, tuple[float, float]]()

    def peer_of(self, link: object) -> str:
        """Whose link it is, or was."""
        if link == LOCAL_LINK:
            return LOCAL
        return self._names.get(link, "nobody") if isinstance(link, int) else "nobody"

    def gone(self, link: object) -> bool:
        """Whether a link to a peer is of no use any more."""
        return isinstance(link, int) and link != LOCAL_LINK and self.head.lost(link)

    def linked(self, peer: str) -> bool:
        """Whether there is a link that works."""
        linking = self._links.get(peer)
        return linking is not None and self._works(linking)

    def _works(self, linking: _Linking) -> bool:
        return linking.number is not None and not self.head.lost(linking.number)

    async def link(self, peer: str) -> int:
        """The number of a link to a peer, which is opened if need be.

        Errors: :class:`KwaaiError`, whatever kept it from being opened, lately too.
        """
        if peer == LOCAL:
            return LOCAL_LINK
        linking = self._links.get(peer)
        if linking is not None and linking.number is not None and not self._works(linking):
            linking.scope.cancel()
            linking = None
        if linking is None:
            linking = self._begin(peer)
        await linking.settled.wait()
        linking.used = trio.current_time()  # who asks goes over it only when all links are there
        if linking.number is None:
            raise linking.error or PeerUnreachable(f"the link to {peer} was closed")
        return linking.number

    def _begin(self, peer: str) -> _Linking:
        _, until = self._delays.get(peer, (0.0, 0.0))
        if (pause := until - trio.current_time()) > 0:
            raise PeerUnreachable(f"{peer} could not be reached just now", retry_after=pause)
        linking = self._links[peer] = _Linking()
        self._nursery.start_soon(self._keep, peer, linking)
        return linking

    async def _keep(self, peer: str, linking: _Linking) -> None:
        try:
            with linking.scope:
                await self._linked(peer, linking)
        except Exception as error:  # noqa: BLE001  # of an executor or a peer: it costs this link
            known = error if isinstance(error, KwaaiError) else KwaaiError(cause_of(error))
            linking.error = known
            log.debug("the link to %s: %s", peer, known.message)
        finally:
            if self._links.get(peer) is linking:
                del self._links[peer]
            if linking.number is None or linking.error is not None:
                delay, _ = self._delays.get(peer, (0.0, 0.0))
                delay = min(max(_FIRST_DELAY, delay * 2), _LONGEST_DELAY)
                until = trio.current_time() + delay * random.uniform(0.75, 1.0)
                self._delays[peer] = delay, until
            linking.settled.set()

    async def _linked(self, peer: str, linking: _Linking) -> None:
        if self._transport is None:
            raise PeerUnreachable("without a transport there are no peers")
        seconds = STEP_SECONDS
        opening = self._transport.open(peer, PROTOCOL, max_frame=MAX_FRAME, seconds=seconds)
        async with opening as stream:
            asked = trio.current_time()
            told = await agreed(stream, self._wanted)
            rtt = trio.current_time() - asked
            self._check(peer, told)
            rows = told.slow.rows if told.slow.exact else 1
            lone = _lone_seconds(told)
            async with (
                carried(self._transport, stream) as channel,
                self.head.link(peer, channel, replay_rows=rows, rtt=rtt, lone=lone) as number,
            ):
                linking.number = number
                self._delays.pop(peer, None)
                linking.settled.set()
                await self._while_of_use(peer, number, linking)

    def _check(self, peer: str, told: Told) -> None:
        """Errors: :class:`KwaaiError` for a host that does not fit this head."""
        mine, slow = self.head.facts, told.slow
        if (slow.width, slow.blocks) != (mine.width, mine.blocks) or slow.chunk < mine.chunk:
            raise KwaaiError(f"{peer} computes in other shapes than the head of this node")

    async def _while_of_use(self, peer: str, number: int, linking: _Linking) -> None:
        while not self.head.lost(number):
            now = trio.current_time()
            self._names[number] = peer  # not forgotten, however many links are made meanwhile
            if self.users[peer] > 0:
                linking.used = now
            if now - linking.used > WARM_SECONDS:
                return
            await trio.sleep(LOOK_SECONDS)
        raise PeerUnreachable(f"the link to {peer} was lost")

    def warm(self, peer: str) -> None:
        """Open a link that may be needed soon."""
        if peer != LOCAL and peer not in self._links:
            try:
                self._begin(peer)
            except PeerUnreachable:
                return


def _lone_seconds(told: Told) -> dict[Span, float]:
    """What a lone row takes through each unit of a host by its own word. Slow is what takes four
    times as long; that it waits for a chunk of somebody else is not."""
    steps, chunk = told.fast.batch(told.fast.sessions + 1).steps, told.slow.chunk
    return {
        unit: max(step, (step + chunk * row) // 4) / 1e9
        for unit, step, row in zip(told.slow.units, steps, told.fast.row, strict=True)
    }


@dataclass(eq=False, slots=True)
class _Opening:
    ready: trio.Event = field(default_factory=trio.Event)
    gateway: Gateway | None = None
    error: Exception | None = None


class Gateways:
    """One for each model, mode that was asked for, and mode of the head. ``nursery`` keeps their
    heads open."""

    def __init__(self, nursery: trio.Nursery, transport: Transport | None) -> None:
        self._nursery = nursery
        self._transport = transport
        self._all: dict[tuple[str, bool, bool], _Opening] = {}

    async def of(
        self, executor: SpanExecutor, card: ModelCard, *, exact: bool, exact_head: bool
    ) -> Gateway:
        """The gateway of a model, for answers that are ``exact`` or not; the head may be exact all
        the same. Errors: those of :meth:`SpanExecutor.head`."""
        key = card.digest, exact, exact_head
        opening = self._all.get(key)
        if opening is None:
            opening = self._all[key] = _Opening()
            self._nursery.start_soon(self._keep, executor, card, key, opening)
        await opening.ready.wait()
        if opening.gateway is None:
            raise opening.error or KwaaiError(f"the head of {card.id} was closed")
        return opening.gateway

    async def _keep(
        self,
        executor: SpanExecutor,
        card: ModelCard,
        key: tuple[str, bool, bool],
        opening: _Opening,
    ) -> None:
        digest, exact, exact_head = key
        try:
            async with (
                executor.head(card, exact=exact_head) as head,
                trio.open_nursery() as nursery,
            ):
                wanted = Wanted(digest, exact)
                opening.gateway = Gateway(nursery, self._transport, head, wanted)
                opening.ready.set()
                await trio.sleep_forever()
        except Exception as error:  # of an executor: told to whoever waits for it
            opening.error, opening.gateway = error, None
            log.debug("the head of %s", card.id, exc_info=error)
        finally:
            self._all.pop(key, None)
            opening.ready.set()
