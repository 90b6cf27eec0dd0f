"""Connected sockets to the workers of peers: frames in, frames out, without ever waiting."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Mapping

from kwaai_core import FrameError, Span
from kwaai_core.span.frames import Frame, FrameReader, encode
from kwaai_core.span.watch import Silence

MOST_UNSENT = 64 << 20
"""Bytes that may wait for a peer that does not read; then its link is given up."""

_PIECE = 1 << 16
_RECORDS = 1 << 16
_PIECES = 64
_FRAMES = 64
"""After so many frames it is the others' turn: small ones cost more to answer than to read."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkLost(Exception):
    """A link is of no use any more; the message says why."""


class Link:
    """One socket, which it closes with :meth:`close`. ``hosting``: the peer owns the sessions;
    else it replays up to ``replay_rows`` lone rows in one call, is ``rtt`` seconds away, and says
    that it takes ``lone`` seconds for a lone row through each unit. ``near``: it is on this
    machine, as far as addresses tell. ``watched``: whoever selects waits for it to become writable.

    :meth:`send` and :meth:`flush` may be called from any thread, the rest from one; a TLS
    connection must not be read and written at once, so all of it is under one lock, and nothing
    under it waits.
    """

    def __init__(
        self,
        number: int,
        peer: str,
        connection: socket.socket,
        reader: FrameReader,
        *,
        hosting: bool,
        now: float,
    ) -> None:
        self.number = number
        self.peer = peer
        self.hosting = hosting
        self.silence = Silence(now)
        self.watched = False
        self.replay_rows = 1
        self.rtt = 0.0
        self.lone: Mapping[Span, float] = {}
        self._socket = connection
        self._reader = reader
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._full = False
        self._broken = ""
        self.near = False
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.near = _address(connection.getpeername) == _address(connection.getsockname)
        connection.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._unsent)

    @property
    def full(self) -> bool:
        """Whether the socket did not take all that :meth:`flush` had to send."""
        return self._full

    @property
    def broken(self) -> str:
        """Why it is of no use any more, where that is known."""
        return self._broken

    def send(self, frame: Frame) -> None:
        """Send a frame, or keep it until the socket takes it. What fails is told by the next
        :meth:`receive`."""
        self.keep(frame)
        self.flush()

    def keep(self, frame: Frame) -> None:
        """Send a frame with the next :meth:`flush`, or with the next frame that is sent."""
        data = encode(frame)
        with self._lock:
            if not self._broken:
                self._unsent += data
            if len(self._unsent) > MOST_UNSENT:
                self._broken = "it does not read what it is sent"

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        with self._lock:
            while self._unsent and not self._broken:
                piece = bytes(self._unsent[:_RECORDS])  # copying all of it each time would stall
                sent = self._write(piece)
                del self._unsent[:sent]
                if sent < len(piece):
                    break
            self._full = bool(self._unsent) and not self._broken

    def _write(self, data: bytes) -> int:
        """How many bytes of these were taken."""
        sent = 0
        try:
            while sent < len(data):  # what TLS did not take has to be given again, in like pieces
                sent += self._socket.send(data[sent : sent + _RECORDS])
        except _WOULD_BLOCK:
            pass
        except OSError as error:
            self._broken = f"the connection broke: {error}"
        return sent

    def receive(self) -> list[Frame]:
        """The frames that have come. Errors: :class:`LinkLost`."""
        frames: list[Frame] = []
        try:
            for _ in range(_PIECES):  # then it is the others' turn
                with self._lock:
                    data = self._socket.recv(_PIECE)
                if not data:
                    raise LinkLost("it closed the connection")
                frames += self._reader.feed(data)
                if len(frames) > _FRAMES:
                    break
        except _WOULD_BLOCK:
            pass
        except OSError as error:
            raise LinkLost(f"the connection broke: {error}") from None
        except FrameError as error:
            raise LinkLost(f"it sent a broken frame: {error.message}") from None
        if self._broken:
            raise LinkLost(self._broken)
        return frames

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._broken = self._broken or "it was closed"
            self._socket.close()


def _address(name: Callable[[], tuple[object, ...]]) -> object:
    """The address without its port; nothing where the other end has gone already."""
    try:
        return name()[0]
    except OSError:
        return None
