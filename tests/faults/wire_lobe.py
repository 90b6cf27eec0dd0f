"""A lobe for nodes under test: libp2p, whose data channels go through the hands of the tests.

It takes the place of the lobe libp2p, and is that but for one thing: the socket of each data
channel is handed, with its certificates, to the process that listens at ``FAULTS_WIRE``, which does
the handshake and carries the frames from and to another socket, that the worker of this node gets.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from kwaai_core import DataChannel, Host, Offer, Stream, Transport, hookimpl
from kwaai_lobe_libp2p.settings import Libp2pSettings


@hookimpl
def provide_transport() -> Offer[Transport]:
    return Offer("libp2p", _open, Libp2pSettings)


@asynccontextmanager
async def _open(host: Host) -> AsyncIterator[Any]:
    from kwaai_lobe_libp2p.transport import open_transport

    async with open_transport(host) as transport:
        yield _Wired(transport)


class _Wired:
    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def describe(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._transport.describe()
        return found

    async def data_channel(self, stream: Stream, *, seconds: float) -> DataChannel | None:
        channel = await self._transport.data_channel(stream, seconds=seconds)
        return None if channel is None else _through_the_wire(channel)


def _through_the_wire(channel: DataChannel) -> DataChannel:
    near, far = socket.socketpair()
    told = {
        "node": os.getpid(),
        "server": channel.server,
        "certificate": channel.certificate.decode(),
        "key": channel.key.decode(),
        "trusted": channel.trusted.decode(),
    }
    with far, channel.socket, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as wire:
        wire.connect(os.environ["FAULTS_WIRE"])
        handed = [channel.socket.fileno(), far.fileno()]
        socket.send_fds(wire, [json.dumps(told).encode()], handed)
    return DataChannel(near, b"", b"", b"", server=False)
