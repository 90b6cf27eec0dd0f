"""From a request to an answer: route, then generate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from trio.abc import ReceiveChannel

from kwaai_core.errors import NoPeerAvailable
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
    route = await host.router.route(request.intent)
    generate = GenerateRequest(
        model=route.model,
        prompt=request.prompt,
        sampling=request.sampling,
        stop=request.stop,
        max_tokens=request.max_tokens,
        exact=request.intent.exact,
        logprobs=request.logprobs,
    )
    async with route.executor.generate(generate) as deltas:
        yield Answer(route, deltas)
