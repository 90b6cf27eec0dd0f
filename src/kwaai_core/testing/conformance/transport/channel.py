"""What every transport must make of a data channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from kwaai_core.peering import DataChannel, Stream
from kwaai_core.span.secure import context_of
from kwaai_core.testing.conformance.rules import require
from kwaai_core.testing.conformance.swarm import Node, Swarm, joined


async def a_data_channel_is_of_its_two_ends(swarm: Swarm) -> None:
    """TLS 1.3 with the certificates that both got, fresh each time; or none, at both ends."""
    async with swarm.nodes("one", "two") as (one, two), joined(one, two) as (near, far):
        seen: list[bytes] = []
        for _ in range(2):
            async with _channels((one, near), (two, far)) as (client, server):
                if client is None or server is None:
                    require(client is server, "only one end was given a data channel")
                    break
                servers = client.server, server.server
                require(servers == (False, True), f"which end is the server: {servers}")
                shown = [client.certificate, server.certificate]
                trusted = [server.trusted, client.trusted]
                require(shown == trusted, "an end trusts another certificate than is shown to it")
                seen += shown
                await _talk(client, server)
        require(len(set(seen)) == len(seen), "a certificate was used a second time")
        await near.send(b"after")
        require(await far.receive() == b"after", "the stream is of no use any more")


@asynccontextmanager
async def _channels(
    *ends: tuple[Node, Stream],
) -> AsyncIterator[list[DataChannel | None]]:
    """What both ends of a stream get that ask for a data channel at once."""
    got: list[DataChannel | None] = [None, None]

    async def ask(number: int, node: Node, stream: Stream) -> None:
        got[number] = await node.transport.data_channel(stream)

    try:
        async with trio.open_nursery() as nursery:
            for number, end in enumerate(ends):
                nursery.start_soon(ask, number, *end)
        yield got
    finally:
        for channel in got:
            if channel is not None:
                channel.socket.close()


async def _talk(client: DataChannel, server: DataChannel) -> None:
    """Let both do the handshake, and see that bytes cross."""
    streams = [_secured(client), _secured(server)]
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(stream.do_handshake)
    for sender, receiver in (streams, reversed(streams)):
        await sender.send_all(b"through the channel")
        came = await receiver.receive_some(100)
        require(came == b"through the channel", f"through the data channel came {came!r}")


def _secured(channel: DataChannel) -> trio.SSLStream[trio.SocketStream]:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(channel.socket))
    return trio.SSLStream(stream, context_of(channel), server_side=channel.server)
