"""Serving the node's apps: on a port, and on the Unix socket in its state folder."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import trio
from hypercorn import Config
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext

from kwaai_core.errors import ConfigError
from kwaai_core.http.app import Served, build_app
from kwaai_core.http.connection import Connection
from kwaai_core.http.keys import Keys, check_public
from kwaai_core.http.metrics import Metrics
from kwaai_core.http.security import Guard
from kwaai_core.http.sse import Calls
from kwaai_core.http.tls import tls_context
from kwaai_core.local import SOCKET, listener_on

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from starlette.types import ASGIApp

    from kwaai_core.config import ServerSettings

log = logging.getLogger("kwaai.http")

_BACKLOG = 1024  # a connection that finds the queue full tries again only after a second
_LAST_WORDS = 1.0  # seconds, for the error events of streams that had to be ended
_MAX_HEAD = 2**14  # bytes of a request's line and headers
_CLEAR = (
    "other machines reach this node without TLS, and whoever is in between can read keys and "
    "answers: set [server] certfile and keyfile, or put something with TLS in front"
)


async def serve(
    node: Served,
    settings: ServerSettings,
    state: Path,
    *,
    port: bool = True,
    stop: trio.Event | None = None,
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a node on its port and on ``<state>/node.sock`` (0600), until ``stop`` is set.

    The keys in ``state`` are those of the port.

    Then nobody new comes in, answers may finish for ``grace_seconds``, and streams that are still
    open end with an error. ``task_status`` gets the base URLs once it listens: none where ``port``
    is false, and only the socket is served.

    Errors:
      ConfigError: the port or the socket's path cannot be had, the files for TLS are not usable, or
        other machines would reach the port and there is no key.
    """
    stop = trio.Event() if stop is None else stop
    tls = tls_context(settings)
    if port:
        check_public(settings, state)
        if not (settings.loopback or tls):
            log.warning(_CLEAR)
    calls, places = Calls(), (_listen_locally(state), _listen(settings.host, settings.port))
    metrics = Metrics(node.statuses, calls.count)
    guard = Guard(settings, Keys(state, always=not settings.loopback))
    with ExitStack() as open_:
        listeners = [open_.enter_context(place) for place in places[: 1 + port]]
        servers = [
            _Server(
                build_app(node, settings, guard if of_port else None, calls=calls, metrics=metrics),
                settings.connections,
                tls if of_port else None,
            )
            for of_port in (False, True)[: 1 + port]
        ]
        async with trio.open_nursery() as grace:
            async with trio.open_nursery() as clients, trio.open_nursery() as accepting:
                for server, listener in zip(servers, listeners, strict=True):
                    await accepting.start(server.accept, listener, clients)
                task_status.started([_url(listener, tls) for listener in listeners[1:]])
                try:
                    await stop.wait()
                except trio.Cancelled:
                    _abort(servers)  # or a client that does not read could hold us up
                    raise
                accepting.cancel_scope.cancel()
                grace.start_soon(_wind_up, servers, calls, settings.grace_seconds)
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
    """One app on one listening socket, for so many connections at a time.

    One more has to find a connection on which nothing is asked: the oldest of those ends for it.
    """

    def __init__(self, app: ASGIApp, limit: int, tls: ssl.SSLContext | None = None) -> None:
        self._limit = limit
        self._tls = tls
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]  # starlette types scopes as dicts
        self.context = WorkerContext(None)
        self.config = Config()
        self.config.include_server_header = False
        self.config.h11_max_incomplete_size = _MAX_HEAD
        self.config.errorlog = log
        self.connections: dict[Connection, None] = {}  # the oldest first

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
        secured = trio.SSLStream(stream, self._tls, server_side=True) if self._tls else None
        connection = Connection(self._app, self.config, self.context, stream, secured)
        if len(self.connections) >= self._limit:
            idle = next((one for one in self.connections if one.give_way()), None)
            if idle is None:
                await connection.refuse()
                return
            del self.connections[idle]
        self.connections[connection] = None
        try:
            await connection.run()
        except Exception:  # what a client sends must not end the node
            log.exception("a connection was dropped")
        finally:
            self.connections.pop(connection, None)


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
            why = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE and (owner := listener_on(port)):
                why += f" by {owner}"
            raise ConfigError(
                f"cannot listen on {host} port {port}: {why}. Choose another port: "
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


def _url(listener: socket.socket, tls: ssl.SSLContext | None) -> str:
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{port}"
