"""Serving the node's apps: on a loopback port, and on the Unix socket in its state folder.

hypercorn parses HTTP/1.1 and speaks ASGI; what is around it is here, because its own server lets
one client do harm to all others: an HTTP/2 frame that it does not expect ends it, and a client
that stops reading can never be made to leave (both seen in hypercorn 0.18).
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import h11
import trio
from hypercorn import Config
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import EventWrapper, TrioSingleTask, WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from kwaai_core.app import Served, build_app
from kwaai_core.errors import ConfigError, RequestError
from kwaai_core.local import SOCKET
from kwaai_core.replies import error_reply
from kwaai_core.security import new_request_id, request_id_header, require_loopback
from kwaai_core.sse import Calls

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

    from kwaai_core.config import ServerSettings

log = logging.getLogger("kwaai.http")

_BACKLOG = 128
_LAST_WORDS = 1.0  # seconds, for the error events of streams that had to be ended
_STALL = 60.0  # seconds in which a client has to take what is sent to it
_MAX_HEAD = 2**14  # bytes of a request's line and headers
_MAX_READ = 2**16
_CLOSE = (b"connection", b"close")


async def serve(
    node: Served,
    settings: ServerSettings,
    state: Path,
    *,
    stop: trio.Event | None = None,
    on_bound: Callable[[Sequence[str]], None] = lambda urls: None,
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a node on its port and on ``<state>/node.sock`` (0600), until ``stop`` is set.

    Then nobody new comes in, answers may finish for ``grace_seconds``, and streams that are still
    open end with an error. ``on_bound`` and ``task_status`` get the base URLs once it listens.

    Errors:
      ConfigError: the host is not loopback, or the port or the socket's path cannot be had.
    """
    require_loopback(settings.host)
    stop = trio.Event() if stop is None else stop
    calls = Calls()
    with _listen(settings.host, settings.port) as tcp, _listen_locally(state) as local:
        url = _url(tcp)
        door = _Server(build_app(node, settings, calls=calls))
        back = _Server(build_app(node, settings, calls=calls, local=True))
        async with trio.open_nursery() as grace:
            async with trio.open_nursery() as clients, trio.open_nursery() as accepting:
                for server, listener in ((door, tcp), (back, local)):
                    await accepting.start(server.accept, listener, clients)
                on_bound([url])
                task_status.started([url])
                try:
                    await stop.wait()
                except trio.Cancelled:
                    _abort([door, back])  # or a client that does not read could hold us up
                    raise
                accepting.cancel_scope.cancel()
                grace.start_soon(_wind_up, [door, back], calls, settings.grace_seconds)
            grace.cancel_scope.cancel()


async def _wind_up(servers: Sequence[_Server], calls: Calls, grace_seconds: float) -> None:
    for server in servers:
        await server.context.terminated.set()
    await trio.sleep(grace_seconds)
    calls.end()
    await trio.sleep(_LAST_WORDS)
    _abort(servers)


def _abort(servers: Sequence[_Server]) -> None:
    for server in servers:
        for connection in server.connections:
            connection.abort()


class _Server:
    """One app on one listening socket."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = ASGIWrapper(app)  # type: ignore[arg-type]  # starlette types scopes as dicts
        self.context = WorkerContext(None)
        self.config = Config()
        self.config.include_server_header = False
        self.config.h11_max_incomplete_size = _MAX_HEAD
        self.config.errorlog = log
        self.connections: set[_Connection] = set()

    async def accept(
        self,
        listener: socket.socket,
        clients: trio.Nursery,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections, each in a task in ``clients``; a crash of one stays in it."""
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        await trio.serve_listeners(
            self._attend, listeners, handler_nursery=clients, task_status=task_status
        )

    async def _attend(self, stream: trio.SocketStream) -> None:
        connection = _Connection(self, stream)
        self.connections.add(connection)
        try:
            await connection.run()
        except Exception:  # what a client sends must not end the node
            log.exception("a connection was dropped")
        finally:
            self.connections.discard(connection)


class _Connection:
    """One client: bytes between its socket and hypercorn's HTTP/1.1."""

    def __init__(self, server: _Server, stream: trio.SocketStream) -> None:
        self._server = server
        self._stream = stream
        self._whole = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending = trio.Lock()
        self._stalled = trio.CancelScope()  # of the one that has the lock
        self._idle = TrioSingleTask()

    def abort(self) -> None:
        """End it now, whatever it is doing."""
        self._whole.cancel()
        self._stalled.cancel()

    async def run(self) -> None:
        """Serve requests until the client leaves, is idle for too long, or breaks the protocol."""
        raw = self._stream.socket
        with suppress(OSError), self._whole:
            async with TaskGroup() as self._tasks:
                self._protocol = _Http11(
                    self._server.app,
                    self._server.config,
                    self._server.context,
                    self._tasks,
                    ConnectionState({}),
                    False,
                    parse_socket_addr(raw.family, raw.getpeername()),
                    parse_socket_addr(raw.family, raw.getsockname()),
                    self._send,
                )
                self._protocol.can_read = _Turn(raw, self._reading.cancel)
                await self._idle.restart(self._tasks, self._expire)
                await self._read()

    async def _read(self) -> None:
        data = b"?"
        with self._reading, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data:
                data = bytes(await self._stream.receive_some(_MAX_READ))
                await self._protocol.handle(RawData(data))
        await self._idle.stop()
        self._stalled.cancel()  # a send that waits for a client that has left
        await self._protocol.handle(Closed())

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send_bytes(event.data)
        elif isinstance(event, Closed):
            await self._close()
        elif isinstance(event, Updated):
            if event.idle:
                await self._idle.restart(self._tasks, self._expire)
            else:
                await self._idle.stop()

    async def _send_bytes(self, data: bytes) -> None:
        """Send all of it, though the caller be cancelled: half a chunk would garble the rest.

        A client that keeps up has room in its socket's buffer, so one system call is all.
        """
        if not self._sending.locked():
            try:
                data = data[os.write(self._stream.socket.fileno(), data) :]
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
        await trio.aclose_forcefully(self._stream)
        await self._protocol.handle(Closed())

    async def _expire(self) -> None:
        with trio.move_on_after(self._server.config.keep_alive_timeout):
            await self._server.context.terminated.wait()
        with trio.CancelScope(shield=True):
            await self._close()


class _Turn(EventWrapper):
    """When the next request may be read. Whoever waits for it notices a client that leaves.

    hypercorn reads nothing meanwhile, so it would not: not where a request offers an upgrade, as
    some clients' every request does, and not where the next request is here already.
    """

    def __init__(self, raw: trio.socket.SocketType, leave: Callable[[], None]) -> None:
        super().__init__()
        self._raw = raw
        self._leave = leave

    async def wait(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await super().wait()
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        with suppress(OSError):
            if await self._raw.recv(1, socket.MSG_PEEK):
                return  # the next request; nobody can see what is behind it
        self._leave()


class _Http11(H11Protocol):
    """HTTP/1.1 and nothing else: no HTTP/2, no WebSocket, and JSON for what h11 refuses."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """hypercorn would change to HTTP/2 here."""

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=headers,
                http_version=request.http_version,
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        what = "its headers are too large" if status_code == 431 else "it is not valid HTTP/1.1"
        reply = error_reply(RequestError(f"the request was refused: {what}"), status_code)
        headers = [*reply.raw_headers, request_id_header(new_request_id()), _CLOSE]
        await self._send_h11_event(
            h11.Response(
                status_code=status_code, headers=headers + self.config.response_headers("h11")
            )
        )
        await self._send_h11_event(h11.Data(data=bytes(reply.body)))
        await self._send_h11_event(h11.EndOfMessage())


@contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket; hypercorn's own would raise a bare OSError where it cannot bind."""
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host} port {port}: {error.strerror}. Choose another port: "
                "kwaai run --port, or [server] port in kwaai.toml"
            ) from None
        yield listener


@contextmanager
def _listen_locally(state: Path) -> Iterator[socket.socket]:
    """The node's Unix socket, whoever can open which is the node's own user."""
    path = state / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
                path.unlink()  # left by a node that was killed: the state's lock is ours
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {path}: {error}. Set KWAAI_STATE to a folder of your own whose "
                "path is short"
            ) from None
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
