"""Records what nodes of ours say to each other: ``python -m hostile.record_kwaai``.

It adds to ``traffic.json`` what both sides of every stream wrote while two nodes joined, published,
looked up, provided, broadcast and opened a data channel.
"""

from __future__ import annotations

import json
import tempfile
from base64 import b64encode
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from hostile.inputs import TRAFFIC, family
from hostile.kwaai import OPEN, channel, echo
from hostile.protobuf import read_varint
from hostile.reporting import DATA, ECHO, TOPIC
from kwaai_core import Stream, Transport
from kwaai_core.node import Node
from kwaai_core.testing.nodes import load_lobe, open_test_node
from kwaai_lobe_libp2p.streams import ByteStream

_LIMIT, _EACH = 16384, 12
_said: dict[ByteStream, bytearray] = defaultdict(bytearray)


def listen() -> None:
    """Keep a copy of whatever is written to a stream."""
    write = ByteStream.write

    async def recording(self: ByteStream, data: bytes) -> None:
        _said[self] += data
        await write(self, data)

    ByteStream.write = recording  # type: ignore[method-assign]


async def opened(stack: AsyncExitStack, folder: Path) -> Node:
    lobes = [load_lobe("identity"), load_lobe("libp2p")]
    node = await stack.enter_async_context(open_test_node(folder, lobes, OPEN))
    transport = transport_of(node)
    await stack.enter_async_context(transport.serve(ECHO, echo))
    await stack.enter_async_context(transport.subscribe(TOPIC))
    return node


def transport_of(node: Node) -> Transport:
    if node.transport is None:
        raise LookupError("the node has no transport")
    return node.transport


async def converse(here: Node, there: Node) -> None:
    """What nodes are for, once each."""
    mine, theirs = transport_of(here), transport_of(there)
    if here.identity is None or there.identity is None:
        raise LookupError("a node has no identity")
    made = await here.identity.invite("home", mine.addresses, seconds=600)
    await there.gate.join(made.line)
    me, you = here.identity.peer_id, there.identity.peer_id
    await mine.ping(you)
    for n in range(3):
        await theirs.publish("news", b"record %d" % n, seconds=3600)
        await theirs.broadcast(TOPIC, b"news %d" % n)
    await mine.lookup(you, "news")
    await theirs.provide("a key", seconds=3600)
    await mine.providers("a key")
    await mine.nearest("a key", 3)
    async with theirs.open(me, ECHO) as stream:
        await stream.send(b"hello")
        await stream.receive()
        await stream.end()
    async with theirs.open(me, DATA) as stream:
        await use_channel(theirs, stream)
    await trio.sleep(2)


async def use_channel(transport: Transport, stream: Stream) -> None:
    if (found := await transport.data_channel(stream)) is not None:
        found.socket.close()


def protocol_and_rest(said: bytes) -> tuple[str, bytes]:
    """What was agreed on, the last of the lines of multistream-select, and what followed it."""
    at, lines = 0, list[str]()
    while len(lines) < 2:
        size, start = read_varint(said, at)
        at = start + size
        lines.append(said[start : at - 1].decode())
    return lines[1], said[at:]


def recorded() -> dict[str, dict[str, list[str]]]:
    """What was written by protocols of ours, as :func:`hostile.record.recorded` has it."""
    found: dict[str, dict[str, dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for stream, all_ in _said.items():
        protocol, said = protocol_and_rest(bytes(all_))
        known = found[family(protocol)]["asked" if stream.opener else "answered"]
        if said and len(said) <= _LIMIT and len(known) < _EACH:
            known[len(said)] = b64encode(said).decode()
    return {
        protocol: {side: list(known.values()) for side, known in sides.items()}
        for protocol, sides in found.items()
        if protocol.startswith("kwaai/")
    }


async def main() -> None:
    listen()
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            nodes = [await opened(stack, Path(folder) / name) for name in ("here", "there")]
            await stack.enter_async_context(transport_of(nodes[0]).serve(DATA, channel(nodes[0])))
            with trio.fail_after(60):
                await converse(*nodes)
    known = json.loads(TRAFFIC.read_text())
    TRAFFIC.write_text(json.dumps(dict(sorted((known | recorded()).items())), indent=1) + "\n")


if __name__ == "__main__":
    trio.run(main)
