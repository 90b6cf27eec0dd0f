"""What a node should hold: the run that helps the scarcest blocks most."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import Span
from kwaai_lobe_router.placement import place


def held(run: tuple[Span, ...]) -> list[int]:
    return [block for span in run for block in range(span.lo, span.hi)]


def test_the_blocks_that_nobody_has_come_first() -> None:
    run = place([2, 2, 2, 2, 0, 0, 2, 2], [1] * 8, 2, unit=2, seed=0)
    assert run == (Span(4, 6),)


def test_of_two_holes_the_one_that_fits_is_filled_with_what_is_scarce_beside_it() -> None:
    run = place([1, 0, 0, 1, 3, 3], [1] * 6, 3, unit=1, seed=0)
    assert held(run) in ([0, 1, 2], [1, 2, 3])


def test_the_last_unit_may_be_short_and_small() -> None:
    assert place([1, 1, 1, 1, 0], [5, 5, 5, 5, 1], 4, unit=2, seed=0) == (Span(4, 5),)


def test_where_nothing_fits_nothing_is_held() -> None:
    assert place([0, 0], [10, 10], 19, unit=2, seed=0) == ()


def test_equals_are_chosen_among_by_the_seed_alone() -> None:
    chosen = Counter(place([1] * 12, [1] * 12, 4, unit=4, seed=seed) for seed in range(90))
    assert set(chosen) == {(Span(lo, lo + 4),) for lo in (0, 4, 8)}
    assert min(chosen.values()) > 10
    assert place([1] * 12, [1] * 12, 4, unit=4, seed=5) == place(
        [1] * 12, [1] * 12, 4, unit=4, seed=5
    )


def test_nodes_that_come_one_after_the_other_cover_a_model_evenly() -> None:
    holders = [0] * 24
    for seed in range(12):
        for block in held(place(holders, [1] * 24, 8, unit=4, seed=seed)):
            holders[block] += 1
    assert min(holders) >= 3 and max(holders) <= 5


@pytest.mark.parametrize(
    ("holders", "sizes", "unit"), [([], [], 1), ([1], [1, 1], 1), ([1], [1], 0)]
)
def test_what_is_no_model_is_an_error(holders: list[int], sizes: list[int], unit: int) -> None:
    with pytest.raises(ValueError, match="no model"):
        place(holders, sizes, 9, unit=unit, seed=0)


@given(st.integers(0, 1 << 32))
def test_no_run_of_units_that_fits_is_better(seed: int) -> None:
    r = random.Random(seed)
    blocks, unit = r.randint(1, 12), r.randint(1, 4)
    holders = [r.randint(0, 3) for _ in range(blocks)]
    sizes = [r.randint(1, 5) for _ in range(blocks)]
    memory = r.randint(0, sum(sizes))

    def worth(run: list[int]) -> list[int]:
        return sorted(count + (block in run) for block, count in enumerate(holders))

    borders = [*range(0, blocks, unit), blocks]
    runs = [[*range(lo, hi)] for lo in borders for hi in borders if lo < hi]
    fitting = [run for run in runs if sum(sizes[block] for block in run) <= memory]
    placed = held(place(holders, sizes, memory, unit=unit, seed=seed))
    if not fitting:
        assert placed == []
        return
    assert placed in fitting
    assert worth(placed) == max(map(worth, fitting))
