"""``python peer.py FOLDER``: a node in a process of its own, which serves an echo."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))

from conftest import ECHO, Nodes, echo


async def main(folder: str) -> None:
    async with Nodes(Path(folder))("peer") as node, node.transport.serve(ECHO, echo):
        print(node.transport.addresses[0], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
