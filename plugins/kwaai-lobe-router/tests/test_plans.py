"""Plans by example: what is preferred, and what a refusal says."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kwaai_core import Hop, Span, Tier
from kwaai_lobe_router.planning import backup, mend, plan
from kwaai_lobe_router.swarm import LOCAL, Candidate, Plan, Swarm, Unit, Wish

MS = 1_000_000


def holder(peer: str, *spans: tuple[int, int], ms: int = 10, **more: object) -> Candidate:
    """Somebody whose units take ``ms`` each."""
    units = tuple(Unit(Span(lo, hi), ms * MS, MS) for lo, hi in spans)
    return replace(Candidate(peer, units, exact=True, fingerprint="a"), **more)  # type: ignore[arg-type]


def swarm(*candidates: Candidate, blocks: int = 4, overhead: int = 0) -> Swarm:
    return Swarm("tiny", blocks, candidates, overhead=overhead)


def hops(*parts: tuple[str, int, int]) -> tuple[Hop, ...]:
    return tuple(Hop(peer, Span(lo, hi)) for peer, lo, hi in parts)


def planned(found: object) -> Plan:
    assert isinstance(found, Plan), found
    return found


HALVES = ((0, 2), (2, 4))


def test_a_whole_model_here_is_the_cheapest_route() -> None:
    here = holder(LOCAL, (0, 4), ms=30)
    far = holder("far", *HALVES, link=20 * MS)
    assert planned(plan(swarm(far, here), Wish())).hops == hops((LOCAL, 0, 4))


def test_a_far_peer_that_is_much_faster_is_taken() -> None:
    here = holder(LOCAL, *HALVES, ms=100)
    far = holder("far", *HALVES, link=20 * MS)
    found = planned(plan(swarm(here, far, overhead=MS), Wish()))
    assert found.hops == hops(("far", 0, 4))
    assert found.latency == (20 + 1 + 10 + 10) * MS


def test_a_queue_sends_the_next_one_elsewhere() -> None:
    calm, busy = holder("calm", (0, 4), ms=12), holder("busy", (0, 4), queue=5 * MS)
    assert planned(plan(swarm(calm, busy), Wish())).hops == hops(("calm", 0, 4))


def test_local_blocks_stay_here() -> None:
    here = holder(LOCAL, (0, 1), (3, 4), ms=100)
    far = holder("far", (0, 1), (1, 3), (3, 4))
    found = planned(plan(swarm(here, far), Wish(local_blocks=1)))
    assert found.hops == hops((LOCAL, 0, 1), ("far", 1, 3), (LOCAL, 3, 4))


def test_exact_prefers_this_node_s_fingerprint_to_speed_and_says_when_it_has_to_mix() -> None:
    same, other = holder("same", *HALVES, ms=50), holder("other", *HALVES, fingerprint="b")
    wish = Wish(exact=True, fingerprint="a")
    uniform = planned(plan(swarm(same, other), wish))
    assert (uniform.hops, uniform.same_text) == (hops(("same", 0, 4)), True)
    half = holder("same", (0, 2), ms=5)
    mixed = planned(plan(swarm(half, other), wish))
    assert (mixed.hops, mixed.same_text) == (hops(("same", 0, 2), ("other", 2, 4)), False)
    assert not planned(plan(swarm(same, other), replace(wish, exact=False))).same_text


def test_the_order_in_which_candidates_are_known_changes_nothing() -> None:
    many = [holder(f"p{n}", *HALVES) for n in range(20)]
    orders = {plan(swarm(*random.Random(n).sample(many, 20)), Wish()) for n in range(20)}
    assert len(orders) == 1


def test_two_nodes_do_not_choose_the_same_of_equals() -> None:
    many = [holder(f"p{n}", (0, 4)) for n in range(20)]
    chosen = {planned(plan(swarm(*many), Wish(salt=str(n)))).hops for n in range(40)}
    assert len(chosen) > 10


def test_a_backup_prefers_the_same_fingerprint_where_it_is_exact() -> None:
    first = holder("first", (0, 4), ms=1)
    slow, quick = holder("slow", (0, 4), ms=50), holder("quick", (0, 4), fingerprint="b")
    everybody, wish = swarm(first, slow, quick), Wish(exact=True, fingerprint="a")
    route = planned(plan(everybody, wish))
    assert planned(backup(everybody, wish, route)).hops == hops(("slow", 0, 4))
    anyhow = Wish(exact=False, fingerprint="a")
    assert planned(backup(everybody, anyhow, route)).hops == hops(("quick", 0, 4))


def test_a_hole_is_filled_by_several_if_need_be() -> None:
    route = hops(("a", 0, 1), ("lost", 1, 3), ("b", 3, 4))
    everybody = swarm(
        holder("a", (0, 1)),
        holder("lost", (1, 3)),
        holder("b", (3, 4)),
        holder("c", (1, 2), ms=500),
        holder("d", (2, 3)),
        holder("fast", (0, 4), ms=1),
    )
    mended = planned(mend(everybody, Wish(), route, {"lost"}))
    assert mended.hops == hops(("a", 0, 1), ("c", 1, 2), ("d", 2, 3), ("b", 3, 4))


def test_a_living_hop_is_given_up_only_where_nothing_else_fits() -> None:
    route = hops(("a", 0, 1), ("lost", 1, 3), ("b", 3, 4))
    everybody = swarm(holder("a", (0, 1)), holder("b", (3, 4)), holder("c", (1, 4)))
    mended = planned(mend(everybody, Wish(), route, {"lost"}))
    assert mended.hops == hops(("a", 0, 1), ("c", 1, 4))


def test_a_living_hop_stays_whatever_the_wish_says_and_even_if_nothing_is_known_of_it() -> None:
    route = hops(("full", 0, 1), ("lost", 1, 2), ("silent", 2, 4))
    everybody = swarm(holder("full", (0, 1), room=0), holder("new", (1, 2)))
    mended = planned(mend(everybody, Wish(tokens=100), route, {"lost"}))
    assert mended.hops == hops(("full", 0, 1), ("new", 1, 2), ("silent", 2, 4))


def test_a_hole_that_nobody_fills_is_named() -> None:
    route = hops(("a", 0, 1), ("lost", 1, 4))
    everybody = swarm(holder("a", (0, 1)), holder("lost", (1, 4)))
    refused = mend(everybody, Wish(), route, {"lost"})
    assert str(refused) == (
        "blocks 1–3 of model tiny have no peer that can be used; of 1 known: "
        "1 failed or left this request"
    )


TIERS: dict[str, Tier] = {"stranger": "unknown", "friend": "known"}


@pytest.mark.parametrize(
    ("candidates", "wish", "line"),
    [
        ([holder("p", (0, 2))], Wish(), "nobody in reach holds blocks 2–3 of model tiny"),
        (
            [holder("p", (0, 3))],
            Wish(),
            "nobody in reach holds block 3 of model tiny",
        ),
        (
            [holder("stranger", (0, 4)), holder("friend", (0, 4))],
            Wish(min_tier="verified"),
            "blocks 0–3 of model tiny have no peer of tier ≥ verified; the best known is known",
        ),
        (
            [holder("friend", (0, 4)), holder("stranger", (0, 4), exact=False)],
            Wish(tokens=1 << 63, exact=True),
            (
                "blocks 0–3 of model tiny have no peer that can be used; of 2 known: "
                "1 without an exact worker, which a request with kwaai.exact = false can use, "
                "1 without room for 9223372036854775808 tokens"
            ),
        ),
        (
            [holder("friend", (0, 4))],
            Wish(dtype="bfloat16"),
            (
                "blocks 0–3 of model tiny have no peer that can be used; of 1 known: "
                "1 without bfloat16 on the wire"
            ),
        ),
        (
            [holder("friend", *HALVES)],
            Wish(local_blocks=1),
            (
                "local_blocks = 1 keeps block 0 of model tiny on this node, which does not hold it"
                "; blocks 1–2 of model tiny have no peer that can be used; of 1 known: "
                "1 with a unit across the border that local_blocks = 1 draws; "
                "local_blocks = 1 keeps block 3 of model tiny on this node, which does not hold it"
            ),
        ),
        (
            [holder("friend", (0, 3)), holder("stranger", (2, 4))],
            Wish(),
            (
                "all blocks of model tiny are held, but in units that do not meet: "
                "no chain from block 0 leads beyond block 3"
            ),
        ),
        (
            [holder("friend", (0, 4), ms=140)],
            Wish(max_latency=100 * MS),
            "the fastest route for tiny takes 140 ms per token, 100 ms were asked",
        ),
        (
            [holder("friend", (0, 4), ms=40)],
            Wish(prompt=512, max_first_token=100 * MS),
            "the earliest first token of any route for tiny takes 512 ms, 100 ms were asked",
        ),
        (
            [holder("friend", (0, 4), ms=40)],
            Wish(prompt=512, max_first_token=100 * MS, max_latency=50 * MS),
            (
                "the earliest first token of any route for tiny with at most 50 ms per token takes "
                "512 ms, 100 ms were asked"
            ),
        ),
    ],
)
def test_a_refusal_says_what_is_missing(candidates: list[Candidate], wish: Wish, line: str) -> None:
    refused = plan(swarm(*candidates), wish, TIERS.__getitem__)
    assert not isinstance(refused, Plan)
    assert str(refused) == line


def test_without_anybody_who_judges_every_peer_is_unknown() -> None:
    refused = plan(swarm(holder("friend", (0, 4))), Wish(min_tier="known"))
    assert str(refused).endswith("have no peer of tier ≥ known; the best known is unknown")
    here = swarm(holder(LOCAL, (0, 4)))
    assert planned(plan(here, Wish(min_tier="trusted"))).hops == hops((LOCAL, 0, 4))


@pytest.mark.parametrize("blocks", [0, 1001])
def test_a_model_of_no_or_too_many_blocks_is_an_error(blocks: int) -> None:
    with pytest.raises(ValueError, match="a model has 1 to 1000"):
        plan(Swarm("m", blocks, ()), Wish())


def test_no_candidates_is_a_refusal() -> None:
    assert str(plan(swarm(), Wish())) == "nobody in reach holds blocks 0–3 of model tiny"
