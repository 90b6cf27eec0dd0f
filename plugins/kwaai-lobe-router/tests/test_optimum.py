"""Plans against every route there is, on as many random small swarms as ``--swarms`` says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from every_route import Case, Found, by_peer, chains, permitted, predicted, random_case, routes

from kwaai_core import Hop, Span
from kwaai_lobe_router import limits
from kwaai_lobe_router.planning import backup, mend, plan
from kwaai_lobe_router.refusals import Late, Uncovered, Undecided, Unjoined
from kwaai_lobe_router.swarm import LOCAL, Candidate, Plan, Swarm, Unit, Wish


def within(case: Case, found: Found) -> bool:
    wish = case.wish
    return (wish.max_latency is None or found.latency <= wish.max_latency) and (
        wish.max_first_token is None or found.first_token <= wish.max_first_token
    )


def best(case: Case) -> tuple[list[Found], Found | None]:
    """All routes but for limits, and the best of those within them."""
    every = routes(case)
    fitting = [found for found in every if within(case, found)]
    if case.wish.exact and any(found.uniform for found in fitting):
        fitting = [found for found in fitting if found.uniform]
    return every, min(fitting, key=lambda found: (found.latency, len(found.hops)), default=None)


def check_plan(case: Case) -> str:
    """Compare one plan; what came of it."""
    every, optimum = best(case)
    planned = plan(case.swarm, case.wish, case.tier_of)
    if isinstance(planned, Plan):
        assert optimum is not None
        assert (planned.latency, len(planned.hops)) == (optimum.latency, len(optimum.hops))
        assert permitted(case, planned.hops)
        told = predicted(case, planned.hops)
        assert (told.latency, told.first_token) == (planned.latency, planned.first_token)
        assert within(case, told)
        assert planned.same_text == (case.wish.exact and told.uniform)
        return "same text" if planned.same_text else "planned"
    assert optimum is None
    if isinstance(planned, Late):
        check_late(case, planned, every)
    else:
        assert every == []
        assert isinstance(planned, Uncovered | Unjoined)
    return type(planned).__name__ + getattr(planned, "what", "")


def check_late(case: Case, late: Late, every: list[Found]) -> None:
    """The refusal names the best value that any route has."""
    if late.what == "token":
        assert late.found == min(found.latency for found in every)
        assert late.asked == case.wish.max_latency
        return
    bound = case.wish.max_latency
    slow = [f.first_token for f in every if bound is None or f.latency <= bound]
    assert (late.found, late.within) == (min(slow), bound)
    assert late.asked == case.wish.max_first_token


def test_a_plan_is_the_optimum_and_a_refusal_is_a_proof(swarms: int) -> None:
    outcomes = Counter(check_plan(random_case(seed)) for seed in range(swarms))
    for outcome in ("planned", "same text", "Uncovered", "Latetoken", "Latefirst token"):
        assert outcomes[outcome] > swarms // 100, outcomes


def binding(case: Case) -> Case | None:
    """The case with limits that the fastest route does not keep, but another one might."""
    open_wish = replace(case.wish, max_latency=None, max_first_token=None)
    every, fastest = best(replace(case, wish=open_wish))
    if fastest is None or len(every) < 3:
        return None
    earliest = min(found.first_token for found in every)
    if earliest == fastest.first_token:
        return None
    asked = random.Random(str(case)).randrange(earliest, fastest.first_token)
    wish = replace(open_wish, max_first_token=asked)
    return replace(case, wish=wish)


def also_in_latency(case: Case) -> Iterator[Case]:
    """The case, and with a limit on the latency that is just kept, and just not."""
    yield case
    _, optimum = best(case)
    if optimum is not None:
        for latency in (optimum.latency, optimum.latency - 1):
            yield replace(case, wish=replace(case.wish, max_latency=latency))


def test_limits_that_bind_are_met_at_the_least_cost(swarms: int) -> None:
    cases = [found for seed in range(swarms) if (found := binding(random_case(seed)))]
    outcomes = Counter(check_plan(tight) for case in cases for tight in also_in_latency(case))
    assert outcomes["planned"] + outcomes["same text"] > swarms // 10, outcomes
    assert outcomes["Latefirst token"] > swarms // 40, outcomes


def frontier(swarm: Swarm, prompt: int) -> list[tuple[int, int]]:
    """Cost and lead of all routes but those that another is better than, by all hops there are."""
    fronts: list[list[tuple[int, int]]] = [[(0, 0)], *([] for _ in range(swarm.blocks))]
    for lo, front in enumerate(fronts):
        for candidate in swarm.candidates:
            at, cost = lo, candidate.link + candidate.queue + swarm.overhead
            lead = cost + candidate.link  # once more, to open the session
            for unit in candidate.units:
                if unit.span.lo == at:
                    at, cost, lead = unit.span.hi, cost + unit.step, lead + prompt * unit.row
                    reached = [(c + cost, d + lead) for c, d in front]
                    fronts[at] = undominated([*fronts[at], *reached])
    return fronts[-1]


def undominated(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    kept: list[tuple[int, int]] = []
    for pair in sorted(pairs):
        if not kept or pair[1] < kept[-1][1]:
            kept.append(pair)
    return kept


def wide_swarm(seed: int) -> Swarm:
    """Peers whose prefill is slow where their steps are fast."""
    r = random.Random(seed)
    blocks = r.randint(8, 14)

    def peer(name: int) -> Candidate:
        lo = r.randrange(blocks)
        spans = [Span(at, at + 1) for at in range(lo, min(blocks, lo + r.randint(1, 8)))]
        units = (
            Unit(span, (step := r.randint(1, 99)), 99 // step + r.randint(0, 9)) for span in spans
        )
        return Candidate(str(name), tuple(units), link=r.randint(0, 40))

    return Swarm("wide", blocks, tuple(peer(name) for name in range(r.randint(20, 60))), overhead=3)


def test_every_limit_on_a_wide_swarm_is_met_at_the_least_cost(swarms: int) -> None:
    kept = 0
    for seed in range(swarms // 10):
        swarm, r = wide_swarm(seed), random.Random(seed)
        front = frontier(swarm, 5)
        for cost, lead in r.sample(front, min(len(front), 10)):
            found = plan(swarm, Wish(prompt=5, max_first_token=lead))
            assert isinstance(found, Plan)
            assert (found.latency, found.first_token) == (cost, lead)
            kept += 1
        if front:
            late = plan(swarm, Wish(prompt=5, max_first_token=front[-1][1] - 1))
            assert isinstance(late, Late) and late.found == front[-1][1]
    assert kept > swarms // 2


def shared_blocks(one: tuple[Hop, ...], other: tuple[Hop, ...]) -> int:
    mine = {(hop.peer, b) for hop in one for b in range(hop.span.lo, hop.span.hi)}
    theirs = {(hop.peer, b) for hop in other for b in range(hop.span.lo, hop.span.hi)}
    return sum(peer != LOCAL for peer, _ in mine & theirs)


def foreign_blocks(case: Case, old: tuple[Hop, ...], new: tuple[Hop, ...]) -> int:
    known = by_peer(case.swarm)

    def prints(hops: tuple[Hop, ...]) -> list[str]:
        return [known[hop.peer].fingerprint for hop in hops for _ in range(*ends(hop.span))]

    if not case.wish.exact:
        return 0
    return sum(a != b for a, b in zip(prints(old), prints(new), strict=True))


def ends(span: Span) -> tuple[int, int]:
    return span.lo, span.hi


def test_a_backup_shares_as_little_as_possible_with_the_first(swarms: int) -> None:
    outcomes = Counter[str]()
    for seed in range(swarms):
        case = random_case(seed)
        first = plan(case.swarm, case.wish, case.tier_of)
        if not isinstance(first, Plan):
            continue
        ranked = min(
            (
                shared_blocks(first.hops, found.hops),
                foreign_blocks(case, first.hops, found.hops),
                found.latency,
                len(found.hops),
            )
            for found in routes(case)
        )
        second = backup(case.swarm, case.wish, first, case.tier_of)
        theirs = sum(h.span.hi - h.span.lo for h in first.hops if h.peer != LOCAL)
        if second is None:
            assert ranked[0] >= theirs
            outcomes["none"] += 1
            continue
        assert permitted(case, second.hops)
        assert sum(span.hi - span.lo for span in second.shared) == ranked[0] < theirs
        assert (
            shared_blocks(first.hops, second.hops),
            foreign_blocks(case, first.hops, second.hops),
            second.latency,
            len(second.hops),
        ) == ranked
        outcomes["disjoint" if not second.shared else "partly"] += 1
    assert min(outcomes[key] for key in ("none", "disjoint", "partly")) > swarms // 100, outcomes


def mended_by_force(case: Case, route: tuple[Hop, ...], lost: str) -> tuple[int, ...] | None:
    """The least number of living blocks to be given up, then of foreign ones, then time, hops."""
    living = [hop for hop in route if hop.peer != lost]
    wish = replace(case.wish, excluded=case.wish.excluded | {lost})
    choices = []
    for kept in subsets(living):
        alive = {b for hop in kept for b in range(*ends(hop.span))}
        given_up = sum(h.span.hi - h.span.lo for h in living if h not in kept)
        for hops in fillings(replace(case, wish=wish), kept, 0):
            assert len(alive) + given_up == sum(h.span.hi - h.span.lo for h in living)
            latency = predicted(case, hops).latency
            choices.append((given_up, foreign_blocks(case, route, hops), latency, len(hops)))
    return min(choices, default=None)


def subsets(hops: list[Hop]) -> list[list[Hop]]:
    if not hops:
        return [[]]
    rest = subsets(hops[1:])
    return [*rest, *([hops[0], *some] for some in rest)]


def fillings(case: Case, kept: list[Hop], at: int) -> list[tuple[Hop, ...]]:
    """All routes that contain the kept hops as they are."""
    if at == case.swarm.blocks:
        return [()]
    for hop in kept:
        if hop.span.lo == at:
            return [(hop, *rest) for rest in fillings(case, kept, hop.span.hi)]
    limit = min([h.span.lo for h in kept if h.span.lo > at], default=case.swarm.blocks)
    found = []
    for candidate in case.swarm.candidates:
        reach = at
        for unit in candidate.units:
            if unit.span.lo == reach and unit.span.hi <= limit:
                reach = unit.span.hi
                hop = Hop(candidate.peer, Span(at, reach))
                if permitted(case, (hop,)):
                    found += [(hop, *rest) for rest in fillings(case, kept, reach)]
    return found


def test_a_hole_is_filled_and_the_living_hops_stay(swarms: int) -> None:
    outcomes = Counter[str]()
    for seed in range(swarms):
        case = random_case(seed)
        first = plan(case.swarm, case.wish, case.tier_of)
        if not isinstance(first, Plan) or all(hop.peer == LOCAL for hop in first.hops):
            continue
        lost = random.Random(seed).choice([h.peer for h in first.hops if h.peer != LOCAL])
        wanted = mended_by_force(case, first.hops, lost)
        mended = mend(case.swarm, case.wish, first.hops, {lost}, case.tier_of)
        if not isinstance(mended, Plan):
            assert wanted is None
            outcomes["refused"] += 1
            continue
        stayed = [hop for hop in first.hops if hop in mended.hops]
        gone = [h for h in first.hops if h not in stayed and h.peer != lost]
        given_up = sum(hop.span.hi - hop.span.lo for hop in gone)
        assert lost not in {hop.peer for hop in mended.hops}
        assert [b for h in mended.hops for b in range(*ends(h.span))] == [*range(case.swarm.blocks)]
        foreign = foreign_blocks(case, first.hops, mended.hops)
        assert (given_up, foreign, mended.latency, len(mended.hops)) == wanted
        outcomes["filled" if not gone else "widened"] += 1
    assert min(outcomes[key] for key in ("refused", "filled")) > swarms // 100, outcomes
    assert outcomes["widened"] > 0, outcomes


def test_brute_force_sees_more_than_one_route() -> None:
    counts = [len(list(chains(random_case(seed).swarm, 0))) for seed in range(50)]
    assert max(counts) > 100 and sorted(counts)[25] > 5


def test_a_search_that_is_given_up_still_keeps_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LABELS", 0)
    undecided = slower = 0
    for case in [found for seed in range(500) if (found := binding(random_case(seed)))]:
        planned, (_, optimum) = plan(case.swarm, case.wish, case.tier_of), best(case)
        assert isinstance(planned, Plan) and optimum is not None
        assert within(case, predicted(case, planned.hops))
        slower += planned.latency > optimum.latency
        tight = replace(case, wish=replace(case.wish, max_latency=optimum.latency))
        undecided += isinstance(plan(tight.swarm, tight.wish, tight.tier_of), Undecided)
    assert slower and undecided
