"""The conformance checks of embedders pass what is right, and each rule catches what is not."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan

import pytest
import trio

from kwaai_core.errors import Busy, ContextLengthExceeded
from kwaai_core.roles import Embedder
from kwaai_core.testing import EMBEDDER, FakeEmbedder, Nonconformance, check_embedder
from kwaai_core.types import Embedding, ModelCard, TokenIds


async def test_the_fake_embedder_conforms() -> None:
    await check_embedder(FakeEmbedder())


async def test_texts_with_words_in_common_are_near() -> None:
    texts = ("the red house", "house, the red", "stocks fell")
    one, same, other = [e.vector for e in await FakeEmbedder().embed(texts)]
    assert sum(a * b for a, b in zip(one, same, strict=True)) == pytest.approx(1)
    assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.5


def with_card(card: ModelCard) -> Callable[[], FakeEmbedder]:
    return lambda: FakeEmbedder(card)


class AnotherCardEachTime(FakeEmbedder):
    asked = 0

    @property  # type: ignore[misc]
    def card(self) -> ModelCard:
        self.asked += 1
        return replace(EMBEDDER, created=self.asked)

    @card.setter
    def card(self, card: ModelCard) -> None:
        pass


class NotOfLengthOne(FakeEmbedder):
    def embedding(self, ids: Sequence[int]) -> Embedding:
        found = super().embedding(ids)
        return replace(found, vector=[2 * number for number in found.vector])


class NotNumbers(FakeEmbedder):
    def embedding(self, ids: Sequence[int]) -> Embedding:
        return replace(super().embedding(ids), vector=array("f", [nan] * 32))


class OneNumberMore(FakeEmbedder):
    def embedding(self, ids: Sequence[int]) -> Embedding:
        found = super().embedding(ids)
        return replace(found, vector=[*found.vector, 0.0])


class CountsNothing(FakeEmbedder):
    def embedding(self, ids: Sequence[int]) -> Embedding:
        return replace(super().embedding(ids), tokens=0)


class LosesTheLast(FakeEmbedder):
    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        return (await super().embed(texts))[:-1]


class AtLeastOne(FakeEmbedder):
    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        return await super().embed(texts or [""])


class SeesNoMeaning(FakeEmbedder):
    """Has one vector for everything."""

    def embedding(self, ids: Sequence[int]) -> Embedding:
        return replace(super().embedding([0]), tokens=len(ids))


class Sorts(FakeEmbedder):
    """Embeds the shorter texts first, and forgets where they stood."""

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        return await super().embed(sorted(texts, key=lambda text: len(str(text))))


class Quantises(FakeEmbedder):
    """Scales all vectors of a call by what is largest in any of them."""

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        found = await super().embed(texts)
        most = max((max(map(abs, one.vector)) for one in found), default=1)
        return [
            replace(one, vector=[round(n / most * 1e5) * most / 1e5 for n in one.vector])
            for one in found
        ]


class MixesUpCallers(FakeEmbedder):
    """Answers with what was asked last."""

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        await super().embed(texts)
        await trio.lowlevel.checkpoint()
        last = self.calls[-1].texts
        return [self.embedding(self.tokens(text, "input")) for text in (*last, *texts)][
            : len(texts)
        ]


class Cuts(FakeEmbedder):
    def tokens(self, text: str | TokenIds, at: str) -> Sequence[int]:
        if isinstance(text, TokenIds):
            return super().tokens(text, at)
        return super().tokens(" ".join(text.split()[:50]), at)


class TellsNoNumbers(FakeEmbedder):
    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        try:
            return await super().embed(texts)
        except ContextLengthExceeded as error:
            both = error.prompt_tokens, error.context_tokens
            raise ContextLengthExceeded(*both, param="input", message="too long") from None


class TellsNoPlace(FakeEmbedder):
    def tokens(self, text: str | TokenIds, at: str) -> Sequence[int]:
        return super().tokens(text, "input")


class AnyTokens(FakeEmbedder):
    def tokens(self, text: str | TokenIds, at: str) -> Sequence[int]:
        if isinstance(text, TokenIds):
            return [one % 1000 for one in text.ids] or [0]
        return super().tokens(text, at)


class DiesOfCancelling(FakeEmbedder):
    dead = False

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        if self.dead:
            raise Busy("somebody left")
        try:
            await trio.sleep(0.005)
        except trio.Cancelled:
            self.dead = True
            raise
        return await super().embed(texts)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (with_card(replace(EMBEDDER, id="")), "an empty id"),
        (with_card(replace(EMBEDDER, digest="ABC")), "neither empty nor 64"),
        (with_card(replace(EMBEDDER, dimensions=0)), "0 dimensions"),
        (with_card(replace(EMBEDDER, context_length=0)), "may have 0 tokens"),
        (AnotherCardEachTime, "asked twice, the cards differ"),
        (NotOfLengthOne, "has the length"),
        (NotNumbers, "no number"),
        (OneNumberMore, "a vector has 33 numbers"),
        (CountsNothing, "counts as 0 tokens"),
        (LosesTheLast, "texts got 5 vectors"),
        (AtLeastOne, "0 texts got 1 vectors"),
        (SeesNoMeaning, "nearer meanings are nearer"),
        (Sorts, "does not depend on its neighbours"),
        (Quantises, "does not depend on its neighbours: .* off"),
        (MixesUpCallers, "callers at once"),
        (Cuts, "was taken, where 64 tokens"),
        (TellsNoNumbers, "not both in the message"),
        (TellsNoPlace, r"its param is 'input', not 'input\[1\]'"),
        (AnyTokens, "raised nothing, not RequestError"),
        (DiesOfCancelling, "a cancelled call harms nothing: .*somebody left"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_a_broken_embedder_is_caught(
    broken: Callable[[], Embedder], complaint: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(Nonconformance, match=complaint):
        await check_embedder(broken())
