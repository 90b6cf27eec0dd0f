"""A node of ours that is open to anyone, so that every protocol of it can be reached."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from hostile.reporting import ECHO, TOPIC, reporting
from kwaai_core import Stream, StreamEnded
from kwaai_core.testing.nodes import load_lobe, open_test_node

SETTINGS: Mapping[str, Any] = {"libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]}}
OPEN: Mapping[str, Any] = {**SETTINGS, "peers": {"open_to": "anyone"}}


async def echo(stream: Stream) -> None:
    while True:
        try:
            await stream.send(await stream.receive())
        except StreamEnded:
            return await stream.end()


async def main(settings: Mapping[str, Any] = OPEN) -> None:
    lobes = [load_lobe("identity"), load_lobe("libp2p")]
    async with open_test_node(Path(os.environ["KWAAI_STATE"]), lobes, settings) as node:
        if (transport := node.transport) is None:
            sys.exit("the node has no transport")
        async with transport.serve(ECHO, echo), transport.subscribe(TOPIC):
            await transport.publish("hostile", b"a record of this node", seconds=3600)
            await reporting(transport.addresses)


if __name__ == "__main__":
    trio.run(main)
