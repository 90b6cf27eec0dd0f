"""What peers have signed of the blocks that they hold: looked up, kept for a while, compared."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import trio

from kwaai_core import KwaaiError, NotVerified, Span, Transport
from kwaai_lobe_router.facts import SlowFacts, provider_key, read_slow
from kwaai_lobe_router.newest import Newest

log = logging.getLogger(__name__)

LOOKUP_SECONDS, CHECK_SECONDS = 3.0, 1.0
"""For a record to be found, and for how long a host that has answered waits for its own."""

FRESH_SECONDS = 60.0
_AT_ONCE = 16
_FIELDS = ("architecture", "blocks", "width", "units", "fingerprint", "exact")
"""What a host may not say otherwise in its record and when it is asked."""


@dataclass(frozen=True, slots=True)
class _Looked:
    slow: SlowFacts | None
    at: float


class Records:
    """The records of one model's holders, each looked up again when it is old."""

    def __init__(self, nursery: trio.Nursery, transport: Transport, digest: str) -> None:
        self._nursery = nursery
        self._looking: dict[str, trio.Event] = {}
        self._transport = transport
        self._digest = digest
        self._looked = Newest[str, _Looked]()
        self._limit = trio.CapacityLimiter(_AT_ONCE)

    async def of(self, peer: str, *, again: bool = False) -> SlowFacts | None:
        """What a peer has signed; None where there is nothing that counts, or no directory.

        ``again``: whatever is known of it already.
        """
        looked, now = self._looked.get(peer), trio.current_time()
        if looked is None or again or now - looked.at > FRESH_SECONDS:
            async with self._limit:
                looked = self._looked[peer] = _Looked(await self._lookup(peer), now)
        return looked.slow

    async def _lookup(self, peer: str) -> SlowFacts | None:
        try:
            key = provider_key(self._digest)
            record = await self._transport.lookup(peer, key, seconds=LOOKUP_SECONDS)
            slow = None if record is None else read_slow(record.body)
        except KwaaiError as error:
            log.debug("the record of %s: %s", peer, error)
            return None
        return slow if slow is not None and slow.digest == self._digest else None

    async def _look(self, peer: str, looked: trio.Event) -> None:
        try:
            await self.of(peer)
        finally:
            del self._looking[peer]
            looked.set()

    async def of_all(self, peers: Iterable[str]) -> Mapping[str, SlowFacts]:
        """Those of all these peers that have one, looked up at once."""
        found = dict[str, SlowFacts]()

        async def look(peer: str) -> None:
            slow = await self.of(peer)
            if slow is not None:
                found[peer] = slow

        with trio.move_on_after(2 * LOOKUP_SECONDS):
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(look, peer)
        return found

    async def check(self, peer: str, told: SlowFacts) -> None:
        """Hold a peer to what it has signed, which may be newer than what is known of it.

        Where the directory takes long the peer is believed until the next time; meanwhile
        ``nursery`` waits for its record.

        Errors: :class:`NotVerified` for one that says something else when it is asked.
        """
        looked = self._looking.get(peer)
        if looked is None:
            looked = self._looking[peer] = trio.Event()
            self._nursery.start_soon(self._look, peer, looked)
        with trio.move_on_after(CHECK_SECONDS):
            await looked.wait()
        signed = self._looked[peer].slow if peer in self._looked else None
        if _differ(signed, told) and (names := _differ(await self.of(peer, again=True), told)):
            words = ", ".join(names)
            raise NotVerified(f"{peer} says otherwise than it has signed: {words}")


def _differ(signed: SlowFacts | None, told: SlowFacts) -> list[str]:
    if signed is None:
        return []
    return [name for name in _FIELDS if getattr(signed, name) != getattr(told, name)]


def worth_asking(
    slow: Mapping[str, SlowFacts], known: Collection[str], most: int, salt: str
) -> list[str]:
    """At most so many peers, by what they have signed, so that each block has as many as can be;
    those who are ``known`` anyway count. Among equals a hash decides, another for each node."""
    held = {peer: tuple(_merged(facts.units)) for peer, facts in slow.items()}
    counts = [0] * max((hi for spans in held.values() for _, hi in spans), default=0)

    def take(peer: str) -> None:
        for lo, hi in held[peer]:
            counts[lo:hi] = [count + 1 for count in counts[lo:hi]]

    def scarcest(peer: str) -> int:
        return min(min(counts[lo:hi]) for lo, hi in held[peer])

    for peer in known:
        if peer in slow:
            take(peer)
    left = sorted(slow.keys() - set(known), key=lambda p: sha256(f"{salt}\0{p}".encode()).digest())
    heap = [(scarcest(peer), order, peer) for order, peer in enumerate(left)]
    heapq.heapify(heap)
    chosen = list[str]()
    while heap and len(chosen) < most:
        thought, order, peer = heap[0]
        count = scarcest(peer)
        if count > thought:  # counts only grow, so whoever comes first when looked at is the first
            heapq.heapreplace(heap, (count, order, peer))
            continue
        heapq.heappop(heap)
        chosen.append(peer)
        take(peer)
    return chosen


def _merged(units: Iterable[Span]) -> Iterator[tuple[int, int]]:
    """As few ranges of blocks as units in ascending order can be said in."""
    begin = end = 0
    for unit in units:
        if unit.lo != end:
            if begin < end:
                yield begin, end
            begin = unit.lo
        end = unit.hi
    yield begin, end
