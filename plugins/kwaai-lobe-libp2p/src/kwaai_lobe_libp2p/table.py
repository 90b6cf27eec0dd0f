"""The routing table of Kademlia: contacts that answered, in buckets by their distance from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kwaai_lobe_libp2p.statements import Statement, addresses_in, distance, position_of

BUCKET = 20
"""How many contacts a bucket has, and a lookup ends with: *k* in the paper."""

STALE = 900.0
"""After as many seconds without a sign of life a contact makes room for a new one."""


@dataclass(slots=True)
class Contact:
    """A peer that serves the directory: its statement about itself, None until it has sent one."""

    peer: str
    position: bytes
    card: Statement | None
    seen: float

    @property
    def addresses(self) -> tuple[str, ...]:
        return addresses_in(self.card) if self.card is not None else ()


class Table:
    """Contacts; only those enter that were heard themselves, never those that others name."""

    def __init__(self, peer: str, *, clock: Callable[[], float], bucket: int = BUCKET) -> None:
        self._peer = peer
        self._position = position_of(peer)
        self._clock = clock
        self._bucket = bucket
        self._buckets: dict[int, dict[str, Contact]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def __contains__(self, peer: object) -> bool:
        return any(peer in bucket for bucket in self._buckets.values())

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self._buckets.values():
            yield from bucket.values()

    def heard(self, peer: str, card: Statement | None) -> bool:
        """Note a sign of life of a peer that serves the directory; returns whether it is new."""
        if peer == self._peer:
            return False
        position = position_of(peer)
        bucket = self._buckets.setdefault(self._index(position), {})
        known = bucket.pop(peer, None)
        if known is None and len(bucket) >= self._bucket:
            oldest = next(iter(bucket.values()))
            if oldest.seen > self._clock() - STALE:
                return False
            del bucket[oldest.peer]
        if known is not None and (card is None or not card.replaces(known.card)):
            card = known.card
        bucket[peer] = Contact(peer, position, card, self._clock())
        return known is None

    def lost(self, peer: str) -> None:
        """Forget a peer that did not answer; it comes back with its next sign of life."""
        index = self._index(position_of(peer))
        bucket = self._buckets.get(index, {})
        bucket.pop(peer, None)
        if not bucket:
            self._buckets.pop(index, None)

    def nearest(self, key: bytes, n: int = BUCKET) -> list[Contact]:
        """At most ``n`` contacts, nearest to ``key`` first."""
        return sorted(self, key=lambda contact: distance(contact.position, key))[:n]

    def _index(self, position: bytes) -> int:
        return distance(position, self._position).bit_length()
