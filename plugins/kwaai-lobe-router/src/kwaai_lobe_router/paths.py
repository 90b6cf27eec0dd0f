"""Shortest paths over the borders between blocks: exact, in whole numbers, without I/O.

A *lane* is somebody who computes units, ranges of blocks that begin and end at borders. A path
takes hops from border 0 to the last one; a hop is a run of neighbouring units of one lane, and
entering it has a price, whatever lane was left. So what a path costs up to a border does not
depend on how it came there, and dynamic programming over (border, lane) finds the optimum.

Every price has two parts, which add up apart: the *cost*, and the *lead* that a path may have a
limit on. Under a limit, Lagrangian relaxation (Handler and Zang 1980) gives a good path within it
and a bound; labels that are not dominated then close what is left between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain

NEVER = 1 << 200
"""More than any price."""

MAX_LABELS = 50_000
"""After as many labels a search takes what it has, so that no announcement keeps a node busy."""


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

    def swapped(self) -> Path:
        return Path(self.lead, self.cost, self.hops)


class Abandoned(Exception):
    """A search had too many labels before it found anything within its limits."""


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

    def within(self, limit: int, most: int | None = None) -> Path | None:
        """The path of the least cost among those with a lead of at most ``limit``.

        ``most`` bounds its cost. Errors: :class:`Abandoned`.
        """
        by_cost, by_lead = self.remaining(*self.costs), self.remaining(*self.leads)
        over, under = self.follow(by_cost), self.follow(by_lead)
        if over is None or under is None or under.lead > limit:
            return None
        if over.lead <= limit:
            return over if most is None or over.cost <= most else None
        weights, relaxed, under = self._relaxed(over, under, limit)
        return _Search(self, weights, relaxed, by_lead, limit, most, under).run()

    def _relaxed(
        self, over: Path, under: Path, limit: int
    ) -> tuple[tuple[int, int], Remaining, Path]:
        """The weights of cost and lead whose sum bounds best what a path within the limit costs,
        what remains by them, and the best path within the limit on the way there."""
        while True:
            weights = over.lead - under.lead, under.cost - over.cost
            left = self.remaining(*(self._mixed(weights, part) for part in (0, 1)))
            path = self.follow(left)
            bound = weights[0] * over.cost + weights[1] * over.lead
            if path is None or left.border[0] >= bound:
                return weights, left, under
            if path.lead > limit:
                over = path
            else:
                under = path

    def _mixed(self, weights: tuple[int, int], part: int) -> list[int]:
        first, second = weights
        pairs = zip(self.costs[part], self.leads[part], strict=True)
        return [first * cost + second * lead for cost, lead in pairs]


def _joined(parts: Iterable[Sequence[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


@dataclass(frozen=True, slots=True)
class _Label:
    """A way through a unit, what it has cost, and its hop, which began at ``start``, after
    ``before``."""

    cost: int
    lead: int
    unit: int
    start: int
    before: _Label | None


class _Search:
    """All paths that might cost less than the best one known, by their relaxed price.

    The ways out of a border are taken in that order too, each when the one before had its turn.
    """

    def __init__(
        self,
        graph: Graph,
        weights: tuple[int, int],
        relaxed: Remaining,
        by_lead: Remaining,
        limit: int,
        most: int | None,
        known: Path,
    ) -> None:
        self._graph, self._weights, self._relaxed = graph, weights, relaxed
        self._by_lead, self._limit = by_lead, limit
        self._most = known.cost if most is None else min(most + 1, known.cost)
        self._known = known if most is None or known.cost <= most else None
        self._ways = self._sorted_ways()
        self._heap: list[tuple[int, int, _Label, int]] = []
        self._kept: dict[int, list[tuple[int, int]]] = {}
        self._count = 0

    def _sorted_ways(self) -> list[list[tuple[int, int]]]:
        """For each border the units that begin there, and the least relaxed price by way of it."""
        graph, after = self._graph, self._relaxed.after
        first, second = self._weights
        costs, leads = self._graph.costs[1], self._graph.leads[1]
        ways: list[list[tuple[int, int]]] = [[] for _ in range(graph.blocks + 1)]
        for unit, owner in enumerate(graph.owner):
            if after[unit] < NEVER:
                price = after[unit] + first * costs[owner] + second * leads[owner]
                ways[graph.lo[unit]].append((price, unit))
        for way in ways:
            way.sort()
        return ways

    def run(self) -> Path | None:
        self._leave(_Label(0, 0, -1, 0, None), 0)
        while self._heap:
            price, _, label, way = heappop(self._heap)
            if price >= self._worthless():
                break
            if self._count > MAX_LABELS:
                if self._known is None:
                    raise Abandoned
                break
            if way >= 0:
                self._enter(label, way)
            else:
                self._spread(label)
        return self._known

    def _worthless(self) -> int:
        """The relaxed price from which on no path within the limit costs less than is known."""
        return self._weights[0] * self._most + self._weights[1] * self._limit

    def _border(self, label: _Label) -> int:
        return self._graph.hi[label.unit] if label.unit >= 0 else 0

    def _spread(self, label: _Label) -> None:
        """Go on from a label: in the same lane, and into others; or be the best path so far."""
        at = self._border(label)
        if at == self._graph.blocks:
            if label.cost < self._most:
                self._most, self._known = label.cost, self._path(label)
            return
        further = self._graph.following[label.unit]
        if further >= 0 and self._fresh(label, label.unit):
            self._pass(label, label.cost, label.lead, further)
        if self._fresh(label, -at):  # borders beyond 0 have places of their own, below 0
            self._leave(label, 0)

    def _fresh(self, label: _Label, place: int) -> bool:
        """Keep a label, unless another at its place is as good in both prices."""
        kept = self._kept.setdefault(place, [])
        if any(cost <= label.cost and lead <= label.lead for cost, lead in kept):
            return False
        kept.append((label.cost, label.lead))
        return True

    def _leave(self, label: _Label, way: int) -> None:
        ways = self._ways[self._border(label)]
        if way < len(ways):
            paid = self._weights[0] * label.cost + self._weights[1] * label.lead
            self._push(paid + ways[way][0], label, way)

    def _enter(self, label: _Label, way: int) -> None:
        self._leave(label, way + 1)
        at = self._border(label)
        unit = self._ways[at][way][1]
        owner = self._graph.owner[unit]
        cost = label.cost + self._graph.costs[1][owner]
        lead = label.lead + self._graph.leads[1][owner]
        self._pass(_Label(cost, lead, -1, at, label), cost, lead, unit)

    def _pass(self, label: _Label, cost: int, lead: int, unit: int) -> None:
        """Through a unit of the lane that a label is in, if that can end within the limit."""
        after = self._relaxed.after[unit]
        if after >= NEVER or lead + self._by_lead.after[unit] > self._limit:
            return
        price = self._weights[0] * cost + self._weights[1] * lead + after
        cost, lead = cost + self._graph.costs[0][unit], lead + self._graph.leads[0][unit]
        self._push(price, _Label(cost, lead, unit, label.start, label.before), -1)

    def _push(self, price: int, label: _Label, way: int) -> None:
        if price < self._worthless():
            self._count += 1
            heappush(self._heap, (price, self._count, label, way))

    def _path(self, label: _Label) -> Path:
        hops, at = list[Stretch](), label
        while at.before is not None:
            hops.append(Stretch(self._graph.owner[at.unit], at.start, self._border(at)))
            at = at.before
        return Path(label.cost, label.lead, tuple(reversed(hops)))
