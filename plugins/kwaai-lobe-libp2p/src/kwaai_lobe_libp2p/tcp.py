"""TCP connections as the library wants them: read exactly, written whole, and not too fast."""

from __future__ import annotations

from collections.abc import Callable

import trio
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from multiaddr import Multiaddr

_CHUNK = 1 << 17


class TcpConnection(IRawConnection):
    """A stream of bytes, TCP's or a relay's, under Noise.

    ``read(n)`` gives all ``n`` bytes or fails: the library gives up after a hundred small reads.
    ``heard`` is told that bytes came; ``pace``, told how many, says for how many seconds to wait
    before more are read.
    """

    def __init__(self, stream: trio.abc.Stream, *, initiator: bool) -> None:
        self.is_initiator = initiator
        self.heard: Callable[[], None] | None = None
        self.pace: Callable[[int], float] | None = None
        self._stream = stream
        self._buffer = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        """Exactly ``n`` bytes; None is whatever there is. Errors: ConnectionClosedError."""
        buffer = self._buffer
        while len(buffer) < (1 if n is None else n):
            try:
                data = await self._stream.receive_some(_CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError(f"the connection broke: {error}") from error
            if not data:
                raise ConnectionClosedError("the peer has closed the connection")
            buffer += data
            if self.heard is not None:
                self.heard()
            if self.pace is not None and (wait := self.pace(len(data))):
                await trio.sleep(wait)
        size = len(buffer) if n is None else n
        with memoryview(buffer) as view:
            found = bytes(view[:size])
        del buffer[:size]
        return found

    async def write(self, data: bytes) -> None:
        """Errors: ConnectionClosedError."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(f"the connection broke: {error}") from error

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)

    def cut(self) -> None:
        """Close it from where nothing can be awaited: in the next moment."""
        trio.lowlevel.spawn_system_task(trio.aclose_forcefully, self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.UNKNOWN
