"""A hostile peer and a node, through real sockets; ``tox -e hostile`` does far more of the same."""

from pathlib import Path

import pytest
from hostile.campaign import campaign
from hostile.inputs import make
from hostile.subjects import Kind

SEED, INPUTS = 1, 1500
PROTOCOLS = ("/ipfs/id/1.0.0", "/kwaai/kad/1", "/meshsub/1.1.0")


def test_an_input_is_made_from_its_seed_and_number_alone() -> None:
    for number in range(INPUTS):
        assert make(SEED, number, PROTOCOLS) == make(SEED, number, PROTOCOLS)


async def test_the_inputs_kill_a_node_on_the_stock_library(tmp_path: Path) -> None:
    report = await campaign("stock", SEED, range(INPUTS), tmp_path)
    assert any("the node died" in failure for failure in report.failures), report


@pytest.mark.parametrize("kind", ["kwaai", "closed"])
async def test_a_node_of_ours_holds(kind: Kind, tmp_path: Path) -> None:
    report = await campaign(kind, SEED, range(INPUTS), tmp_path)
    assert not report.failures, report
    assert report.inputs == INPUTS
