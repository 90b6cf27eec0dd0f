"""Streams of one connection: bytes as Yamux carries them, and frames as the role has them."""

from __future__ import annotations

import trio
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import YamuxStream

from kwaai_core import FrameError, PeerLost
from kwaai_core.framing import END, FrameReader, framed
from kwaai_core.peering import DEADLINE
from kwaai_lobe_libp2p import remedies
from kwaai_lobe_libp2p.tasks import within

_CHUNK = 1 << 18
_BROKEN = (IOException, MuxedConnError, MuxedStreamError, OSError)


class ByteStream:
    """A stream of bytes to ``peer``; what opens or serves it closes it, by :meth:`reset` at last.

    ``opener``: whether this end opened it; ``host``: the number of the peer's machine, None where
    it is reached through a relay. Errors of whatever reads or writes: :class:`PeerLost`.
    """

    def __init__(self, muxed: YamuxStream, peer: str, *, opener: bool, host: str | None) -> None:
        self.peer = peer
        self.opener = opener
        self.host = host
        self._muxed = muxed
        self._buffer = bytearray()
        self._given_up = False

    async def read(self, n: int) -> bytes:
        """Exactly ``n`` bytes; a cancelled call loses none."""
        buffer = self._buffer
        while len(buffer) < n:
            buffer += await self._read()
        found = bytes(buffer[:n])
        del buffer[:n]
        return found

    async def read_some(self) -> bytes:
        """What there is, at least a byte."""
        if self._buffer:
            found = bytes(self._buffer)
            self._buffer.clear()
            return found
        return await self._read()

    async def _read(self) -> bytes:
        if self._given_up:
            raise PeerLost(f"the stream to {self.peer} was given up here")
        try:
            return await self._muxed.read(_CHUNK)
        except _BROKEN as error:
            raise PeerLost(f"the stream to {self.peer} broke off: {error}") from error

    async def write(self, data: bytes) -> None:
        """Hand all of it to the connection."""
        if self._given_up:
            raise PeerLost(f"the stream to {self.peer} was given up here")
        try:
            await self._muxed.write(data)
        except _BROKEN as error:
            raise PeerLost(f"{self.peer} is lost, or has given the stream up: {error}") from error

    async def close_write(self) -> None:
        """Close this direction; the other one stays open."""
        try:
            await self._muxed.close()
        except _BROKEN as error:
            raise PeerLost(f"{self.peer} is lost: {error}") from error

    async def finish(self, seconds: float = 5.0) -> None:
        """Close this direction, and wait for the peer to be through with what was written."""
        try:
            await self.close_write()
            with trio.move_on_after(seconds):
                while True:
                    await self.read_some()
        except PeerLost:
            pass  # it has closed its direction, too

    async def reset(self) -> None:
        """Give it up, both ways, and free what it holds; nothing where both ends are through."""
        if self._given_up:
            return
        self._given_up = True
        muxed = self._muxed
        with trio.CancelScope(shield=True):  # brief: it waits for nobody
            try:
                await muxed.reset()
            except _BROKEN:
                pass  # the connection is gone, and the stream with it
            await remedies.forget(muxed)


class FrameStream:
    """A :class:`kwaai_core.Stream`."""

    def __init__(self, wire: ByteStream, protocol: str, max_frame: int) -> None:
        self.wire = wire
        self._protocol = protocol
        self._max_frame = max_frame
        self._reader = FrameReader(max_frame)
        self._ended = False
        self._sending = self._receiving = False

    @property
    def peer(self) -> str:
        """See :attr:`kwaai_core.Stream.peer`."""
        return self.wire.peer

    @property
    def protocol(self) -> str:
        """See :attr:`kwaai_core.Stream.protocol`."""
        return self._protocol

    async def send(
        self, frame: bytes | bytearray | memoryview, *, seconds: float = DEADLINE
    ) -> None:
        """See :meth:`kwaai_core.Stream.send`."""
        try:
            if self._ended:
                raise FrameError("nothing can be sent on a stream after its end")
            data = framed(frame, self._max_frame)
        except FrameError:
            await self.wire.reset()
            raise
        await self._write(data, seconds)

    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        """See :meth:`kwaai_core.Stream.receive`."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            frame = self._reader.take()
            if frame is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return frame
            with within(seconds, f"a frame of {self.peer}"):
                while frame is None:
                    self._reader.feed(await self.wire.read_some())
                    frame = self._reader.take()
            return frame
        except FrameError:
            await self.wire.reset()
            raise
        finally:
            self._receiving = False

    async def end(self, *, seconds: float = DEADLINE) -> None:
        """See :meth:`kwaai_core.Stream.end`."""
        if not self._ended:
            await self._write(END, seconds)
            self._ended = True
            with within(seconds, f"ending a stream to {self.peer}"):
                await self.wire.close_write()

    async def aclose(self) -> None:
        """See :meth:`kwaai_core.Stream.aclose`."""
        await self.wire.reset()
        await trio.lowlevel.checkpoint()

    async def _write(self, data: bytes, seconds: float) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            with within(seconds, f"sending to {self.peer}"):
                await trio.lowlevel.checkpoint()
                await self.wire.write(data)
        except BaseException:
            await self.wire.reset()
            raise
        finally:
            self._sending = False
