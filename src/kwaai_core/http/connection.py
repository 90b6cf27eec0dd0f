"""One client's connection, in HTTP/1.1.

hypercorn parses HTTP and speaks ASGI. What carries its bytes is here, because hypercorn's own
lets one client do harm to all others: an HTTP/2 frame that it does not expect ends the server, and
a client that stops reading can never be made to leave (both seen in hypercorn 0.18).

Where there is TLS, its handshake is the beginning of the first read. So a client has the same
seconds for it and the head of its first request as it has without TLS for the head.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import h11
import trio
from hypercorn import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import EventWrapper, TrioSingleTask, WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from kwaai_core.errors import NoPeerAvailable, RequestError
from kwaai_core.http.replies import error_reply
from kwaai_core.http.security import new_request_id, request_id_header
from kwaai_core.http.target import reduced

_STALL = 60.0  # seconds in which a client has to take what is sent to it
_MAX_READ = 2**16
_FULL = "all connections are busy: try again, or raise [server] connections in kwaai.toml"
_CLOSE = (b"connection", b"close")
_FAREWELL = 1.0  # seconds, to say in TLS that nothing more comes


class Connection:
    """One client: bytes between its socket, or TLS on it, and hypercorn's HTTP/1.1."""

    _protocol: "_Http11"

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        tls: trio.SSLStream[trio.SocketStream] | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._raw = stream.socket
        self._tls = tls
        self._stream = tls or stream
        self._heard = False
        self._ahead = b""  # what was read while an answer was under way
        self._whole = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending = trio.Lock()
        self._stalled = trio.CancelScope()  # of the one that has the lock
        self._idle = TrioSingleTask()

    def abort(self) -> None:
        """End it now, whatever it is doing."""
        self._whole.cancel()
        self._stalled.cancel()

    def give_way(self) -> bool:
        """End it, unless a request is here in full: false where the client waits for its answer."""
        waits = self._protocol.connection.their_state not in (h11.IDLE, h11.SEND_BODY)
        if not waits:
            self._reading.cancel()
        return not waits

    async def refuse(self) -> None:
        """Say that there are too many connections, and end this one.

        In TLS it ends without a word, since that would take a handshake, and a place for it.
        """
        if self._tls is None:
            with suppress(trio.BrokenResourceError):
                await self._stream.send_all(_refusal())
        await trio.aclose_forcefully(self._stream)

    async def run(self) -> None:
        """Serve requests until the client leaves, is idle for too long, or breaks the protocol."""
        raw, secure = self._raw, self._tls is not None
        with suppress(OSError), self._whole:
            async with TaskGroup() as self._tasks:
                common = (self._app, self._config, self._context, self._tasks, ConnectionState({}))
                ends = (raw.getpeername(), raw.getsockname())
                peer, here = (parse_socket_addr(raw.family, end) for end in ends)
                self._protocol = _Http11(*common, secure, peer, here, self._send)
                self._protocol.can_read = _Turn(self._left, self._reading.cancel)
                await self._idle.restart(self._tasks, self._expire)
                await self._read()

    async def _read(self) -> None:
        data = b"?"
        with self._reading, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data:
                data = self._ahead or bytes(await self._stream.receive_some(_MAX_READ))
                self._heard, self._ahead = True, b""
                await self._protocol.handle(RawData(data))
        await self._idle.stop()
        self._stalled.cancel()  # a send that waits for a client that has left
        await self._protocol.handle(Closed())

    async def _left(self) -> bool:
        """Wait until the client leaves, or sends more: then nobody can see what is behind that."""
        if self._tls is None:
            return not await self._raw.recv(1, socket.MSG_PEEK)
        # What comes by the socket is not to be understood, not even that the client leaves.
        self._ahead = self._ahead or bytes(await self._tls.receive_some(_MAX_READ))
        return not self._ahead

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send_bytes(event.data)
        elif isinstance(event, Closed):
            await self._close()
        elif isinstance(event, Updated):
            # The end of an answer looks to its task like a client that left, and cancels it: here.
            with trio.CancelScope(shield=True):
                if event.idle:
                    await self._idle.restart(self._tasks, self._expire)
                else:
                    await self._idle.stop()

    async def _send_bytes(self, data: bytes) -> None:
        """Send all of it, though the caller be cancelled: half a chunk would garble the rest.

        A client that keeps up has room in its socket's buffer, so one system call is all.
        """
        if self._tls is None and not self._sending.locked():
            try:
                data = data[os.write(self._raw.fileno(), data) :]
            except BlockingIOError:
                pass
            except OSError:  # it has left
                await self._close()
                return
        if data:
            await self._send_slowly(data)

    async def _send_slowly(self, data: bytes) -> None:
        deadline = trio.current_time() + _STALL
        with trio.CancelScope(deadline=deadline, shield=True) as scope:
            async with self._sending:
                self._stalled = scope
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_all(data)
                    return
        await self._close()

    async def _close(self) -> None:
        self._reading.cancel()
        with trio.move_on_after(_FAREWELL * self._heard, shield=True):
            await self._stream.aclose()
        # Cut off in the middle, what follows would not be done again; the reader does it then.
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._protocol.handle(Closed())

    async def _expire(self) -> None:
        with trio.move_on_after(self._config.keep_alive_timeout):
            await self._context.terminated.wait()
        with trio.CancelScope(shield=True):
            await self._close()


def _refusal() -> bytes:
    reply = error_reply(NoPeerAvailable(_FULL))
    headers = [*reply.raw_headers, request_id_header(new_request_id()), _CLOSE]
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d \r\n%b\r\n%b" % (reply.status_code, head, bytes(reply.body))


class _Turn(EventWrapper):
    """When the next request may be read. Whoever waits for it notices a client that leaves.

    hypercorn reads nothing meanwhile, so it would not: not where a request offers an upgrade, as
    some clients' every request does, and not where the next request is here already.
    """

    def __init__(self, left: Callable[[], Awaitable[bool]], leave: Callable[[], None]) -> None:
        super().__init__()
        self._left = left
        self._leave = leave

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await super().wait()
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            if not await self._left():
                return
        self._leave()


class _Http11(H11Protocol):
    """HTTP/1.1 and nothing else: no HTTP/2, no WebSocket, and JSON for what h11 refuses."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """hypercorn would change to HTTP/2 here."""

    async def _create_stream(self, request: h11.Request) -> None:
        size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
        if size > self.config.h11_max_incomplete_size:  # which h11 asks of what comes in parts
            await self._refuse(431, "its headers are too large")
            return
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        asked = reduced(request.target, headers)
        if asked is None:
            await self._refuse(400, "its target is neither a path nor a URL of HTTP without a user")
            return
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=asked[0],
                headers=asked[1],
                http_version=request.http_version,
            )
        )

    async def _refuse(self, status_code: int, what: str) -> None:
        await self._send_error_response(status_code, what)
        await self.send(Closed())

    async def _send_error_response(self, status_code: int, what: str = "") -> None:
        large = "its headers are too large" if status_code == 431 else ""  # h11 has seen it
        what = what or large or "it is not valid HTTP/1.1"
        reply = error_reply(RequestError(f"the request was refused: {what}"), status_code)
        headers = [*reply.raw_headers, request_id_header(new_request_id()), _CLOSE]
        await self._send_h11_event(
            h11.Response(
                status_code=status_code, headers=headers + self.config.response_headers("h11")
            )
        )
        await self._send_h11_event(h11.Data(data=bytes(reply.body)))
        await self._send_h11_event(h11.EndOfMessage())
