"""Shortest paths over the borders between blocks: exact, in whole numbers, without I/O.

A *lane* is somebody who computes units, ranges of blocks that begin and end at borders. A path
takes hops from border 0 to the last one; a hop is a run of neighbouring units of one lane, and
entering it has a price, whatever lane was left. So what a path costs up to a border does not
depend on how it came there, and dynamic programming over (border, lane) finds the optimum.

Every price has two parts, which add up apart: the *cost*, and the *lead* that a path may have a
limit on; see :mod:`kwaai_lobe_router.limits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

NEVER = 1 << 200
"""More than any price."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Units ``(lo, hi)`` in ascending order, no two of them overlapping, and what passing each and
    entering the lane adds to a path."""

    units: Sequence[tuple[int, int]]
    costs: Sequence[int]
    leads: Sequence[int]
    cost: int
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A hop: blocks ``[lo, hi)`` of the lane with this index."""

    lane: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Path:
    """The hops of a path, and its two prices."""

    cost: int
    lead: int
    hops: tuple[Stretch, ...]


@dataclass(frozen=True, slots=True)
class Remaining:
    """The least that is still to be paid, ``after``: from before a unit whose lane has been
    entered, and ``border``: from a border; ``best`` is the unit to enter there, or -1."""

    after: list[int]
    border: list[int]
    best: list[int]


class Graph:
    """The units of some lanes, in an order for dynamic programming from the last border back.

    Prices are lists, of the units and of entering the lanes: ``costs`` and ``leads``.
    """

    __slots__ = ("blocks", "costs", "following", "hi", "leads", "lo", "order", "owner")

    def __init__(self, blocks: int, lanes: Sequence[Lane]) -> None:
        units = [unit for lane in lanes for unit in lane.units]
        self.blocks = blocks
        self.owner = [index for index, lane in enumerate(lanes) for _ in lane.units]
        self.lo = [lo for lo, _ in units]
        self.hi = [hi for _, hi in units]
        self.costs = _joined(lane.costs for lane in lanes), [lane.cost for lane in lanes]
        self.leads = _joined(lane.leads for lane in lanes), [lane.lead for lane in lanes]
        meeting = zip(self.owner, self.owner[1:], self.hi, self.lo[1:], strict=False)
        self.following = [
            further if owner == other and hi == lo else -1
            for further, (owner, other, hi, lo) in enumerate(meeting, 1)
        ]
        self.following += [-1] * bool(units)
        self.order = sorted(range(len(units)), key=self.lo.__getitem__, reverse=True)

    def swapped(self) -> Graph:
        """The same with cost and lead exchanged."""
        other = object.__new__(Graph)
        for name in ("blocks", "following", "hi", "lo", "order", "owner"):
            setattr(other, name, getattr(self, name))
        other.costs, other.leads = self.leads, self.costs
        return other

    def remaining(self, units: Sequence[int], enters: Sequence[int]) -> Remaining:
        """The least prices from everywhere to the end: one pass over the units."""
        after, following, owner = [NEVER] * len(units), self.following, self.owner
        los, his = self.lo, self.hi
        border, best = [NEVER] * (self.blocks + 1), [-1] * (self.blocks + 1)
        border[self.blocks] = 0
        for unit in self.order:
            rest = border[his[unit]]
            further = following[unit]
            if further >= 0 and after[further] < rest:
                rest = after[further]
            if rest < NEVER:
                after[unit] = rest = rest + units[unit]
                rest += enters[owner[unit]]
                lo = los[unit]
                if rest < border[lo]:
                    border[lo], best[lo] = rest, unit
        return Remaining(after, border, best)

    def follow(self, left: Remaining) -> Path | None:
        """A path that pays no more than what was found, the same for the same lanes in order."""
        if left.border[0] >= NEVER:
            return None
        hops, at, (costs, enters), (leads, waits) = [], 0, self.costs, self.leads
        cost = lead = 0
        while at < self.blocks:
            unit, start = left.best[at], at
            cost, lead = cost + enters[self.owner[unit]], lead + waits[self.owner[unit]]
            while True:
                cost, lead, at = cost + costs[unit], lead + leads[unit], self.hi[unit]
                further = self.following[unit]
                if further < 0 or left.after[further] >= left.border[at]:
                    break
                unit = further
            hops.append(Stretch(self.owner[unit], start, at))
        return Path(cost, lead, tuple(hops))

    def shortest(self) -> Path | None:
        """The path of the least cost."""
        return self.follow(self.remaining(*self.costs))


def _joined(parts: Iterable[Sequence[int]]) -> list[int]:
    return list(chain.from_iterable(parts))
