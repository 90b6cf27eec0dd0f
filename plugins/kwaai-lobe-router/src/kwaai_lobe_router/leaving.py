"""Peers that an answer does not go to for a while, and which of them were full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import inf

import trio

from kwaai_core import NoPeerAvailable, Span
from kwaai_core.span.hop import Blame, Trouble
from kwaai_lobe_router.refusals import Refusal, Uncovered, blocks
from kwaai_lobe_router.swarm import LOCAL

LOST_SECONDS, LEAVING_SECONDS, REFUSED_SECONDS = 5.0, 60.0, 600.0
"""For how long a session does not go to a peer that was lost, leaves, or refused it."""

MOST_LOSSES = 3
"""A peer that was lost so often in an answer, without a word of it in between, is not used by it
any more: else an answer that is lost wherever it is replayed would never end."""

LEAST_SECONDS, MOST_SECONDS = 0.25, 60.0
"""The same for one that was full: where it did not say until when, and whatever it said."""


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
        self._lost: dict[str, float] = {}
        self._losses: dict[str, tuple[int, int]] = {}

    def note(self, peer: str, trouble: Trouble, tokens: int) -> None:
        """A place at a peer is of no use any more, or soon; one that is only slow is not left.
        Until now ``tokens`` of the answer were given."""
        now, blame = trio.current_time(), trouble.blame
        if blame is Blame.LOST:
            self._note_loss(peer, tokens, now)
        elif blame is Blame.FULL:
            self.full[peer] = trouble.place.span
            self.exclude(peer, now + min(max(trouble.retry_after, LEAST_SECONDS), MOST_SECONDS))
        elif blame is Blame.REFUSED:
            self.exclude(peer, now + REFUSED_SECONDS)
        elif blame is Blame.LEAVING:
            self.exclude(peer, now + LEAVING_SECONDS)

    def _note_loss(self, peer: str, tokens: int, now: float) -> None:
        before, losses = self._losses.get(peer, (tokens, 0))
        losses = losses + 1 if before == tokens else 1
        self._losses[peer] = tokens, losses
        if losses == 1:
            self._lost[peer] = now
        else:
            self.exclude(peer, now + (LOST_SECONDS if losses < MOST_LOSSES else REFUSED_SECONDS))

    def exclude(self, peer: str, until: float) -> None:
        """Do not go to a peer before a time."""
        self._until[peer] = max(until, self._until.get(peer, 0.0))

    def back(self, peers: Iterable[str]) -> None:
        """It goes over these again, whatever was before."""
        for peer in peers:
            self._lost.pop(peer, None)

    @contextmanager
    def without(self, peers: Iterable[str]) -> Iterator[None]:
        """Leave these out as well, for as long as the context is open."""
        before = dict(self._until)
        self._until.update(dict.fromkeys(peers, inf))
        try:
            yield
        finally:
            self._until = before

    def now(self, asked: Callable[[str], float] | None = None) -> frozenset[str]:
        """Those that are left out now. With ``asked``, which says when a peer was asked the last
        question that it has answered, not those who were lost once, and were heard again since."""
        now = trio.current_time()
        left = {peer for peer, until in self._until.items() if until > now}
        for peer, at in self._lost.items():
            if now < at + LOST_SECONDS and (asked is None or asked(peer) <= at):
                left.add(peer)
        return frozenset(left)

    def lost(self) -> list[str]:
        """Those whose link was lost, as people are told of them."""
        return ["this node" if peer == LOCAL else f"…{peer[-6:]}" for peer in self._losses]

    def no_room(self, model: str) -> NoRoom:
        """Who was full, and when it is worth while to ask again."""
        now = trio.current_time()
        pauses = [self._until.get(peer, now) - now for peer in self.full]
        who = ", ".join(f"{peer} ({blocks(span)})" for peer, span in sorted(self.full.items()))
        are = "are" if len(self.full) > 1 else "is"
        words = f"no room for another answer of {model}: {who or 'every host'} {are} full"
        return NoRoom(words, retry_after=max(1.0, *pauses, 0.0))


def lacks_room(refusal: Refusal) -> bool:
    """Whether there would be a route if its hosts had room."""
    return isinstance(refusal, Uncovered) and any(
        "room" in missing.objections for missing in refusal.missing
    )
