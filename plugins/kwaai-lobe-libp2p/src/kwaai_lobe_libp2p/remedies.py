"""What is wrong with Yamux in py-libp2p 0.8.1, mended. Importing this module mends it.

Each remedy replaces a private part of that very version, so any other is refused. The tests run
every case twice, with this module and without: what passes without it needs no remedy any more.
``docs/explanation/transport.md`` lists them, and what of the library is left unused instead.
"""

from __future__ import annotations

import logging
import struct
import weakref
from collections import deque
from importlib.metadata import version
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from kwaai_core import ConfigError

MENDS = "0.8.1"

MAX_BODY = 1 << 20
"""The longest data frame that is read: other implementations send 64 KiB at most."""

MAX_WINDOW = 4 << 20
"""How many bytes a stream's peer may send ahead of its reader."""

UNREAD = 256 << 20
"""How many unread bytes all connections may hold; beyond, who holds most is closed."""

PING_EVERY, PONG_WITHIN = 1.5, 3.0
"""A peer from which nothing comes that long after a ping is frozen, or cut off."""

STALL = 0.2
"""Where the time for an answer is over by as much, this process was held up, and asks again."""

WRITE_WITHIN = 15.0
"""How many seconds the kernel may take to accept one batch of frames."""

_HEADER = struct.Struct("!BBHII")
_BATCH = 65519
"""What fits into one message of Noise."""

_ROOM = 4 * _BATCH
_CONTROLS = 4096

_log = logging.getLogger(__name__)


def check_version(found: str) -> None:
    """Errors: :class:`ConfigError` where it is not the version that is mended here."""
    if found != MENDS:
        raise ConfigError(
            f"libp2p {found} is installed, and what kwaai-lobe-libp2p mends is libp2p {MENDS}: "
            f"install that with: pip install libp2p=={MENDS}"
        )


class Outbox:
    """Frames of one connection on their way out, which one task sends: whole, and in order.

    Stock Yamux encrypts and sends in the task of whoever writes. Where that is cancelled half-way,
    the cipher of the two ends is out of step for ever, and the whole connection dies. Also its
    reader answers pings itself, and so waits for a peer that reads nothing.
    """

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._controls = 0
        self._closed = False
        self._changed = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    async def put(self, frame: bytes) -> None:
        """Take a frame. Those without a body never wait, but may not pile up for ever."""
        if len(frame) == _HEADER.size:
            self._controls += 1
            if self._controls > _CONTROLS:
                raise ConnectionClosedError("the peer asks for answers that it does not read")
        else:
            while self._size >= _ROOM and not self._closed:
                await self._room.park()
        if self._closed:
            raise ConnectionClosedError("the connection is closed")
        self._frames.append(frame)
        self._size += len(frame)
        self._changed.unpark_all()

    async def take(self) -> bytes:
        """What can be sent together, at least one frame."""
        while not self._frames:
            await self._changed.park()
        batch = [self._frames.popleft()]
        size = len(batch[0])
        while self._frames and size + len(self._frames[0]) <= _BATCH:
            batch.append(self._frames.popleft())
            size += len(batch[-1])
        self._controls -= sum(len(frame) == _HEADER.size for frame in batch)
        self._size -= size
        self._room.unpark_all()
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def close(self) -> None:
        self._closed = True
        self._room.unpark_all()


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
            _give_up(self._conn, "it sends more than it was granted")
        _heard(self._conn, len(data))
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    def __init__(self, conn: Yamux) -> None:
        super().__init__()
        self._conn = conn

    def __setitem__(self, stream: int, buffer: bytearray) -> None:
        super().__setitem__(stream, Unread(self._conn, stream))


class _Parts:
    """What the remedies keep beside a connection."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.heard = trio.current_time()
        self.unread = 0
        self.unchecked = 0


_live: weakref.WeakSet[Yamux] = weakref.WeakSet()
_parts: weakref.WeakKeyDictionary[Yamux, _Parts] = weakref.WeakKeyDictionary()


def _heard(conn: Yamux, size: int) -> None:
    """Note a sign of life, and now and then see that not too much lies about unread."""
    parts = _parts[conn]
    parts.heard = trio.current_time()
    parts.unchecked += size
    if parts.unchecked < 1 << 20:
        return
    parts.unchecked = 0
    parts.unread = sum(map(len, conn.stream_buffers.values()))
    if sum(_parts[one].unread for one in _live) > UNREAD:
        _give_up(max(_live, key=lambda one: _parts[one].unread), "it holds most of what is unread")


def _give_up(conn: Yamux, why: str) -> None:
    _log.info("the connection to %s is closed: %s", conn.peer_id, why)
    abandon(conn)


def abandon(conn: Yamux) -> None:
    """End a connection at once, from any task: what runs it cleans up."""
    _live.discard(conn)
    conn.event_shutting_down.set()
    if conn._nursery is not None:  # noqa: SLF001
        conn._nursery.cancel_scope.cancel()  # noqa: SLF001


_stock_init = Yamux.__init__
_stock_start = Yamux.start
_stock_cleanup = Yamux._cleanup_on_error  # noqa: SLF001


def _init(
    self: Yamux,
    secured_conn: Any,
    peer_id: ID,
    is_initiator: bool | None = None,
    on_close: Any = None,
) -> None:
    _stock_init(self, secured_conn, peer_id, is_initiator, on_close)
    _parts[self] = _Parts()
    _live.add(self)
    self.stream_buffers = _Buffers(self)


async def _start(self: Yamux) -> None:
    """Run the connection, and clean up however that ends: stock leaves what was cancelled."""
    try:
        await _stock_start(self)
    finally:
        with trio.CancelScope(shield=True):
            await self._cleanup_on_error()


async def _cleanup(self: Yamux) -> None:
    _live.discard(self)
    _parts[self].outbox.close()
    await _stock_cleanup(self)


async def _write_frame(self: Yamux, data: bytes) -> None:
    await _parts[self].outbox.put(data)


async def _read_data_body(self: Yamux, length: int) -> bytes:
    """The body of a data frame: stock reads up to 16 MiB of it before it looks whose it is."""
    if length > MAX_BODY:
        _give_up(self, f"it announces a frame of {length} bytes")
        await trio.sleep_forever()  # until the cancellation that this was
    return await _stock_read_body(self, length)


_stock_read_body = Yamux._read_data_body  # noqa: SLF001


async def _watch(self: Yamux) -> None:
    """Send what is to be sent, and see whether the peer is still there.

    Stock measures the round-trip time twice a minute, and draws no conclusion from silence.
    """
    parts = _parts[self]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send, self)
        while True:
            asked = trio.current_time()
            try:
                await _ping(self, PONG_WITHIN)
            except ConnectionClosedError as error:
                _give_up(self, str(error))
            held_up = trio.current_time() - asked - PONG_WITHIN > STALL
            if parts.heard < asked and not held_up:
                _give_up(self, f"nothing has come from it for {PONG_WITHIN} s")
            await trio.sleep(0 if held_up else PING_EVERY)


async def _ping(self: Yamux, seconds: float) -> None:
    """Ask for a sign of life and wait for it."""
    self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
    event = _Pong(_parts[self])
    self._ping_event = event  # type: ignore[assignment]  # which only sets it
    self._ping_sent_time = trio.current_time()
    await self._write_frame(_HEADER.pack(0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, self._ping_id))
    with trio.move_on_after(seconds):
        await event.wait()


class _Pong:
    """The event of an answer, which is a sign of life as well."""

    def __init__(self, parts: _Parts) -> None:
        self._event = trio.Event()
        self._parts = parts

    def set(self) -> None:
        self._parts.heard = trio.current_time()
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


async def _send(self: Yamux) -> None:
    outbox = _parts[self].outbox
    try:
        while True:
            batch = await outbox.take()
            with trio.fail_after(WRITE_WITHIN):
                await self.secured_conn.write(batch)
    except Exception as error:  # noqa: BLE001 - whatever the layers below raise, it is over
        _give_up(self, f"nothing can be sent to it: {error!r}")


class _SendWindow:
    """How many bytes may be sent on a stream; who waits for more is woken, and need not poll."""

    def __get__(self, stream: YamuxStream, owner: type[YamuxStream]) -> int:
        return stream.__dict__["send_window"]  # type: ignore[no-any-return]

    def __set__(self, stream: YamuxStream, value: int) -> None:
        grown = value > stream.__dict__.get("send_window", value)
        stream.__dict__["send_window"] = value
        if grown:
            _parts[stream.conn].heard = trio.current_time()
            _wake(stream)


class _Flag:
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


async def _write(self: YamuxStream, data: bytes) -> None:
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
        size = min(len(view), self.send_window, _BATCH - _HEADER.size)
        frame = _HEADER.pack(0, yamux.TYPE_DATA, 0, self.stream_id, size) + view[:size]
        await self.conn._write_frame(frame)  # noqa: SLF001
        self.send_window -= size
        view = view[size:]


_stock_tune = YamuxStream._auto_tune_and_send_window_update  # noqa: SLF001


async def _read(self: YamuxStream, n: int | None = -1) -> bytes:
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


def mend() -> None:
    """Put every remedy in its place."""
    check_version(version("libp2p"))
    # f-strings for every frame are built even so, but not written for every hostile byte
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    yamux.MAX_WINDOW_SIZE = MAX_WINDOW
    patches: dict[type, dict[str, Any]] = {
        Yamux: {
            "__init__": _init,
            "start": _start,
            "_cleanup_on_error": _cleanup,
            "_measure_rtt_loop": _watch,
            "_read_data_body": _read_data_body,
            "_write_frame": _write_frame,
        },
        YamuxStream: {
            "closed": _Flag("closed"),
            "read": _read,
            "send_closed": _Flag("send_closed"),
            "send_window": _SendWindow(),
            "write": _write,
        },
    }
    for kind, parts in patches.items():
        for name, part in parts.items():
            setattr(kind, name, part)


mend()
