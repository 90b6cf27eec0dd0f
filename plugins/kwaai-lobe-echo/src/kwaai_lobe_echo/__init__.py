"""An executor that says what it was told, word by word."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kwaai_core import (
    Delta,
    Executor,
    GenerateRequest,
    Host,
    ModelCard,
    ModelNotFound,
    Offer,
    TokenIds,
    UnsupportedParameter,
    Usage,
    hookimpl,
)

if TYPE_CHECKING:
    from trio.abc import ReceiveChannel

CARD = ModelCard(id="echo", source="kwaai-lobe-echo")


class Echo:
    async def models(self) -> Sequence[ModelCard]:
        return [CARD]

    def ready(self) -> bool:
        return True

    @asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[ReceiveChannel[Delta]]:
        import trio

        if request.model != CARD:
            raise ModelNotFound(request.model.id, [CARD.id])
        if isinstance(request.prompt, TokenIds) or request.logprobs is not None or request.echo:
            raise UnsupportedParameter("this model repeats words, without tokens and logprobs")
        if request.schema is not None or request.tools is not None:
            raise UnsupportedParameter("this model repeats words: no JSON, and no calls of tools")
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        words = prompt.split()
        said = " ".join(words[: request.max_tokens])
        end = min((at for stop in request.stop if (at := said.find(stop)) >= 0), default=len(said))
        pieces = re.findall(r"\S+\s*", said[:end])
        cut = end == len(said) and len(pieces) < len(words)
        send, receive = trio.open_memory_channel[Delta](len(pieces) + 1)
        with send:
            for piece in pieces:
                send.send_nowait(Delta(piece, tokens=1))
            usage = Usage(prompt_tokens=len(words), completion_tokens=len(pieces))
            send.send_nowait(Delta("", finish="length" if cut else "stop", usage=usage))
        with receive:
            yield receive


@asynccontextmanager
async def open_echo(host: Host) -> AsyncIterator[Executor]:
    yield Echo()


@hookimpl
def provide_executor() -> Offer[Executor]:
    return Offer("echo", open_echo)
