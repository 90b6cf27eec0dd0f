"""Frames over a connected socket, without a thread of their own."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import trio

from kwaai_core.errors import FrameError, PeerLost
from kwaai_core.peering import DataChannel
from kwaai_core.span.frames import Frame, FrameReader, encode
from kwaai_core.span.secure import context_of
from kwaai_core.testing.toy import WIDTH

HANDSHAKE_SECONDS = 5.0
MOST_ROWS = 64
_PIECE = 1 << 16


async def line_over(channel: DataChannel, peer: str) -> FrameLine:
    """A line over a channel, after the handshake; whoever asked calls :meth:`FrameLine.run`.

    Errors: :class:`PeerLost`; the socket is closed then.
    """
    plain = trio.SocketStream(trio.socket.from_stdlib_socket(channel.socket))
    if not channel.certificate:
        return FrameLine(plain, peer)
    try:
        secured = trio.SSLStream(plain, context_of(channel), server_side=channel.server)
        with trio.fail_after(HANDSHAKE_SECONDS):
            await secured.do_handshake()
    except (OSError, ValueError, trio.TooSlowError, trio.BrokenResourceError) as error:
        await trio.aclose_forcefully(plain)
        raise PeerLost(f"the handshake with {peer} failed: {error!r}") from error
    except BaseException:
        await trio.aclose_forcefully(plain)
        raise
    return FrameLine(secured, peer)


class FrameLine:
    """Frames to and from ``peer``; :meth:`run` carries them, and closes the line at its end."""

    def __init__(self, stream: trio.abc.Stream, peer: str) -> None:
        self.peer = peer
        self._stream = stream
        self._waiting, self._unsent = trio.open_memory_channel[Frame](inf)
        self._reader = FrameReader(WIDTH, MOST_ROWS)

    def send(self, frame: Frame) -> None:
        """Have a frame sent, if the line is still there."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            self._waiting.send_nowait(frame)

    async def run(
        self, take: Callable[[Frame], None], going: Callable[[], Awaitable[None]]
    ) -> None:
        """Give ``take`` what comes, until the line ends; ``going`` is awaited before each move.

        Errors: :class:`PeerLost`, which says why it has ended; :class:`FrameError` from ``take``
        is the peer's fault.
        """
        reason = "it closed the connection"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, going)
                while data := await self._stream.receive_some(_PIECE):
                    await going()
                    for frame in self._reader.feed(bytes(data)):
                        take(frame)
                nursery.cancel_scope.cancel()
        except* FrameError as error:
            reason = f"it broke the protocol: {error.exceptions[0]}"
        except* (OSError, ssl.SSLError, trio.BrokenResourceError, trio.ClosedResourceError):
            reason = "the connection broke"
        finally:
            self._waiting.close()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
        raise PeerLost(f"{self.peer}: {reason}")

    async def _write(self, going: Callable[[], Awaitable[None]]) -> None:
        async for frame in self._unsent:
            await going()
            await self._stream.send_all(encode(frame))
