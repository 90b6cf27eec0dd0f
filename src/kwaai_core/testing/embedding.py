"""A real fake of an embedder: texts with the same words are near one another, and nothing else is.

It passes :func:`kwaai_core.testing.check_embedder`, as any embedder has to.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot
from random import Random
from zlib import crc32

import trio

from kwaai_core.errors import ContextLengthExceeded, RequestError
from kwaai_core.types import Embedding, ModelCard, TokenIds

VOCABULARY = 1000

EMBEDDER = ModelCard("fake/embedder", digest="fe" * 32, context_length=64, dimensions=32)


@dataclass(eq=False)
class EmbedCall:
    """One call as the embedder saw it: what was asked, that it began, and that it ended."""

    texts: tuple[str | TokenIds, ...]
    began: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)


class FakeEmbedder:
    """A token is a word, and one more begins each text; a vector is the sum of its words' own.

    ``entering`` is what :meth:`embed` does first: raise an error, or wait for an event. ``calls``
    are those so far.
    """

    def __init__(self, card: ModelCard = EMBEDDER) -> None:
        self.card = card
        self.calls: list[EmbedCall] = []
        self.entering: Exception | trio.Event | None = None

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        """See :meth:`kwaai_core.Embedder.embed`."""
        call = EmbedCall(tuple(texts))
        self.calls.append(call)
        call.began.set()
        try:
            await trio.lowlevel.checkpoint()
            if isinstance(self.entering, Exception):
                raise self.entering
            if self.entering is not None:
                await self.entering.wait()
            several = len(call.texts) > 1
            return [
                self.embedding(self.tokens(text, f"input[{i}]" if several else "input"))
                for i, text in enumerate(call.texts)
            ]
        finally:
            call.ended.set()

    def tokens(self, text: str | TokenIds, at: str) -> Sequence[int]:
        """The tokens of a text, once they are seen to be few enough, and in the vocabulary."""
        ids = text.ids if isinstance(text, TokenIds) else (0, *map(_token, _words(text)))
        if not ids or not all(0 <= one < VOCABULARY for one in ids):
            raise RequestError(f"{at} has no tokens, or one over {VOCABULARY - 1}", param=at)
        most = self.card.context_length
        if len(ids) > most:
            said = f"{at} has {len(ids)} tokens, and this embedder takes {most}"
            raise ContextLengthExceeded(len(ids), most, param=at, message=said)
        return ids

    def embedding(self, ids: Sequence[int]) -> Embedding:
        """What comes of tokens; a test that needs a broken embedder overrides it."""
        own = [Random(one) for one in ids]
        total = [sum(one.gauss() for one in own) for _ in range(self.card.dimensions)]
        length = hypot(*total)
        return Embedding(array("f", (number / length for number in total)), len(ids))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _token(word: str) -> int:
    return crc32(word.encode()) % VOCABULARY
