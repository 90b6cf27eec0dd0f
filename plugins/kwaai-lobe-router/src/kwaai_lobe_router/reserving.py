"""Room that a host keeps for the sessions of peers which stand by: asked for, bounded, short-lived.

A gateway says with every status request how many of its answers would move here if a part of their
route were lost. The host keeps room for that many more sessions, within limits, and says how many
they are. Nothing has to be given back: what is not asked for again is free some seconds later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kwaai_core.span.roles import SpanLoad

RESERVED_SECONDS = 6.0
"""For how long room is kept after it was last asked for: three requests may be lost."""

MOST_PER_PEER = 2
"""Sessions of one peer for which room is kept. All peers together have at most half of all room."""


@dataclass(frozen=True, slots=True)
class _Kept:
    sessions: int
    until: float


class Reservations:
    """For how many more sessions of which peers one host of units keeps room."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def at(self, now: float) -> Mapping[str, int]:
        """What is kept for whom."""
        self._kept = {peer: kept for peer, kept in self._kept.items() if kept.until > now}
        return {peer: kept.sessions for peer, kept in self._kept.items()}

    def ask(self, peer: str, sessions: int, load: SpanLoad, now: float) -> int:
        """A peer wants room for so many more; how many it gets, in place of what it had."""
        others = sum(self.at(now).values()) - self.release(peer)
        room = min((load.free + load.sessions - load.idle) // 2, load.free) - others
        granted = max(0, min(sessions, MOST_PER_PEER, room))
        if granted:
            self._kept[peer] = _Kept(granted, now + RESERVED_SECONDS)
        return granted

    def release(self, peer: str) -> int:
        """A peer wants none any more; how many it had."""
        kept = self._kept.pop(peer, None)
        return kept.sessions if kept is not None else 0
