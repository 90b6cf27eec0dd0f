"""Peers that an answer does not go to for a while, and which of them were full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import inf

import trio

from kwaai_core import NoPeerAvailable, Span
from kwaai_core.span.hop import Blame, Trouble
from kwaai_lobe_router.refusals import Refusal, Uncovered, blocks

LOST_SECONDS, LEAVING_SECONDS, REFUSED_SECONDS = 5.0, 60.0, 600.0
"""For how long a session does not go to a peer that was lost, leaves, or refused it."""

LEAST_SECONDS = 0.25
"""The same for one that was full, and did not say until when."""


class NoRoom(NoPeerAvailable):
    """Hosts of a route are full, and nothing of the answer was given yet.

    Who waited for room and kept what it has elsewhere could wait for one that does the same: the
    answer ends everywhere, and may begin anew.
    """


class Left:
    """The peers that one answer has left. ``full`` are those that had no room for which blocks."""

    def __init__(self) -> None:
        self.full: dict[str, Span] = {}
        self._until: dict[str, float] = {}

    def note(self, peer: str, trouble: Trouble) -> None:
        """A place at a peer is of no use any more, or soon; one that is only slow is not left."""
        now, blame = trio.current_time(), trouble.blame
        if blame is Blame.LOST:
            self.exclude(peer, now + LOST_SECONDS)
        elif blame is Blame.FULL:
            self.full[peer] = trouble.place.span
            self.exclude(peer, now + max(trouble.retry_after, LEAST_SECONDS))
        elif blame is Blame.REFUSED:
            self.exclude(peer, now + REFUSED_SECONDS)
        elif blame is Blame.LEAVING:
            self.exclude(peer, now + LEAVING_SECONDS)

    def exclude(self, peer: str, until: float) -> None:
        """Do not go to a peer before a time."""
        self._until[peer] = max(until, self._until.get(peer, 0.0))

    @contextmanager
    def without(self, peers: Iterable[str]) -> Iterator[None]:
        """Leave these out as well, for as long as the context is open."""
        before = dict(self._until)
        self._until.update(dict.fromkeys(peers, inf))
        try:
            yield
        finally:
            self._until = before

    def now(self) -> frozenset[str]:
        """Those that are left out now."""
        now = trio.current_time()
        return frozenset(peer for peer, until in self._until.items() if until > now)

    def no_room(self, model: str) -> NoRoom:
        """Who was full, and when it is worth while to ask again."""
        now = trio.current_time()
        pauses = [self._until.get(peer, now) - now for peer in self.full]
        who = ", ".join(f"{peer} ({blocks(span)})" for peer, span in sorted(self.full.items()))
        words = f"no room for another answer of {model}: {who or 'every host'} is full"
        return NoRoom(words, retry_after=max(1.0, *pauses, 0.0))


def lacks_room(refusal: Refusal) -> bool:
    """Whether there would be a route if its hosts had room."""
    return isinstance(refusal, Uncovered) and any(
        "room" in missing.objections for missing in refusal.missing
    )
