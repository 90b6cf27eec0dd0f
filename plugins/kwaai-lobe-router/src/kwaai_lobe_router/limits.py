"""The shortest path under a limit on its lead: exact, and within a bounded time.

Lagrangian relaxation (Handler and Zang 1980) gives a good path within the limit, and a bound on
what any such path costs. Labels that are not dominated then close what is left between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from kwaai_lobe_router.paths import NEVER, Graph, Path, Remaining, Stretch

MAX_LABELS = 50_000
"""After as many labels a search takes what it has, so that no announcement keeps a node busy."""


class Abandoned(Exception):
    """A search had too many labels before it found anything within its limits."""


def within(graph: Graph, limit: int, most: int | None = None) -> Path | None:
    """The path of the least cost among those with a lead of at most ``limit``.

    ``most`` bounds its cost. Errors: :class:`Abandoned`.
    """
    by_cost, by_lead = graph.remaining(*graph.costs), graph.remaining(*graph.leads)
    over, under = graph.follow(by_cost), graph.follow(by_lead)
    if over is None or under is None or under.lead > limit:
        return None
    if over.lead <= limit:
        return over if most is None or over.cost <= most else None
    weights, relaxed, under = _relaxed(graph, over, under, limit)
    return _Search(graph, weights, relaxed, by_lead, limit, most, under).run()


def _relaxed(
    graph: Graph, over: Path, under: Path, limit: int
) -> tuple[tuple[int, int], Remaining, Path]:
    """The weights of cost and lead whose sum bounds best what a path within the limit costs,
    what remains by them, and the best path within the limit on the way there."""
    while True:
        weights = over.lead - under.lead, under.cost - over.cost
        left = graph.remaining(*(_mixed(graph, weights, part) for part in (0, 1)))
        path = graph.follow(left)
        bound = weights[0] * over.cost + weights[1] * over.lead
        if path is None or left.border[0] >= bound:
            return weights, left, under
        if path.lead > limit:
            over = path
        else:
            under = path


def _mixed(graph: Graph, weights: tuple[int, int], part: int) -> list[int]:
    first, second = weights
    pairs = zip(graph.costs[part], graph.leads[part], strict=True)
    return [first * cost + second * lead for cost, lead in pairs]


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
