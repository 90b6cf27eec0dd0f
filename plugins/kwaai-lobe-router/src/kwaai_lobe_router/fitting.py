"""Who satisfies a wish, and what is missing where nobody does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import groupby

from kwaai_core import Span, Tier
from kwaai_lobe_router.refusals import Missing, Objection, Uncovered, Unjoined
from kwaai_lobe_router.swarm import LOCAL, MAX_BLOCKS, Candidate, Swarm, TierOf, Wish

_TIERS: tuple[Tier, ...] = ("unknown", "known", "verified", "trusted")


class Fit:
    """The candidates that satisfy a wish, with the units that they may compute for it, in the
    order that decides between equals."""

    def __init__(self, swarm: Swarm, wish: Wish, tier_of: TierOf) -> None:
        if not 0 < swarm.blocks <= MAX_BLOCKS:
            raise ValueError(f"{swarm.blocks} blocks: a model has 1 to {MAX_BLOCKS}")
        self.swarm, self.wish = swarm, wish
        self._tier_of = tier_of
        ordered = sorted(swarm.candidates, key=self._rank)
        useful = (c for c in ordered if self.objection(c) is None)
        self.candidates = [self._allowed(candidate) for candidate in useful]

    def _rank(self, candidate: Candidate) -> tuple[bool, bytes]:
        mark = sha256(f"{self.wish.salt}\0{candidate.peer}".encode()).digest()
        return candidate.peer != LOCAL, mark

    def objection(self, candidate: Candidate) -> Objection | None:
        """Why a candidate cannot be used, if it cannot. This node satisfies any tier of itself."""
        wish, far = self.wish, candidate.peer != LOCAL
        if candidate.peer in wish.excluded:
            return "excluded"
        if far and wish.min_tier != "unknown" and self._below(candidate.peer):
            return "tier"
        if wish.exact and not candidate.exact:
            return "exact"
        if far and wish.dtype not in candidate.dtypes:
            return "dtype"
        return "room" if candidate.room < wish.tokens else None

    def _below(self, peer: str) -> bool:
        return _TIERS.index(self._tier_of(peer)) < _TIERS.index(self.wish.min_tier)

    def _middle(self) -> tuple[int, int]:
        """The blocks that others may compute, half-open."""
        k = self.wish.local_blocks
        return k, self.swarm.blocks - k

    def _allowed(self, candidate: Candidate) -> Candidate:
        if candidate.peer == LOCAL or not self.wish.local_blocks:
            return candidate
        lo, hi = self._middle()
        units = tuple(u for u in candidate.units if lo <= u.span.lo and u.span.hi <= hi)
        return replace(candidate, units=units)

    def refusal(self, candidates: Iterable[Candidate]) -> Uncovered | Unjoined:
        """What is missing, given that these candidates do not make a route."""
        units = {(u.span.lo, u.span.hi) for c in candidates for u in c.units}
        held = {block for lo, hi in units for block in range(lo, hi)}
        lacking = [block for block in range(self.swarm.blocks) if block not in held]
        if lacking:
            return self._uncovered(lacking)
        reached = {0}
        for lo, hi in sorted(units):
            if lo in reached:
                reached.add(hi)
        return Unjoined(self.swarm.model, max(reached))

    def _uncovered(self, lacking: Sequence[int]) -> Uncovered:
        lo, hi = self._middle()
        runs = groupby(enumerate(lacking), lambda at: (at[1] - at[0], lo <= at[1] < hi))
        spans = [[block for _, block in run] for _, run in runs]
        wish = self.wish
        return Uncovered(
            self.swarm.model,
            tuple(self._missing(Span(run[0], run[-1] + 1)) for run in spans),
            wish.min_tier,
            wish.tokens,
            wish.local_blocks,
            wish.dtype,
        )

    def _missing(self, span: Span) -> Missing:
        lo, hi = self._middle()
        if not lo <= span.lo < hi:
            return Missing(span, local=True)
        holders = [c for c in self.swarm.candidates if _holds(c, span)]
        why = Counter[Objection](self.objection(holder) or "cut" for holder in holders)
        tiers = [self._tier_of(c.peer) for c in holders if self.objection(c) == "tier"]
        return Missing(span, dict(why), max(tiers, key=_TIERS.index, default=None))


def _holds(candidate: Candidate, span: Span) -> bool:
    return any(u.span.lo < span.hi and span.lo < u.span.hi for u in candidate.units)
