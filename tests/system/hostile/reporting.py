"""What a node under attack tells the campaign, over its standard input and output."""

import gc
import json
import sys
from collections.abc import Sequence

import trio

ECHO = "/kwaai/echo/1"
DATA = "/kwaai/data/1"
TOPIC = "/kwaai/hostile/1"


async def reporting(addresses: Sequence[str]) -> None:
    """Say where the node is; then, for each line that comes, how many tasks live. Ends with it."""
    print(json.dumps({"addresses": list(addresses)}), flush=True)
    # abandoned when the node dies, so that it can
    while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        gc.collect()
        print(json.dumps({"tasks": trio.lowlevel.current_statistics().tasks_living}), flush=True)
