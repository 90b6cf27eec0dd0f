"""The node's HTTP app, and serving it on a loopback port and on the node's own Unix socket."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Protocol

import hypercorn.trio
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from kwaai_core import openai
from kwaai_core.errors import (
    ConfigError,
    KwaaiError,
    LobeFailed,
    ModelLoading,
    ModelNotFound,
)
from kwaai_core.replies import Json, error_reply, routing_reply
from kwaai_core.roles import Host
from kwaai_core.security import Door, Limits, allowed_hosts, require_loopback
from kwaai_core.sse import Calls, Generate
from kwaai_core.types import LobeStatus, ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from kwaai_core.config import ServerSettings

_BACKLOG = 128
_LAST_WORDS = 2.0  # seconds, for the error events of streams that had to be ended


class Served(Host, Protocol):
    """What the app needs of a node."""

    @property
    def routes(self) -> Sequence[tuple[str, Sequence[BaseRoute]]]:
        """The routes of lobes, by the lobe's name."""
        ...

    def ready(self) -> bool:
        """Whether a request would be answered now."""
        ...

    def statuses(self) -> Sequence[LobeStatus]:
        """Every offer of every lobe."""
        ...


def build_app(
    node: Served,
    settings: ServerSettings,
    *,
    local: bool = False,
    calls: Calls | None = None,
) -> Starlette:
    """The app of a node; ``local`` is the one on the Unix socket.

    That one leaves out the check of Host and Origin, and answers ``/lobes``. ``calls`` is what
    the calls being answered are kept in, so that whoever serves the app can end them.
    """
    generate = partial(
        Generate, node, calls=calls or Calls(), ping_seconds=settings.ping_seconds
    )
    routes: list[BaseRoute] = [
        Route("/health", _health),
        Route("/ready", partial(_ready, node)),
        Route("/v1/models", partial(_models, node)),
        Route("/v1/models/{id:path}", partial(_model, node)),
        Route("/v1/chat/completions", generate("chat"), methods=["POST"]),
        Route("/v1/completions", generate("text"), methods=["POST"]),
        *(Mount(f"/lobes/{lobe}", routes=of_lobe) for lobe, of_lobe in node.routes),
    ]
    if local:
        routes.append(Route("/lobes", partial(_lobes, node)))
    hosts = None if local else allowed_hosts(settings.host)
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Door, limits=Limits(body=settings.max_body), hosts=hosts)
        ],
        exception_handlers={HTTPException: _no_route, KwaaiError: _failed},
    )


async def _health(request: Request) -> Response:
    return Json({"status": "alive"})


async def _ready(node: Served, request: Request) -> Response:
    if node.ready():
        return Json({"status": "ready"})
    for status in node.statuses():
        if status.role in ("executor", "router") and status.state in (
            "failed",
            "waiting",
        ):
            raise LobeFailed(status.lobe, status.cause, retry_after=5)
    raise ModelLoading(
        "no executor is ready yet: it is opening, or loads its model", retry_after=1
    )


async def _lobes(node: Served, request: Request) -> Response:
    return Json([asdict(status) for status in node.statuses()])


async def _models(node: Served, request: Request) -> Response:
    return Json(openai.models(await _cards(node)))


async def _model(node: Served, request: Request) -> Response:
    cards = await _cards(node)
    wanted = request.path_params["id"]
    for card in cards:
        if card.id == wanted:
            return Json(openai.model(card))
    raise ModelNotFound(wanted, [card.id for card in cards])


async def _cards(node: Served) -> Sequence[ModelCard]:
    """What the executors that work can run; an id counts for the first that has it."""
    cards: dict[str, ModelCard] = {}
    for executor in node.executors:
        try:
            found = await executor.models()
        except KwaaiError as error:
            logging.getLogger("kwaai.http").warning(
                "a list of models is missing: %s", error
            )
            continue
        for card in found:
            cards.setdefault(card.id, card)
    return tuple(cards.values())


async def _no_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return routing_reply(request.method, request.scope["path"], error)


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, KwaaiError):
        raise error
    return error_reply(error)


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
        apps = [
            (build_app(node, settings, calls=calls), tcp),
            (build_app(node, settings, calls=calls, local=True), local),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_after_grace, stop, settings.grace_seconds, calls)
            async with trio.open_nursery() as servers:
                for app, listener in apps:
                    run = partial(hypercorn.trio.serve, shutdown_trigger=stop.wait)
                    await servers.start(run, app, _config(listener, settings))
                on_bound([url])
                task_status.started([url])
            nursery.cancel_scope.cancel()


async def _end_after_grace(
    stop: trio.Event, grace_seconds: float, calls: Calls
) -> None:
    await stop.wait()
    await trio.sleep(grace_seconds)
    calls.end()


def _config(listener: socket.socket, settings: ServerSettings) -> hypercorn.Config:
    config = hypercorn.Config()
    config.bind = [
        f"fd://{os.dup(listener.fileno())}"
    ]  # hypercorn closes what it is given
    config.graceful_timeout = settings.grace_seconds + _LAST_WORDS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("kwaai.http.server")
    return config


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
    path = state / "node.sock"
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
