"""What a node under attack tells the campaign, over its standard input and output."""

import gc
import json
import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

ECHO = "/kwaai/echo/1"
DATA = "/kwaai/data/1"
TOPIC = "/kwaai/hostile/1"


async def reporting(addresses: Sequence[str], dial: Callable[[str], Awaitable[None]]) -> None:
    """Say where the node is; then, for each line that comes, how many tasks live. Ends with them.

    A line that is not empty is an address, which the node dials with ``dial``.
    """
    _say({"addresses": list(addresses)})
    async with trio.open_nursery() as nursery:
        # abandoned when the node dies, so that it can
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            if address := line.strip():
                nursery.start_soon(dial, address)
            else:
                gc.collect()
            _say({"tasks": trio.lowlevel.current_statistics().tasks_living})


def _say(message: object) -> None:
    print(json.dumps(message), flush=True)
