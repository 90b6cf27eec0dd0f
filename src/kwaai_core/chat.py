"""From a request to an answer: route, then generate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from trio.abc import ReceiveChannel

from kwaai_core.errors import LobeFailed, ModelNotFound, NoPeerAvailable, RequestError
from kwaai_core.roles import Host, Route
from kwaai_core.types import ChatRequest, Delta, GenerateRequest


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer under way: who gives it, and its deltas."""

    route: Route
    deltas: ReceiveChannel[Delta]


@asynccontextmanager
async def chat(host: Host, request: ChatRequest) -> AsyncIterator[Answer]:
    """Open the answer to a request; leaving ends the work.

    Errors: those of :meth:`Router.route` and :meth:`Executor.generate`.
    """
    if host.router is None:
        raise NoPeerAvailable("no lobe fills the role router: install kwaai-core anew")
    try:
        route = await host.router.route(request.intent)
    except ModelNotFound as error:
        raise _embeds(host, request.intent.model) or error from None
    generate = GenerateRequest(
        model=route.model,
        prompt=request.prompt,
        sampling=request.sampling,
        stop=request.stop,
        max_tokens=request.max_tokens,
        exact=request.intent.exact,
        logprobs=request.logprobs,
        echo=request.echo,
        schema=request.schema,
        tools=request.tools,
    )
    async with route.executor.generate(generate) as deltas:
        yield Answer(route, deltas)


def _embeds(host: Host, model: str) -> RequestError | None:
    """The error that says that a model is there, and answers nothing."""
    with suppress(LobeFailed):
        if host.embedder is not None and model in (
            host.embedder.card.id,
            host.embedder.card.digest,
        ):
            return RequestError(
                f"the model “{model}” makes vectors, and no text: it is for /v1/embeddings",
                param="model",
            )
    return None
