"""The executor role: models of the catalogs, run by workers of llama.cpp."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from kwaai_core import (
    Catalog,
    Delta,
    Executor,
    GenerateRequest,
    Host,
    KwaaiError,
    Message,
    ModelCard,
    ModelLoading,
    ModelNotFound,
    Span,
    TokenIds,
    Tokenizer,
    Tokens,
)
from kwaai_core.errors import cause_of
from kwaai_core.span.roles import SpanHead, SpanHost
from kwaai_lobe_llama.jobs import Question, job_of
from kwaai_lobe_llama.pool import FindPath, Pool
from kwaai_lobe_llama.settings import LlamaSettings
from kwaai_lobe_llama.span_executor import SpanWorkers

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_executor(host: Host) -> AsyncIterator[Executor]:
    """The executor, with the first model of the catalogs on its way into memory."""
    settings = host.settings(LlamaSettings)
    async with trio.open_nursery() as nursery:
        pool = Pool(nursery, settings, host.state / "exact")
        spans = SpanWorkers(nursery, settings, pool, host.state)
        executor = LlamaExecutor(host, pool, spans)
        nursery.start_soon(executor.preload, settings.load)
        yield executor
        nursery.cancel_scope.cancel()


class LlamaExecutor:
    """See :class:`kwaai_core.Executor`, and :class:`kwaai_core.span.roles.SpanExecutor`; ``pool``
    and ``spans`` own the processes."""

    def __init__(self, host: Host, pool: Pool, spans: SpanWorkers) -> None:
        self._host = host
        self._pool = pool
        self._spans = spans
        self._preloading = True

    async def models(self) -> Sequence[ModelCard]:
        """Every card of every catalog; the architecture is checked when a model is loaded."""
        return [card for _, card in await self._offered()]

    async def _offered(self) -> list[tuple[Catalog, ModelCard]]:
        offered = []
        for catalog in self._host.catalogs:
            try:
                offered += [(catalog, card) for card in await catalog.cards()]
            except Exception as error:  # foreign code: the others are served
                log.warning("a catalog is left out: %s", cause_of(error))
                log.debug("a catalog is left out", exc_info=error)
        return offered

    def ready(self) -> bool:
        return self._pool.serving or not self._preloading

    async def preload(self, wanted: str) -> None:
        """Load a model before anybody asks: the one named, or the first; "none" loads nothing."""
        try:
            cards = await self.models()
            chosen = [card for card in cards if wanted in ("", card.id)]
            if chosen:
                await self._pool.worker(chosen[0], self._finder(chosen[0]), None)
            elif wanted not in ("", "none"):
                there = ", ".join(sorted(card.id for card in cards)) or "none"
                log.error("[llama] load = %r: there is no such model; available: %s", wanted, there)
        except KwaaiError as error:
            log.error("%s", error)
        finally:
            self._preloading = False

    def _finder(self, card: ModelCard) -> FindPath:
        async def find() -> Path:
            offered = await self._offered()
            for catalog, other in offered:
                if other == card:
                    return await _fetched(catalog, card)
            raise ModelNotFound(card.id, [other.id for _, other in offered])

        return find

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        """See :meth:`kwaai_core.Executor.generate`."""
        worker = await self._pool.worker(request.model, self._finder(request.model), request.exact)
        job = job_of(request)
        whole = Span(0, request.model.blocks)
        async with worker.generate(job, whole=whole) as (answer, _):
            yield answer

    async def tokenize(
        self,
        model: ModelCard,
        prompt: str | Sequence[Message],
        *,
        special: bool,
        opened: bool = True,
        shown: bool = False,
    ) -> Tokens:
        """See :meth:`kwaai_core.roles.Tokenizes.tokenize`."""
        given = prompt if isinstance(prompt, str) else tuple(prompt)
        answer = await self._tokenise(model, Question(given, special, opened, shown))
        return Tokens(tuple(answer["ids"]), tuple(answer["shown"] or ()), answer["context"])

    async def detokenize(self, model: ModelCard, tokens: TokenIds) -> str:
        """See :meth:`kwaai_core.roles.Tokenizes.detokenize`."""
        return str((await self._tokenise(model, Question(tokens)))["text"])

    async def tokenizer(self, model: ModelCard) -> Tokenizer:
        """See :meth:`kwaai_core.roles.Tokenizes.tokenizer`."""
        return Tokenizer(**await self._tokenise(model, Question()))

    async def _tokenise(self, card: ModelCard, question: Question) -> Mapping[str, Any]:
        """Ask whoever has the vocabulary loaded; else load the model, or its head where it does not
        fit whole."""
        find = self._finder(card)
        worker = self._pool.serves(card) or self._spans.heads(card)
        if worker is None and await self._pool.fits(card, find, exact=False):
            worker = await self._pool.worker(card, find, None)
        if worker is not None:
            return await worker.tokenise(question)
        async with self._spans.heading(card, find) as head:
            return await head.tokenise(question)

    def hold(
        self, card: ModelCard, units: Sequence[Span], *, exact: bool
    ) -> AbstractAsyncContextManager[SpanHost]:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.hold`."""
        return self._spans.hold(card, self._finder(card), units, exact=exact)

    def head(self, card: ModelCard, *, exact: bool) -> AbstractAsyncContextManager[SpanHead]:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.head`."""
        return self._spans.head(card, self._finder(card), exact=exact)

    async def fits(self, card: ModelCard, *, exact: bool) -> bool:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.fits`."""
        return await self._pool.fits(card, self._finder(card), exact=exact)

    def describe(self) -> Mapping[str, Any]:
        """The workers: model, process, plan, engine fingerprint; bytes of the slices on disk."""
        return {
            "slices": self._spans.slices.size(),
            "workers": [
                {
                    "model": worker.name,
                    "pid": worker.pid,
                    "context": worker.plan.context,
                    "streams": worker.plan.streams,
                    "exact": worker.plan.exact,
                    "requests": worker.requests,
                    **worker.facts,
                }
                for worker in [*self._pool.workers(), *self._spans.workers()]
            ],
        }


async def _fetched(catalog: Catalog, card: ModelCard) -> Path:
    try:
        return await catalog.fetch(card)
    except KwaaiError:
        raise
    except Exception as error:  # foreign code: it costs this model, and no other's answers
        log.debug("%s was not fetched", card.id, exc_info=error)
        raise ModelLoading(
            f"the catalog of {card.id} failed to give its file ({cause_of(error)}): "
            "try again later, or remove that catalog's lobe",
            retry_after=10,
        ) from error
