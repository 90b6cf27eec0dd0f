"""Vectors of texts, made while the client waits."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kwaai_core import openai
from kwaai_core.errors import KwaaiError, ModelNotFound, NoPeerAvailable, RequestError
from kwaai_core.http.replies import USED
from kwaai_core.http.sse import Calls
from kwaai_core.openai import EmbeddingsCall
from kwaai_core.roles import Host
from kwaai_core.types import Usage

NO_EMBEDDER = "no embedder is installed: pip install kwaai-lobe-minilm, and start the node again"


class Embed:
    """An ASGI endpoint: parse a call, have its texts embedded, and answer in one document."""

    def __init__(self, host: Host, calls: Calls) -> None:
        self._host = host
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = openai.parse_embeddings(await Request(scope, receive).body())
        await self._calls.attend(receive, partial(self._answer, call, scope, receive, send))

    async def _answer(
        self, call: EmbeddingsCall, scope: Scope, receive: Receive, send: Send
    ) -> None:
        embedder = self._host.embedder
        if embedder is None:
            raise NoPeerAvailable(NO_EMBEDDER)
        card = embedder.card
        if call.model not in (card.id, card.digest):
            raise await _writes(self._host, call.model) or ModelNotFound(call.model, [card.id])
        call.check(card)
        found, body = await embedder.embed(call.texts), bytearray()
        scope[USED] = card.id, Usage(sum(embedding.tokens for embedding in found), 0)
        for piece in openai.embeddings(card, found, base64=call.base64):
            body += piece
            await trio.lowlevel.checkpoint()  # a thousand vectors are half a second's work
        await Response(bytes(body), media_type="application/json")(scope, receive, send)


async def _writes(host: Host, model: str) -> RequestError | None:
    """The error that says that a model is there, and makes no vectors."""
    for executor in host.executors:
        with suppress(KwaaiError):
            if any(model in (card.id, card.digest) for card in await executor.models()):
                return RequestError(
                    f"the model “{model}” writes text, and makes no vectors: it is for "
                    "/v1/chat/completions and /v1/completions",
                    param="model",
                )
    return None
