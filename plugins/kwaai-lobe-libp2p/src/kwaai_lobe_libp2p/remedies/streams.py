"""Streams of the library: reading, writing, and what is kept of them at the end."""

from __future__ import annotations

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from kwaai_lobe_libp2p.remedies.outbox import BATCH, HEADER
from kwaai_lobe_libp2p.remedies.parts import hear


class SendWindow:
    """How many bytes may be sent on a stream; who waits for more is woken, and need not poll."""

    def __get__(self, stream: YamuxStream, owner: type[YamuxStream]) -> int:
        return stream.__dict__["send_window"]  # type: ignore[no-any-return]

    def __set__(self, stream: YamuxStream, value: int) -> None:
        grown = value > stream.__dict__.get("send_window", value)
        stream.__dict__["send_window"] = value
        if grown:
            hear(stream.conn)
            _wake(stream)


class Flag:
    """A flag of a stream that, when it is set, wakes whoever waits to write on it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, stream: YamuxStream, owner: type[YamuxStream]) -> bool:
        return stream.__dict__[self._name]  # type: ignore[no-any-return]

    def __set__(self, stream: YamuxStream, value: bool) -> None:
        stream.__dict__[self._name] = value
        if value:
            _wake(stream)


def _wake(stream: YamuxStream) -> None:
    if (writable := stream.__dict__.get("writable")) is not None:
        writable.set()


async def write(self: YamuxStream, data: bytes) -> None:
    """Write all of it. Who waits for the peer to read does so for as long as the caller lets it.

    Stock resets the stream where the peer reads nothing for 5 seconds, and looks every 10 ms
    whether it does.
    """
    view = memoryview(data)
    while view:
        while self.send_window <= 0 and not self.send_closed and not self.closed:
            self.__dict__["writable"] = trio.Event()
            await self.__dict__["writable"].wait()
        if self.send_closed or self.closed:
            raise MuxedStreamError("the stream is closed for sending")
        size = min(len(view), self.send_window, BATCH - HEADER.size)
        frame = HEADER.pack(0, yamux.TYPE_DATA, 0, self.stream_id, size) + view[:size]
        await self.conn._write_frame(frame)  # noqa: SLF001
        self.send_window -= size
        view = view[size:]


_stock_tune = YamuxStream._auto_tune_and_send_window_update  # noqa: SLF001


async def read(self: YamuxStream, n: int | None = -1) -> bytes:
    """At most ``n`` bytes, as soon as there are any; what arrived before a reset is read first.

    Stock takes them from the buffer and then grants the peer more in the same breath: where that
    is cancelled, the bytes are gone. And it forgets what it has not handed out when a reset comes,
    or when the connection breaks.
    """
    conn, stream = self.conn, self.stream_id
    unread = self.__dict__.setdefault("unread", conn.stream_buffers.get(stream, b""))
    while not unread:
        if self.recv_closed and not self.reset_received:
            raise MuxedStreamEOF("the peer has closed its direction")
        if self.closed or self.reset_received or stream not in conn.streams:
            raise MuxedStreamReset("the stream was reset, or its connection broke")
        event = conn.stream_events[stream] = trio.Event()
        await event.wait()
    limit = len(unread) if n is None or n < 0 else n
    data = bytes(memoryview(unread)[:limit])
    del unread[:limit]
    if stream in conn.streams:
        with trio.CancelScope(shield=True):  # brief: frames without a body never wait
            await _stock_tune(self, bytes_read=len(data))
            if self.closed:
                await conn._finalize_stream(self, fully_closed=True)  # noqa: SLF001
    return data


async def forget(stream: YamuxStream) -> None:
    """Drop all that is kept of a stream that was reset, also what has come in meanwhile.

    Stock keeps what nobody will read for a minute.
    """
    conn = stream.conn
    async with conn.streams_lock:
        conn.stream_buffers.get(stream.stream_id, bytearray()).clear()
        conn._finalize_stream_locked(stream, fully_closed=True)  # noqa: SLF001
