"""The two limits of everything that is awaited: silence of a link, and slowness of a step.

A host sends a heartbeat every quarter of a second, from a thread that computes nothing. None for a
second is a lost peer, in a long prefill too. A step that takes long while heartbeats come is no
fault: the host is slow, and the session may move to where it is predicted to be sooner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

from kwaai_core.types import Span

HEARTBEAT_SECONDS = 0.25
SILENCE_SECONDS = 1.0
PAUSE_SECONDS = SILENCE_SECONDS / 2
"""Who looks at the time less often than this has stood still itself, and does not know what the
others did meanwhile."""

_LEAST_SECONDS, _MOST_SECONDS = 0.25, 30.0
_SAMPLES = 128
_ENOUGH = 10
"""Of so many samples the largest does not count: it may be a pause, not the pace."""
_GROWTH, _LEAST_USUAL = 1.25, 0.001
"""What is usual of a lone row, at least a millisecond, grows by so much with each one: a host that
begins to crawl, or has crawled from its first step on, is not taken for one that was always so."""


class Silence:
    """For how long a link has not been heard. Whoever asks has read everything that has come, so
    that a pause of its own is not taken for the peer's."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._silent = 0.0

    def heard(self, now: float) -> None:
        """Something has come."""
        self._since, self._silent = now, 0.0

    def lost(self, now: float) -> bool:
        """Whether nothing has come for too long. To be asked several times a second: a pause counts
        no more than :data:`PAUSE_SECONDS`, so that one who is often busy finds out as well."""
        self._silent += min(now - self._since, PAUSE_SECONDS)
        self._since = now
        return self._silent > SILENCE_SECONDS


class Pace:
    """How long steps through a span have taken, the lone rows and the chunks apart, and to open a
    session there; seconds. ``lone`` is what a lone row is said to take there: it counts as one that
    was seen."""

    def __init__(self, rtt: float = 0.0, lone: float | None = None) -> None:
        self.rtt = rtt
        self._lone: deque[float] = deque([] if lone is None else [lone], maxlen=_SAMPLES)
        self._rows: deque[float] = deque(maxlen=_SAMPLES)
        self._openings: deque[float] = deque(maxlen=_SAMPLES)

    @classmethod
    def told(cls, span: Span, rtt: float, lone: Mapping[Span, float]) -> Pace:
        """That of a span of a host who is ``rtt`` seconds away, and says what a lone row takes
        through each of its units."""
        parts = [seconds for unit, seconds in lone.items() if span.lo <= unit.lo < span.hi]
        return cls(rtt, sum(parts) if parts else None)

    def opened(self, seconds: float) -> None:
        """A session was opened within so long."""
        self._openings.append(seconds)

    def opening_limit(self) -> float:
        """After how many seconds one that is being opened is slow. No row is computed for it, so
        that of a link's silence will do where none took long before."""
        return max(SILENCE_SECONDS, 4 * max(self._openings, default=0.0) + self.rtt)

    def observe(self, rows: int, seconds: float) -> None:
        """A step took so long, from its sending to its result."""
        if rows > 1:
            self._rows.append(seconds / rows)
        else:
            most = _GROWTH * max(_usual(self._lone), _LEAST_USUAL) if self._lone else seconds
            self._lone.append(min(seconds, most))

    def limit(self, rows: int) -> float:
        """After how many seconds a step of so many rows is slow: 4 p99 + RTT, within bounds."""
        samples = self._lone if rows == 1 else self._rows
        if not samples:
            return _MOST_SECONDS
        return min(max(4 * _usual(samples) * rows + self.rtt, _LEAST_SECONDS), _MOST_SECONDS)


def _usual(samples: Collection[float]) -> float:
    """The 99th percentile of some samples."""
    few = max(1, len(samples) // 100) if len(samples) >= _ENOUGH else 0
    return sorted(samples)[-1 - few]
