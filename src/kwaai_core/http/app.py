"""The node's HTTP app: its routes, and what every one of them answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, Router

from kwaai_core import openai
from kwaai_core.errors import (
    KwaaiError,
    LobeFailed,
    ModelLoading,
    ModelNotFound,
    NoPeerAvailable,
    RequestError,
)
from kwaai_core.http.embedding import Embed
from kwaai_core.http.metrics import Measured, Metrics
from kwaai_core.http.replies import PATHS, Json, error_reply, routing_reply
from kwaai_core.http.security import Door, Guard, reached
from kwaai_core.http.sse import Calls, Generate
from kwaai_core.http.tokens import token_routes
from kwaai_core.openai.fields import Fields, flag, number, text
from kwaai_core.openai.strict import brief, load_object
from kwaai_core.roles import Host, Reaches
from kwaai_core.types import LobeStatus, ModelCard

if TYPE_CHECKING:
    from kwaai_core.config import ServerSettings
    from kwaai_core.door import Gate


NO_EXECUTOR = "no executor is installed: pip install kwaai-lobe-llama, and start the node again"


class Served(Host, Protocol):
    """What the app needs of a node."""

    @property
    def routes(self) -> Sequence[tuple[str, Sequence[BaseRoute]]]:
        """The routes of lobes, by the lobe's name."""
        ...

    @property
    def gate(self) -> Gate:
        """The door of its transport."""
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
    guard: Guard | None,
    *,
    calls: Calls | None = None,
    metrics: Metrics | None = None,
) -> Starlette:
    """The app of a node. Without a ``guard`` it is that on the Unix socket.

    That one lets everybody in, and answers ``/lobes`` and ``/peers``. ``calls`` is what the calls
    being answered are kept in, so that whoever serves the app can end them; ``metrics`` is what
    they are counted in.
    """
    calls = calls or Calls()
    metrics = metrics or Metrics(node.statuses, calls.count)
    generate = partial(Generate, node, settings, calls)
    routes: list[BaseRoute] = [
        Route("/", _index),
        Route("/health", _health),
        Route("/ready", partial(_ready, node)),
        Route("/metrics", metrics.show),
        Route("/openapi.json", partial(_openapi, settings, guard)),
        Route("/v1/models", partial(_models, node)),
        Route("/v1/models/{id:path}", partial(_model, node)),
        Route("/v1/chat/completions", generate("chat"), methods=["POST"]),
        Route("/v1/completions", generate("text"), methods=["POST"]),
        Route("/v1/embeddings", Embed(node, calls), methods=["POST"]),
        Route("/v1/responses", generate("response"), methods=["POST"]),
        Route("/v1/responses/{id:path}", _no_response, methods=["GET", "DELETE", "POST"]),
        *token_routes(node, settings, calls),
        *(Mount(f"/lobes/{lobe}", Router(of_lobe, False)) for lobe, of_lobe in node.routes),
    ]
    if guard is None:
        routes += [
            Route("/lobes", partial(_lobes, node)),
            Route("/peers", partial(_peers, node)),
            Route("/peers/{command}", partial(_peers, node), methods=["POST"]),
        ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Measured, metrics=metrics),
            Middleware(Door, settings=settings, guard=guard),
        ],
        exception_handlers={HTTPException: _failed, KwaaiError: _failed},
    )
    # A redirect to the path without its last slash would go to the URL that the client made up.
    app.router.redirect_slashes = False
    return app


async def _index(request: Request) -> Response:
    base = "/v1"
    if host := reached(request.scope):
        name, port = f"[{host}]" if ":" in host else host, request.scope["server"][1]
        base = f"{request.scope['scheme']}://{name}:{port}/v1"
    return Json({"message": "This node answers OpenAI's API.", "base_url": base, "paths": PATHS})


async def _health(request: Request) -> Response:
    return Json({"status": "alive"})


async def _ready(node: Served, request: Request) -> Response:
    if node.ready():
        if isinstance(node.router, Reaches) and (why := await node.router.unreachable()):
            raise NoPeerAvailable(why, retry_after=5)
        return Json({"status": "ready"})
    for status in node.statuses():
        if status.role in ("executor", "router") and status.state in ("failed", "waiting"):
            raise LobeFailed(status.lobe, status.cause, retry_after=5)
    if not node.executors:
        raise NoPeerAvailable(NO_EXECUTOR)
    raise ModelLoading("no executor is ready yet: it is opening, or loads its model", retry_after=1)


async def _openapi(settings: ServerSettings, guard: Guard | None, request: Request) -> Response:
    document = openai.openapi(
        paths_of(request.app.routes),
        version("kwaai-core"),
        max_messages=settings.max_messages,
        keyed=guard is not None and guard.needs_key(),
    )
    return Json(document)


def paths_of(routes: Sequence[BaseRoute], under: str = "") -> Iterator[tuple[str, str]]:
    """The method and the path of each route, without those that the server adds by itself."""
    for route in routes:
        if isinstance(route, Mount):
            yield from paths_of(route.routes, under + route.path)
        elif isinstance(route, Route):
            methods = (route.methods or {"GET"}) - {"HEAD"}
            yield from ((method, under + route.path) for method in sorted(methods))


async def _lobes(node: Served, request: Request) -> Response:
    return Json([asdict(status) for status in node.statuses()])


async def _peers(node: Served, request: Request) -> Response:
    transport, identity = node.transport, node.identity  # which raise where their lobes failed
    if transport is None or identity is None:
        raise NoPeerAvailable(
            "no lobe here reaches other nodes: pip install kwaai-lobe-libp2p kwaai-lobe-identity, "
            "and start the node again"
        )
    command = request.path_params.get("command")
    if command is None:
        return Json(await node.gate.peers())
    asked = Fields(load_object(await request.body()))
    peer, line = asked.take("peer", text, ""), asked.take("line", text, "")
    if command == "invite":
        if not transport.addresses:
            raise NoPeerAvailable("this node listens nowhere, so nobody could join it")
        seconds = asked.require("seconds", number(1, 366 * 86_400))
        group, may = asked.require("group", text), asked.take("may_invite", flag, False)
        made = identity.invite(group, transport.addresses, seconds=seconds, may_invite=may)
        return Json(asdict(await made))
    if command == "join":
        return Json(asdict(await node.gate.join(line)))
    if command == "ping":
        return Json({"peer": peer, "rtt": await transport.ping(peer)})
    if command not in ("block", "unblock"):
        raise HTTPException(404)
    await node.gate.block(peer, blocked=command == "block")
    return Json({"peer": peer, "blocked": command == "block"})


async def _models(node: Served, request: Request) -> Response:
    return Json(openai.models(await _cards(node)))


async def _model(node: Served, request: Request) -> Response:
    cards = await _cards(node)
    wanted = request.path_params["id"]
    for card in cards:
        if card.id == wanted:
            return Json(openai.model(card))
    raise ModelNotFound(wanted, [card.id for card in cards])


async def _no_response(request: Request) -> Response:
    name = brief(request.path_params["id"])
    return error_reply(
        RequestError(f"there is no response “{name}”: this node keeps none, whatever store says"),
        404,
    )


async def _cards(node: Served) -> Sequence[ModelCard]:
    """What the executors that work can run, first what has weights, and last the embedder's.

    An id counts for the first.
    """
    cards: dict[str, ModelCard] = {}
    for source in (*node.executors, None):
        try:
            found = await source.models() if source is not None else _embedding(node)
        except KwaaiError as error:
            logging.getLogger("kwaai.http").warning("a list of models is missing: %s", error)
            continue
        for card in found:
            cards.setdefault(card.id, card)
    return sorted(cards.values(), key=lambda card: (card.dimensions > 0, not card.digest))


def _embedding(node: Served) -> Sequence[ModelCard]:
    return () if node.embedder is None else [node.embedder.card]


async def _failed(request: Request, error: Any) -> Response:
    if isinstance(error, HTTPException):
        return routing_reply(request.method, request.scope["path"], error)
    return error_reply(error)
