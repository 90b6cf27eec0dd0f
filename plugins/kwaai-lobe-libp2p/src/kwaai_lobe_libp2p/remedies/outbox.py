"""Frames of a connection on their way out."""

from __future__ import annotations

import struct
from collections import deque

import trio
from libp2p.io.exceptions import ConnectionClosedError

HEADER = struct.Struct("!BBHII")
BATCH = 65519
"""What fits into one message of Noise."""

_ROOM = 4 * BATCH
_CONTROLS = 4096


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
        if len(frame) == HEADER.size:
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
        while self._frames and size + len(self._frames[0]) <= BATCH:
            batch.append(self._frames.popleft())
            size += len(batch[-1])
        self._controls -= sum(len(frame) == HEADER.size for frame in batch)
        self._size -= size
        self._room.unpark_all()
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def close(self) -> None:
        self._closed = True
        self._room.unpark_all()
