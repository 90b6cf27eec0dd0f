"""The lobe is found, opens in a node, and keeps what an embedder has to keep."""

from pathlib import Path

from kwaai_core.testing import check_embedder, load_lobe, open_test_node
from kwaai_lobe_minilm.files import MODEL_SHA256


async def test_it_is_an_embedder(tmp_path: Path) -> None:
    settings = {"minilm": {"threads": 1}}
    async with open_test_node(tmp_path, [load_lobe("minilm")], settings) as node:
        assert node.embedder is not None
        await check_embedder(node.embedder)
        card = node.embedder.card
        (status,) = (status for status in node.statuses() if status.lobe == "minilm")
    assert (card.id, card.digest) == ("all-minilm-l6-v2", MODEL_SHA256)
    assert (card.dimensions, card.context_length, card.size) == (384, 256, 22_928_619)
    assert status.facts == {"model": "all-minilm-l6-v2", "threads": 1, "calls": 0}
