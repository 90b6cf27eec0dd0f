"""Texts and tokens of this node's models: what becomes of ``/tokenize`` and its like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from kwaai_core.config import ServerSettings
from kwaai_core.errors import KwaaiError, ModelNotFound, RequestError
from kwaai_core.http.replies import Json
from kwaai_core.http.sse import Calls
from kwaai_core.openai.tokens import parse_detokenize, parse_tokenize, tokenized, tokenizer_info
from kwaai_core.roles import Executor, Host, Tokenizes
from kwaai_core.types import ModelCard


def token_routes(host: Host, settings: ServerSettings, calls: Calls) -> list[BaseRoute]:
    """The routes, where vLLM has them and under ``/v1`` besides."""
    posts = {
        "/tokenize": _Tell(calls, partial(_tokenize, host, settings.max_messages)),
        "/detokenize": _Tell(calls, partial(_detokenize, host)),
    }
    info = _Tell(calls, partial(_info, host))
    routes: list[BaseRoute] = []
    for prefix in ("", "/v1"):
        routes += [Route(prefix + path, work, methods=["POST"]) for path, work in posts.items()]
        routes.append(Route(f"{prefix}/tokenizer_info", info, methods=["GET"]))
    return routes


class _Tell:
    """An ASGI endpoint: what it does may load a model, and ends as soon as the client leaves."""

    def __init__(self, calls: Calls, work: Callable[[Request], Awaitable[Response]]) -> None:
        self._calls = calls
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        await request.body()  # which is kept: what comes after it is that the client leaves

        async def tell() -> None:
            await (await self._work(request))(scope, receive, send)

        await self._calls.attend(receive, tell)


async def _tokenize(host: Host, max_messages: int, request: Request) -> Response:
    call = parse_tokenize(await request.body(), max_messages=max_messages)
    executor, card = await _found(host, call.model)
    tokens = await executor.tokenize(
        card, call.prompt, special=call.special, opened=call.opened, shown=call.shown
    )
    return Json(tokenized(call, tokens))


async def _detokenize(host: Host, request: Request) -> Response:
    call = parse_detokenize(await request.body())
    executor, card = await _found(host, call.model)
    return Json({"prompt": await executor.detokenize(card, call.tokens)})


async def _info(host: Host, request: Request) -> Response:
    executor, card = await _found(host, request.query_params.get("model"))
    return Json(tokenizer_info(card.id, await executor.tokenizer(card)))


async def _found(host: Host, model: str | None) -> tuple[Tokenizes, ModelCard]:
    """A model, or the only one, and the executor that knows its tokenizer; one that fails counts
    only where no other has the model."""
    offered, failure = list[tuple[Executor, ModelCard]](), None
    for executor in host.executors:
        try:
            offered += [(executor, card) for card in await executor.models()]
        except KwaaiError as error:
            failure = error
    asked = [(e, card) for e, card in offered if model in (None, card.id, card.digest or None)]
    able = [(e, card) for e, card in asked if _tokenizes(e)]
    if not asked and failure is not None:
        raise failure
    if not asked:
        raise _untold(host, model) or ModelNotFound(model or "", [card.id for _, card in offered])
    if not able:
        raise RequestError(
            f"{asked[0][1].id} has no tokenizer here: its executor does not tell of tokens",
            param="model",
        )
    if model is None and len({card.id for _, card in able}) > 1:
        names = ", ".join(sorted({card.id for _, card in able}))
        raise RequestError(f"model is missing, and there are several: {names}", param="model")
    return cast(Tokenizes, able[0][0]), able[0][1]


def _tokenizes(executor: Executor) -> bool:
    """By its methods and not its class, since a role stands for what is open now."""
    try:
        return all(hasattr(executor, name) for name in ("tokenize", "detokenize", "tokenizer"))
    except KwaaiError:
        return False


def _untold(host: Host, model: str | None) -> RequestError | None:
    """The error that says that a model is there, and nothing tells of its tokens."""
    with suppress(KwaaiError):
        if model and host.embedder and model in (host.embedder.card.id, host.embedder.card.digest):
            return RequestError(
                f"the model “{model}” makes vectors: what tokens it reads is not told here",
                param="model",
            )
    return None
