"""How far an answer has come, and whether it is sooner at its end if it moves elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from kwaai_core.span.hop import Place
from kwaai_lobe_router.swarm import Candidate, Plan

_GAPS = 8
_LEAST_AHEAD = 16
"""An answer is expected to go on for as long as it has until now, and at least so many tokens."""


class Progress:
    """What an answer has given: ``tokens`` of at most ``most``, after a prompt of ``prompt``."""

    def __init__(self, now: float) -> None:
        self.prompt = self.most = 1
        self.tokens = 0
        self._last = now
        self._gaps: deque[float] = deque(maxlen=_GAPS)

    @property
    def started(self) -> bool:
        """Whether anything of it has been given; from then on it cannot begin anew unnoticed."""
        return self.tokens > 0

    def came(self, tokens: int, now: float) -> None:
        """So many more tokens were given."""
        if tokens > 0:
            if self.started:
                self._gaps.append((now - self._last) / tokens)
            self.tokens += tokens
            self._last = now

    @property
    def ahead(self) -> int:
        """How many tokens are expected still to come."""
        return max(1, min(self.most - self.tokens, max(self.tokens, _LEAST_AHEAD)))

    def sooner(self, found: Plan, replay: float, took: float) -> bool:
        """Whether it ends sooner by ``found``, what is replayed first included, than where a token
        takes as long as of late, or as its slowest step, which ``took`` so long; nanoseconds."""
        pace = max(took, median(self._gaps) * 1e9 if self._gaps else 0.0)
        return replay + self.ahead * found.latency < self.ahead * pace

    def replay(
        self, found: Plan, kept: Iterable[Place], candidates: Iterable[Candidate], rows: int
    ) -> float:
        """Nanoseconds that the new hosts of a plan take until they hold what the old ones did: the
        prompt in chunks, and every other token as a lone row, ``rows`` of them in a call."""
        known = {candidate.peer: candidate for candidate in candidates}
        spans = {place.span for place in kept}
        total = 0.0
        for hop in found.hops:
            candidate = known.get(hop.peer)
            if hop.span in spans or candidate is None:
                continue
            units = [u for u in candidate.units if hop.span.lo <= u.span.lo < hop.span.hi]
            row, step = sum(u.row for u in units), sum(u.step for u in units)
            calls = -(-self.tokens // max(rows, 1))
            alone = max(self.tokens * row, calls * step)
            total += candidate.link + candidate.queue + self.prompt * row + alone
        return total
