"""Texts to vectors, a batch at a time in a thread of its own, and the callers in turns."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from kwaai_core import (
    Busy,
    ContextLengthExceeded,
    Embedder,
    Embedding,
    Host,
    LobeFailed,
    ModelCard,
    RequestError,
    RequestTooLarge,
    TokenIds,
)
from kwaai_lobe_minilm.batches import batches, pieces
from kwaai_lobe_minilm.files import MODEL_SHA256, read_files
from kwaai_lobe_minilm.model import DIMENSIONS, FIRST, LAST, MAX_TOKENS, Model
from kwaai_lobe_minilm.settings import MinilmSettings

A = TypeVar("A")
T = TypeVar("T")

ID = "all-minilm-l6-v2"


@asynccontextmanager
async def open_embedder(host: Host) -> AsyncIterator[Embedder]:
    """The embedder. Errors: :class:`ModelFileError` where a file is missing or another.

    Leaving waits for the batch under way, a fraction of a second: the process could not end well
    while a thread computes.
    """
    settings = host.settings(MinilmSettings)
    minilm = await trio.to_thread.run_sync(_load, settings)
    try:
        yield minilm
    finally:
        await minilm.close()


def _load(settings: MinilmSettings) -> Minilm:
    files = read_files()
    card = ModelCard(
        id=ID,
        digest=MODEL_SHA256,
        architecture="bert",
        size=len(files.model),
        blocks=6,
        context_length=MAX_TOKENS,
        created=files.modified,
        source="kwaai-lobe-minilm",
        dimensions=DIMENSIONS,
    )
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // 2)
    return Minilm(card, Model(files, threads), settings, threads)


class Minilm:
    """See :class:`kwaai_core.Embedder`."""

    def __init__(
        self, card: ModelCard, model: Model, settings: MinilmSettings, threads: int
    ) -> None:
        self.card = card
        self._model = model
        self._settings = settings
        self._threads = threads
        self._calls = 0
        self._closing = False
        # First come, first served; and who wants another batch goes to the end of the line.
        self._turn = trio.CapacityLimiter(1)

    def describe(self) -> Mapping[str, Any]:
        """See :class:`kwaai_core.roles.Describes`."""
        return {"model": self.card.id, "threads": self._threads, "calls": self._calls}

    async def close(self) -> None:
        """Take no more turns, and wait for the end of the one under way."""
        self._closing = True
        with trio.CancelScope(shield=True):
            async with self._turn:
                pass

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        if self._calls >= self._settings.calls:
            raise Busy(
                f"{self._calls} calls are being embedded, this node's limit ([minilm] calls in "
                "kwaai.toml): ask again later",
                retry_after=1,
            )
        self._calls += 1
        try:
            rows = await self._rows(texts)
            return await self._embed(rows)
        finally:
            self._calls -= 1

    async def _rows(self, texts: Sequence[str | TokenIds]) -> Sequence[Sequence[int]]:
        """The tokens of each text, none of them too many."""
        places = ["input"] if len(texts) == 1 else [f"input[{i}]" for i in range(len(texts))]
        both = list(zip(texts, places, strict=True))
        made = list[list[int]]()
        for piece in pieces([_sound(text, at) for text, at in both if isinstance(text, str)]):
            made += await self._in_turn(self._model.tokens, piece)
        of_texts = iter(made)
        rows = list[Sequence[int]]()
        for text, at in both:
            row = self._own(text, at) if isinstance(text, TokenIds) else next(of_texts)
            rows.append(_short(row, at))
        self._limit(sum(map(len, rows)))
        return rows

    def _own(self, tokens: TokenIds, at: str) -> Sequence[int]:
        """Tokens, where they are this model's: others would give a vector without any meaning."""
        ids = tokens.ids
        whole = len(ids) >= 2 and (ids[0], ids[-1]) == (FIRST, LAST)
        if not whole or not all(0 <= token < self._model.vocabulary for token in ids):
            raise RequestError(
                f"{at} is not tokens as this model's own tokenizer makes them of a text: {FIRST} "
                f"first, {LAST} last, and all of them below {self._model.vocabulary}. Send the "
                "text itself; LangChain's OpenAIEmbeddings does with "
                "check_embedding_ctx_length=False",
                param=at,
            )
        return ids

    def _limit(self, total: int) -> None:
        if total > self._settings.tokens:
            raise RequestTooLarge(
                f"the texts have {total} tokens together, over this node's limit of "
                f"{self._settings.tokens} ([minilm] tokens in kwaai.toml): send them in several "
                "calls",
                param="input",
            )

    async def _embed(self, rows: Sequence[Sequence[int]]) -> Sequence[Embedding]:
        found = dict[int, Embedding]()
        for batch in batches([len(row) for row in rows]):
            vectors = await self._in_turn(self._model.vectors, [rows[i] for i in batch])
            for i, vector in zip(batch, vectors, strict=True):
                view = memoryview(vector.tobytes()).cast("f")
                found[i] = Embedding(view, len(rows[i]))
        return [found[i] for i in range(len(rows))]

    async def _in_turn(self, work: Callable[[A], T], of: A) -> T:
        """Do this in a thread, one at a time; who is cancelled leaves it to its end."""
        if self._closing:
            raise LobeFailed("minilm", "the node is closing")
        return await trio.to_thread.run_sync(work, of, abandon_on_cancel=True, limiter=self._turn)


def _short(row: Sequence[int], at: str) -> Sequence[int]:
    if len(row) > MAX_TOKENS:
        raise ContextLengthExceeded(
            len(row),
            MAX_TOKENS,
            param=at,
            message=f"{at} has {len(row)} tokens, and this model takes {MAX_TOKENS}, those around "
            "a text included: split it",
        )
    return row


def _sound(text: str, at: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{at} has half of a surrogate pair in it", param=at) from None
    return text
