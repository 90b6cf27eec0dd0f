"""A node of ours that is open to anyone, so that every protocol of it can be reached."""

import contextlib
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from hostile.channel import WELCOME
from hostile.reporting import DATA, ECHO, TOPIC, reporting
from kwaai_core import DataChannel, KwaaiError, PeerLost, Stream, StreamEnded, Transport
from kwaai_core.node import Node
from kwaai_core.peering import StreamHandler
from kwaai_core.span.secure import secure
from kwaai_core.testing.nodes import load_lobe, open_test_node

SETTINGS: Mapping[str, Any] = {"libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"], "relay": True}}
OPEN: Mapping[str, Any] = {**SETTINGS, "peers": {"open_to": "anyone"}}


async def echo(stream: Stream) -> None:
    while True:
        try:
            await stream.send(await stream.receive())
        except StreamEnded:
            return await stream.end()


def channel(node: Node) -> StreamHandler:
    """A handler that opens a data channel beside the stream, and has TLS spoken over it once."""

    async def opening(stream: Stream) -> None:
        if node.transport is None or (found := await node.transport.data_channel(stream)) is None:
            return
        with found.socket:
            await trio.to_thread.run_sync(_shake, found, abandon_on_cancel=True)

    return opening


def _shake(found: DataChannel) -> None:
    with contextlib.suppress(OSError, PeerLost), secure(found, seconds=5) as tls:
        tls.sendall(WELCOME)


async def dial(transport: Transport, address: str) -> None:
    with contextlib.suppress(KwaaiError):
        await transport.connect([address], seconds=5)


async def main(settings: Mapping[str, Any] = OPEN) -> None:
    lobes = [load_lobe("identity"), load_lobe("libp2p")]
    async with open_test_node(Path(os.environ["KWAAI_STATE"]), lobes, settings) as node:
        if (transport := node.transport) is None:
            sys.exit("the node has no transport")
        async with (
            transport.serve(ECHO, echo),
            transport.serve(DATA, channel(node)),
            transport.subscribe(TOPIC),
        ):
            await transport.publish("hostile", b"a record of this node", seconds=3600)
            await reporting(transport.addresses, partial(dial, transport))


if __name__ == "__main__":
    trio.run(main)
