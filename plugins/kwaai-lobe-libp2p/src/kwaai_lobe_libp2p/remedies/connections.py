"""Connections of the library: how they begin and end, and what they take in."""

from __future__ import annotations

from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux

from kwaai_lobe_libp2p.remedies.parts import begin, count, end, give_up, parts_of

MAX_BODY = 1 << 20
"""The longest data frame that is read: other implementations send 64 KiB at most."""


class Unread(bytearray):
    """What a stream has received and nobody has read: never more than the peer was granted.

    Stock Yamux writes a line to the log, and takes what is sent.
    """

    def __init__(self, conn: Yamux, stream: int) -> None:
        super().__init__()
        self._conn = conn
        self._stream = stream

    def extend(self, data: Any) -> None:
        stream = self._conn.streams.get(self._stream)
        if stream is not None and len(data) > stream.recv_window:
            give_up(self._conn, "it sends more than it was granted")
        count(self._conn, len(data))
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    def __init__(self, conn: Yamux) -> None:
        super().__init__()
        self._conn = conn

    def __setitem__(self, stream: int, buffer: bytearray) -> None:
        super().__setitem__(stream, Unread(self._conn, stream))


_stock_init = Yamux.__init__
_stock_start = Yamux.start
_stock_cleanup = Yamux._cleanup_on_error  # noqa: SLF001
_stock_read_body = Yamux._read_data_body  # noqa: SLF001


def init(
    self: Yamux,
    secured_conn: Any,
    peer_id: ID,
    is_initiator: bool | None = None,
    on_close: Any = None,
) -> None:
    _stock_init(self, secured_conn, peer_id, is_initiator, on_close)
    begin(self)
    self.stream_buffers = _Buffers(self)


async def start(self: Yamux) -> None:
    """Run the connection, and clean up however that ends: stock leaves what was cancelled."""
    try:
        await _stock_start(self)
    finally:
        with trio.CancelScope(shield=True):
            await self._cleanup_on_error()


async def cleanup(self: Yamux) -> None:
    end(self)
    await _stock_cleanup(self)


async def write_frame(self: Yamux, data: bytes) -> None:
    await parts_of(self).outbox.put(data)


async def read_data_body(self: Yamux, length: int) -> bytes:
    """The body of a data frame: stock reads up to 16 MiB of it before it looks whose it is."""
    if length > MAX_BODY:
        give_up(self, f"it announces a frame of {length} bytes")
        await trio.sleep_forever()  # until the cancellation that this was
    return await _stock_read_body(self, length)
