"""Streams over a simulated connection: bytes by :class:`Wire`, frames by :class:`MemoryStream`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import trio

from kwaai_core.errors import DeadlinePassed, FrameError, PeerLost
from kwaai_core.framing import END, FrameReader, framed
from kwaai_core.peering import DEADLINE, DataChannel
from kwaai_core.testing.network.lines import Connection

WINDOW = 1 << 20
"""A sender waits while as many bytes have not been read yet."""


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Errors: :class:`DeadlinePassed`."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlinePassed(f"{what} took more than {seconds:g} s")


class Wire:
    """One end of a stream of bytes; ``far`` is the other. Deadlines are on trio's clock."""

    far: Wire

    def __init__(self, connection: Connection, end: int, opener: int) -> None:
        self.connection = connection
        self.end = end
        self.closed = False
        self.meetings = 0
        self.channels: deque[DataChannel | None] = deque()
        self.opener = opener == end
        self.inbox: deque[tuple[float, bytes]] = deque()
        self.unread = 0
        self.given_up = inf
        self._lot = trio.lowlevel.ParkingLot()
        connection.wires[self] = None

    @staticmethod
    def opened(connection: Connection, opener: int) -> Wire:
        """The opener's end of a new stream, which counts until that end is closed."""
        near, far = (Wire(connection, end, opener) for end in (opener, 1 - opener))
        near.far, far.far = far, near
        connection.opened[opener] += 1
        return near

    async def read(self, deadline: float = inf) -> bytes:
        """What was written in one piece. Errors: :class:`PeerLost`, :class:`DeadlinePassed`."""
        await self.until(lambda: self.inbox[0][0] if self.inbox else inf, deadline)
        full = self.unread >= WINDOW
        _, data = self.inbox.popleft()
        self.unread -= len(data)
        if full:
            self.far.stir()
        return data

    async def write(self, data: bytes, deadline: float = inf) -> None:
        """Send all of it. Errors: :class:`PeerLost`, :class:`DeadlinePassed`."""
        far, connection = self.far, self.connection
        await self.until(lambda: -inf if far.unread < WINDOW else inf, deadline)
        self.check()
        way = connection.ways[self.end]
        far.inbox.append((way.arrival(len(data)), data))
        far.unread += len(data)
        far.stir()
        if way.breaks():
            connection.lose(self.end)

    async def until(self, due: Callable[[], float], deadline: float = inf) -> None:
        """Wait until what is due at this end is there, and at least for a moment.

        Errors: :class:`PeerLost`, :class:`DeadlinePassed`.
        """
        connection, end, waited = self.connection, self.end, False
        while (at := due()) > connection.there(end, now := trio.current_time()):
            error: PeerLost | DeadlinePassed | None = self._error(now)
            if error is None and now >= deadline:
                error = DeadlinePassed(f"{connection.peers[1 - end]} did nothing in time")
            if error is not None:
                await trio.lowlevel.checkpoint()
                raise error
            await connection.wait(end, min(at, self.given_up), deadline, now, self._lot)
            waited = True
        if not waited:
            await trio.lowlevel.checkpoint()

    def check(self) -> None:
        """Errors: :class:`PeerLost`."""
        if error := self._error(trio.current_time()):
            raise error

    def _error(self, now: float) -> PeerLost | None:
        peer = self.connection.peers[1 - self.end]
        if self.closed:
            return PeerLost(f"the stream to {peer} was given up here")
        if self.given_up <= self.connection.there(self.end, now):
            return PeerLost(f"{peer} has given the stream up")
        return self.connection.error(self.end, now)

    def close(self) -> None:
        """Give the stream up; the other end learns it behind what was sent before."""
        if self.closed:
            return
        self.closed = True
        self.inbox.clear()
        if self.connection.up(self.end):
            self.far.given_up = self.connection.ways[self.end].arrival(0)
        while self.channels:
            if channel := self.channels.popleft():
                channel.socket.close()
        if self.far.closed:
            del self.connection.wires[self], self.connection.wires[self.far]
        if self.opener:
            self.connection.closed_one(self.end)
        self.stir()
        self.far.stir()

    def stir(self) -> None:
        self._lot.unpark_all()


class MemoryStream:
    """A :class:`kwaai_core.Stream` over a ``wire``, on which a test can write what is no frame."""

    def __init__(self, wire: Wire, protocol: str, max_frame: int) -> None:
        self.wire = wire
        self.peer = wire.connection.peers[1 - wire.end]
        self.protocol = protocol
        self._max_frame = max_frame
        self._reader = FrameReader(max_frame)
        self._ended = False
        self._sending = self._receiving = False

    async def send(
        self, frame: bytes | bytearray | memoryview, *, seconds: float = DEADLINE
    ) -> None:
        """See :meth:`kwaai_core.Stream.send`."""
        try:
            if self._ended:
                raise FrameError("nothing can be sent on a stream after its end")
            data = framed(frame, self._max_frame)
        except FrameError:
            self.wire.close()
            raise
        await self._write(data, seconds)

    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        """See :meth:`kwaai_core.Stream.receive`."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving, deadline = True, trio.current_time() + seconds
        try:
            while (frame := self._reader.take()) is None:
                self._reader.feed(await self.wire.read(deadline))
        except FrameError:
            self.wire.close()
            raise
        finally:
            self._receiving = False
        return frame

    async def end(self, *, seconds: float = DEADLINE) -> None:
        """See :meth:`kwaai_core.Stream.end`."""
        if not self._ended:
            await self._write(END, seconds)
            self._ended = True

    async def aclose(self) -> None:
        """See :meth:`kwaai_core.Stream.aclose`."""
        self.wire.close()
        await trio.lowlevel.checkpoint()

    async def _write(self, data: bytes, seconds: float) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self.wire.write(data, trio.current_time() + seconds)
        except BaseException:
            self.wire.close()
            raise
        finally:
            self._sending = False
