"""The lobe is found, opens in a node, and keeps what an executor has to keep."""

from pathlib import Path

from kwaai_core.testing import check_executor, load_lobe, open_test_node


async def test_it_is_an_executor(tmp_path: Path) -> None:
    async with open_test_node(tmp_path, [load_lobe("echo")]) as node:
        (echo,) = node.executors
        await check_executor(echo)
