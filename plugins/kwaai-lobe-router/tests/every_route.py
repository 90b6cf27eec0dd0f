"""Every route there is, and what each takes: written from the definitions, without any cleverness;
and random swarms that are small enough for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from kwaai_core import Hop, Span, Tier
from kwaai_lobe_router.swarm import LOCAL, Candidate, Swarm, Unit, Wish

TIERS: tuple[Tier, ...] = ("unknown", "known", "verified", "trusted")


@dataclass(frozen=True)
class Case:
    swarm: Swarm
    wish: Wish
    tiers: dict[str, Tier]

    def tier_of(self, peer: str) -> Tier:
        return self.tiers[peer]


@dataclass(frozen=True)
class Found:
    hops: tuple[Hop, ...]
    latency: int
    first_token: int
    uniform: bool


def routes(case: Case) -> list[Found]:
    """All routes that satisfy everything of a wish but its limits on time."""
    return [predicted(case, hops) for hops in chains(case.swarm, 0) if permitted(case, hops)]


def chains(swarm: Swarm, lo: int) -> Iterator[tuple[Hop, ...]]:
    """Every sequence of hops from a block to the last, no two neighbours of one peer that meet."""
    if lo == swarm.blocks:
        yield ()
        return
    for candidate in swarm.candidates:
        at = lo
        for unit in candidate.units:
            if unit.span.lo == at:
                at = unit.span.hi
                for rest in chains(swarm, at):
                    if not rest or rest[0].peer != candidate.peer:
                        yield (Hop(candidate.peer, Span(lo, at)), *rest)


def permitted(case: Case, hops: tuple[Hop, ...]) -> bool:
    wish, known = case.wish, by_peer(case.swarm)
    for hop in hops:
        candidate = known[hop.peer]
        local = hop.peer == LOCAL
        blocks = range(hop.span.lo, hop.span.hi)
        forced = [
            b for b in blocks
            if b < wish.local_blocks or b >= case.swarm.blocks - wish.local_blocks
        ]  # fmt: skip
        tier_fits = local or TIERS.index(case.tiers[hop.peer]) >= TIERS.index(wish.min_tier)
        if not (
            hop.peer not in wish.excluded
            and tier_fits
            and candidate.room >= wish.tokens
            and (candidate.exact or not wish.exact)
            and (local or wish.dtype in candidate.dtypes)
            and (local or not forced)
        ):
            return False
    return True


def by_peer(swarm: Swarm) -> dict[str, Candidate]:
    return {candidate.peer: candidate for candidate in swarm.candidates}


def predicted(case: Case, hops: tuple[Hop, ...]) -> Found:
    """What a token takes through all hops, and what all rows of a prompt do."""
    swarm, wish, known = case.swarm, case.wish, by_peer(case.swarm)
    latency = first = swarm.head
    for hop in hops:
        peer = known[hop.peer]
        units = [u for u in peer.units if hop.span.lo <= u.span.lo and u.span.hi <= hop.span.hi]
        entering = peer.link + peer.queue + (0 if hop.peer == LOCAL else swarm.overhead)
        latency += entering + sum(unit.step for unit in units)
        trips, sent, window = 1, 14_600, 14_600
        while sent < wish.prompt * peer.row_bytes:
            trips, window = trips + 1, 2 * window
            sent += window
        first += entering + trips * peer.link + wish.prompt * sum(unit.row for unit in units)
    uniform = all(known[hop.peer].fingerprint == wish.fingerprint for hop in hops)
    return Found(hops, latency, first, uniform)


def random_case(seed: int) -> Case:
    """A swarm of up to six blocks and six peers, with units of any borders, and any wish."""
    r = random.Random(seed)
    blocks = r.randint(1, 6)
    names = [LOCAL] * r.choice((0, 1, 1)) + [f"p{n}" for n in range(r.randint(1, 5))]
    swarm = Swarm(
        "m",
        blocks,
        tuple(random_candidate(r, name, blocks) for name in names),
        overhead=r.choice((0, 1, 7)),
        head=r.choice((0, 5)),
    )
    wish = Wish(
        tokens=r.choice((0, 0, 50, 100)),
        prompt=r.choice((1, 3, 40)),
        min_tier=r.choice(("unknown", "unknown", "known", "verified")),
        max_latency=r.choice((None, r.randint(1, 150))),
        max_first_token=r.choice((None, r.randint(1, 200), r.randint(200, 1500))),
        local_blocks=r.choice((0, 0, 0, 1, 2)),
        exact=r.random() < 0.4,
        fingerprint="a",
        dtype=r.choice(("float32", "float32", "bfloat16")),
        excluded=frozenset(r.sample(names, r.choice((0, 0, 1)))),
        salt=str(seed),
    )
    return Case(swarm, wish, {name: r.choice(TIERS) for name in names})


def random_candidate(r: random.Random, peer: str, blocks: int) -> Candidate:
    borders = sorted(r.sample(range(blocks + 1), r.randint(2, min(5, blocks + 1))))
    spans = [Span(lo, hi) for lo, hi in pairwise(borders)]
    if len(spans) > 2 and r.random() < 0.3:
        del spans[1]
    local = peer == LOCAL
    return Candidate(
        peer,
        tuple(Unit(span, r.randint(0, 30), r.randint(0, 12)) for span in spans),
        link=0 if local else r.randint(0, 40),
        row_bytes=0 if local else r.choice((0, 3584)),
        queue=r.choice((0, 0, 20)),
        room=r.choice((60, 100, 200)),
        fingerprint=r.choice("aab"),
        exact=r.random() < 0.85,
        dtypes=frozenset({"float32", "bfloat16"} if r.random() < 0.8 else {"float32"}),
    )
