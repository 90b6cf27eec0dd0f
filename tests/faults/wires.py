"""What lies between two workers: links whose frames the tests see, hold, damage and lose.

A node under test hands the sockets of its data channels over (see :mod:`tests.faults.wire_lobe`).
The handshake is done here, with the node's own certificate, so that a frame can be looked at on its
way from the one worker to the other.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import Path
from random import Random
from typing import Protocol

import trio

from kwaai_core import DataChannel
from kwaai_core.span.frames import Frame, FrameReader, Kind, encode
from kwaai_core.span.secure import context_of

_PIECE = 1 << 18
_MOST_ROWS = 4096
_MOST_BYTES = 1 << 16
_HANDSHAKE_SECONDS = 10.0
_ENDS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Way(Enum):
    """The direction of a frame."""

    DOWN = "from the owner of a session to its host"
    UP = "from the host to the owner"


class Watcher(Protocol):
    """Who looks at what passes."""

    def before(self, wire: Wire, way: Way, frame: Frame) -> bool:
        """A frame is about to be passed on; False where that shall not be."""
        ...

    def after(self, wire: Wire, way: Way, frame: Frame) -> None:
        """It was passed on."""
        ...


class Wire:
    """One link of the node whose process is ``pid``.

    ``lost`` are the directions in which nothing arrives any more; what is in ``once`` befalls the
    next STEP or RESULT in that direction: *corrupt*, *duplicate* or *reorder*. A step through it
    takes ``factor`` times as long as its host says, and ``delay`` seconds on top. While ``frozen``
    is set, what comes from the host waits.
    """

    def __init__(self, pid: int, random: Random) -> None:
        self.pid = pid
        self.lost: set[Way] = set()
        self.once: dict[Way, str] = {}
        self.factor, self.delay = 1.0, 0.0
        self.frozen: trio.Event | None = None
        self._random = random
        self._late: dict[Way, bytes] = {}
        self._scope = trio.CancelScope()

    def cut(self) -> None:
        """Close both ends."""
        self._scope.cancel()

    def heal(self) -> None:
        """From now on all is well. A link that has lost something ends: no TCP skips bytes."""
        self.thaw()
        self.factor, self.delay = 1.0, 0.0
        self.once.clear()
        if self.lost:
            self.cut()

    def thaw(self) -> None:
        """What waits is passed on."""
        if self.frozen is not None:
            self.frozen.set()
            self.frozen = None

    async def carry(
        self, owner: trio.abc.Stream, host: trio.abc.Stream, watcher: Watcher, width: int
    ) -> None:
        """Until an end is closed."""

        async def pump(way: Way, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
            reader = FrameReader(width, _MOST_ROWS)
            with suppress(*_ENDS):
                while data := await source.receive_some(_PIECE):
                    for frame in reader.feed(bytes(data)):
                        if watcher.before(self, way, frame):
                            await sink.send_all(await self._through(way, frame))
                            watcher.after(self, way, frame)
            if self.lost:  # nobody hears of an end either
                await trio.sleep_forever()
            self.cut()

        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, Way.DOWN, owner, host)
                nursery.start_soon(pump, Way.UP, host, owner)

    async def _through(self, way: Way, frame: Frame) -> bytes:
        """What arrives of a frame, once it does."""
        if way is Way.UP and self.frozen is not None:
            await self.frozen.wait()
        if way in self.lost:
            return b""
        data = encode(frame)
        if frame.kind is Kind.RESULT and (self.factor > 1 or self.delay):
            took = (frame.waited + frame.computed) / 1e6
            await trio.sleep(took * (self.factor - 1) + self.delay)
        if frame.kind in (Kind.STEP, Kind.RESULT):
            match self.once.pop(way, None):
                case "corrupt":
                    return self._damaged(data)
                case "duplicate":
                    return data * 2
                case "reorder":
                    self._late[way] = data
                    return b""
        return data + self._late.pop(way, b"")

    def _damaged(self, data: bytes) -> bytes:
        bit = self._random.randrange(len(data) * 8)
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)


class Wires:
    """All links of a swarm that come through here. ``watcher`` may be changed at any time."""

    def __init__(self, width: int, watcher: Watcher, random: Random) -> None:
        self.watcher = watcher
        self.all: set[Wire] = set()
        self._width = width
        self._random = random

    def before(self, wire: Wire, way: Way, frame: Frame) -> bool:
        return self.watcher.before(wire, way, frame)

    def after(self, wire: Wire, way: Way, frame: Frame) -> None:
        self.watcher.after(wire, way, frame)

    @asynccontextmanager
    async def opened(self, path: Path) -> AsyncIterator[None]:
        """Take links at a Unix socket while the context is open."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen(64)
            listener.setblocking(False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._accept, listener, nursery)
                yield
                nursery.cancel_scope.cancel()

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            came, _ = listener.accept()
            nursery.start_soon(self._take, came)

    async def _take(self, came: socket.socket) -> None:
        with came:
            came.setblocking(False)
            await trio.lowlevel.wait_readable(came)
            data, descriptors, _, _ = socket.recv_fds(came, _MOST_BYTES, 2)
        told = json.loads(data)
        outer, inner = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        certificate, key, trusted = (
            told[name].encode() for name in ("certificate", "key", "trusted")
        )
        context = context_of(DataChannel(outer, certificate, key, trusted, told["server"]))
        outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        owner = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(outer)),
            context,
            server_side=told["server"],
        )
        host = trio.SocketStream(trio.socket.from_stdlib_socket(inner))
        wire = Wire(told["node"], self._random)
        self.all.add(wire)
        try:
            with suppress(*_ENDS, trio.TooSlowError):
                with trio.fail_after(_HANDSHAKE_SECONDS):
                    await owner.do_handshake()
                await wire.carry(owner, host, self, self._width)
        finally:
            self.all.discard(wire)
            await trio.aclose_forcefully(owner)
            await trio.aclose_forcefully(host)
