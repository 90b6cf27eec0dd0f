"""A cell for each fault of the matrix with real processes; ``tox -e faults`` plays all cells."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from tests.faults.campaign import run
from tests.faults.matrix import ALONE, FAULTS, PHASES, PLACES, cells, left_out, one_of_each
from tests.faults.matrix import everything as all_cells

SEED = 1


def test_every_combination_is_played_or_left_out_for_a_reason() -> None:
    combinations = set(product(FAULTS, PLACES, (*PHASES, ALONE)))
    assert {(c.fault, c.place, c.phase) for c in all_cells()} == combinations
    assert {c for c in all_cells() if not left_out(c)} == set(cells(SEED))
    played = {(c.fault, c.place) for c in cells(SEED)}
    assert played == set(product(FAULTS, PLACES))


async def test_no_fault_changes_a_text(tmp_path: Path) -> None:
    outcomes = await run(one_of_each(SEED), SEED, tmp_path)
    assert [f"{o.cell}: {'; '.join(o.problems)}" for o in outcomes if o.problems] == []
    assert {o.cell.fault for o in outcomes if o.equal and o.struck} == set(FAULTS)
