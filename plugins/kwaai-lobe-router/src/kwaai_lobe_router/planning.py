"""From what is known of a swarm to a route, to a second one, and to the mending of one: pure.

Every boundary passes the gateway, this node, so a hop costs one round trip to its peer, a fixed
overhead, the peer's queue, and the steps of the units that it computes; this node's own units have
no link. A whole model that this node holds is a route of one such hop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate

from kwaai_core import Hop, Span
from kwaai_lobe_router.fitting import Fit
from kwaai_lobe_router.limits import Abandoned, within
from kwaai_lobe_router.paths import Graph, Lane, Path
from kwaai_lobe_router.refusals import Late, Refusal, Uncovered, Undecided, Unjoined
from kwaai_lobe_router.swarm import (
    LOCAL,
    Candidate,
    Plan,
    Swarm,
    TierOf,
    Unit,
    Wish,
    nobody_is_known,
)

_INITIAL_WINDOW = 14_600
_HOPS_BITS = 10
_TIME_BITS = 64

Penalty = Callable[[Candidate], list[int]]
"""What is put before the times of a candidate's units; it adds up over a route."""


def plan(swarm: Swarm, wish: Wish, tier_of: TierOf = nobody_is_known) -> Plan | Refusal:
    """The route with the least predicted time per token among those that satisfy the wish."""
    fit = Fit(swarm, wish, tier_of)
    if wish.exact:
        uniform = _best(fit, [c for c in fit.candidates if c.fingerprint == wish.fingerprint])
        if isinstance(uniform, Plan):
            return uniform
    return _best(fit, fit.candidates)


def backup(swarm: Swarm, wish: Wish, first: Plan, tier_of: TierOf = nobody_is_known) -> Plan | None:
    """The route to be kept warm beside ``first``, or None where nobody could stand in for anyone.

    As few blocks as possible are computed by the same peer in both, then, if the wish is exact, as
    few as possible by another fingerprint than in the first; among such routes it is the fastest.
    Limits on time do not count: a slower answer is better than none.
    """
    fit = Fit(swarm, wish, tier_of)
    foreign, none = _foreign(swarm, wish, first.hops), _before(swarm.blocks, ())
    mine = {
        peer: _before(swarm.blocks, _blocks(hop for hop in first.hops if hop.peer == peer))
        for peer in {hop.peer for hop in first.hops} - {LOCAL}
    }

    def penalty(candidate: Candidate) -> list[int]:
        return _charged(candidate, mine.get(candidate.peer, none), foreign(candidate.fingerprint))

    second = _least(fit, penalty)
    if second is None:
        return None
    shared = _shared(first.hops, second.hops)
    theirs = _size(hop.span for hop in first.hops if hop.peer != LOCAL)
    return None if _size(shared) >= theirs else replace(second, shared=shared)


def mend(
    swarm: Swarm,
    wish: Wish,
    route: Sequence[Hop],
    lost: Collection[str],
    tier_of: TierOf = nobody_is_known,
) -> Plan | Uncovered | Unjoined:
    """The route again, without the peers that are ``lost``, and changed as little as possible.

    Living hops stay whole and in their places, whatever the wish says of them; one is given up only
    where the units of those who remain do not fit into the hole. Then come, if the wish is exact,
    as few blocks as possible with another fingerprint than before, and the least time per token.
    Limits on time do not count: the answer is under way.
    """
    wish = replace(wish, excluded=wish.excluded | frozenset(lost))
    fit = Fit(swarm, wish, tier_of)
    known = {candidate.peer: candidate for candidate in swarm.candidates}
    living = [hop for hop in route if hop.peer not in wish.excluded]
    kept = [_kept(hop, known.get(hop.peer)) for hop in living]
    foreign, alive = _foreign(swarm, wish, route), _before(swarm.blocks, _blocks(living))

    def penalty(candidate: Candidate) -> list[int]:
        return _charged(candidate, alive, foreign(candidate.fingerprint))

    mended = _least(fit, penalty, kept)
    return fit.refusal([*kept, *fit.candidates]) if mended is None else mended


def _enter(fit: Fit, candidate: Candidate) -> int:
    overhead = 0 if candidate.peer == LOCAL else fit.swarm.overhead
    return candidate.link + candidate.queue + overhead


def _trips_at_first(candidate: Candidate, prompt: int) -> int:
    """The round trips that only the first token takes: the one that opens the session, and those
    for which TCP, on a line that was idle, has to wait before all rows of the prompt are sent (10
    segments at first, RFC 6928, then twice as many in each round trip, RFC 5681)."""
    flights = -(-prompt * candidate.row_bytes // _INITIAL_WINDOW)
    return max(1, flights.bit_length())


def _lane(fit: Fit, candidate: Candidate, penalties: Iterable[int] = ()) -> Lane:
    """A lane whose costs have penalties before the time and, in their last bits, the number of
    hops: of equals the route with fewer."""
    units, prompt = candidate.units, fit.wish.prompt
    costs = [unit.step << _HOPS_BITS for unit in units]
    if penalties:
        costs = [cost + penalty for cost, penalty in zip(costs, penalties, strict=True)]
    enter = _enter(fit, candidate)
    return Lane(
        [(unit.span.lo, unit.span.hi) for unit in units],
        costs,
        [prompt * unit.row for unit in units],
        enter << _HOPS_BITS | 1,
        enter + _trips_at_first(candidate, prompt) * candidate.link,
    )


def _best(fit: Fit, candidates: Sequence[Candidate]) -> Plan | Refusal:
    """The fastest route over candidates within the limits, or the proof that there is none."""
    wish = fit.wish
    graph = Graph(fit.swarm.blocks, [_lane(fit, candidate) for candidate in candidates])
    found = graph.shortest()
    if found is None:
        return fit.refusal(candidates)
    fastest = _plan(fit, candidates, found)
    if wish.max_latency is not None and fastest.latency > wish.max_latency:
        return Late(fit.swarm.model, "token", fastest.latency, wish.max_latency)
    if wish.max_first_token is None or fastest.first_token <= wish.max_first_token:
        return fastest
    return _limited(fit, candidates, graph, wish.max_first_token)


def _limited(fit: Fit, candidates: Sequence[Candidate], graph: Graph, first: int) -> Plan | Refusal:
    """The fastest route whose first token comes in time, or when the earliest one would."""
    model, head, latency = fit.swarm.model, fit.swarm.head, fit.wish.max_latency
    most = None if latency is None else ((latency - head + 1) << _HOPS_BITS) - 1
    try:
        found = within(graph, first - head, most)
        if found is not None:
            return _plan(fit, candidates, found)
        swapped = graph.swapped()
        earliest = swapped.shortest() if most is None else within(swapped, most)
    except Abandoned:
        return Undecided(model, first)
    if earliest is None:
        return Undecided(model, first)
    return Late(model, "first token", earliest.cost + head, first, latency)


def _least(fit: Fit, penalty: Penalty, kept: Sequence[Candidate] = ()) -> Plan | None:
    """The route with the least penalties, and of such the fastest; ``kept`` have no penalty."""
    lanes = [_lane(fit, keeper) for keeper in kept]
    lanes += [_lane(fit, candidate, penalty(candidate)) for candidate in fit.candidates]
    found = Graph(fit.swarm.blocks, lanes).shortest()
    return None if found is None else _plan(fit, [*kept, *fit.candidates], found)


def _charged(candidate: Candidate, first: list[int], second: list[int]) -> list[int]:
    """The penalties of units by two counts of blocks, the first above all."""
    spans = [unit.span for unit in candidate.units]
    return [
        ((first[s.hi] - first[s.lo]) << _TIME_BITS | second[s.hi] - second[s.lo])
        << _TIME_BITS + _HOPS_BITS
        for s in spans
    ]


def _before(blocks: int, marked: Container[int]) -> list[int]:
    """How many blocks before each border are marked."""
    return list(accumulate((block in marked for block in range(blocks)), initial=0))


def _foreign(swarm: Swarm, wish: Wish, hops: Iterable[Hop]) -> Callable[[str], list[int]]:
    """For a fingerprint, how many blocks before each border had another one in a route; none where
    the wish is not exact. Of a peer that is not known any more it was probably the one wished."""
    prints = {candidate.peer: candidate.fingerprint for candidate in swarm.candidates}
    by_block = {
        block: prints.get(hop.peer, wish.fingerprint)
        for hop in hops
        for block in range(hop.span.lo, hop.span.hi)
        if wish.exact
    }

    @cache
    def counted(fingerprint: str) -> list[int]:
        others = {block for block, was in by_block.items() if was != fingerprint}
        return _before(swarm.blocks, others)

    return counted


def _plan(fit: Fit, candidates: Sequence[Candidate], path: Path) -> Plan:
    wish, head = fit.wish, fit.swarm.head
    used = [candidates[hop.lane] for hop in path.hops]
    hops = [
        Hop(candidate.peer, Span(hop.lo, hop.hi))
        for candidate, hop in zip(used, path.hops, strict=True)
    ]
    latency = (path.cost & ((1 << _TIME_BITS + _HOPS_BITS) - 1)) >> _HOPS_BITS
    same = wish.exact and all(c.exact and c.fingerprint == wish.fingerprint for c in used)
    return Plan(tuple(hops), latency + head, path.lead + head, same)


def _kept(hop: Hop, candidate: Candidate | None) -> Candidate:
    """A living hop as something that is taken whole or not at all; what is not known of it any
    more counts nothing."""
    if candidate is None:
        return Candidate(hop.peer, (Unit(hop.span, 0, 0),))
    mine = [u for u in candidate.units if hop.span.lo <= u.span.lo and u.span.hi <= hop.span.hi]
    whole = Unit(hop.span, sum(unit.step for unit in mine), sum(unit.row for unit in mine))
    return replace(candidate, units=(whole,))


def _shared(first: Iterable[Hop], second: Iterable[Hop]) -> tuple[Span, ...]:
    """Where both routes have the same peer, other than this node."""
    return tuple(
        Span(lo, hi)
        for one in first
        for other in second
        if one.peer == other.peer != LOCAL
        and (lo := max(one.span.lo, other.span.lo)) < (hi := min(one.span.hi, other.span.hi))
    )


def _blocks(hops: Iterable[Hop]) -> set[int]:
    return {block for hop in hops for block in range(hop.span.lo, hop.span.hi)}


def _size(spans: Iterable[Span]) -> int:
    return sum(span.hi - span.lo for span in spans)
