"""What every embedder must do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import hypot, isclose, isfinite

import trio

from kwaai_core.errors import ContextLengthExceeded, RequestError
from kwaai_core.roles import Embedder
from kwaai_core.testing.conformance.rules import (
    SECONDS,
    broken,
    check_cards,
    hold,
    refused,
    require,
)
from kwaai_core.types import Embedding, TokenIds

TEXTS = (
    "A cat sat on the mat.",
    "The mat, on which a cat sat.",
    "Interest rates went up again",
    "x",
    "Où es-tu, 世界 🌍?\n\tTabs and\x00other signs",
    "one two three four five six seven eight nine ten " * 3,
)
"""The first two mean nearly the same, the third something else; they are short and less short."""

TOLERANCE = 1e-6
"""How far a number of a vector may move with what else is embedded."""


async def check_embedder(embedder: Embedder, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.Embedder`.

    ``seconds`` is how long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in EMBEDDER_RULES:
        await hold(partial(rule, embedder), rule.__name__, seconds)


async def the_card_is_sound_and_stable(embedder: Embedder) -> None:
    """It has an id, limits, and a digest that is well formed or none; asking changes nothing."""
    card = embedder.card
    check_cards([card], [embedder.card])
    require(card.dimensions > 0, f"{card.id}: a vector has {card.dimensions} dimensions")
    require(card.context_length > 0, f"{card.id}: a text may have {card.context_length} tokens")


async def a_vector_has_length_one(embedder: Embedder) -> None:
    """There is one for each text, of ``dimensions`` finite numbers, and its tokens are counted."""
    for embedding in await _embed(embedder, TEXTS):
        vector, length = embedding.vector, hypot(*embedding.vector)
        require(all(map(isfinite, vector)), f"a vector has what is no number: {list(vector)}")
        require(isclose(length, 1, abs_tol=1e-3), f"a vector has the length {length}, not 1")
        require(embedding.tokens > 0, f"a text counts as {embedding.tokens} tokens")


async def no_texts_are_no_work(embedder: Embedder) -> None:
    """Nothing has no vectors, and is no error."""
    await _embed(embedder, ())


async def nearer_meanings_are_nearer(embedder: Embedder) -> None:
    """Two sentences that mean nearly the same are nearer than one that means something else."""
    one, same, other = await _embed(embedder, TEXTS[:3])
    near, far = _cosine(one, same), _cosine(one, other)
    require(near > far, f"{TEXTS[1]!r} is at {near:.3f} of {TEXTS[0]!r}, {TEXTS[2]!r} at {far:.3f}")


async def a_vector_does_not_depend_on_its_neighbours(embedder: Embedder) -> None:
    """Alone, among others and in another order, a text has the same vector and the same count."""
    alone = [(await _embed(embedder, [text]))[0] for text in TEXTS]
    for order in (range(len(TEXTS)), range(len(TEXTS) - 1, -1, -1), [0, 5, 0, 5, 5, 3]):
        together = await _embed(embedder, [TEXTS[i] for i in order])
        for i, embedding in zip(order, together, strict=True):
            _same(alone[i], embedding, f"{TEXTS[i]!r} among others")


async def callers_at_once_get_their_own(embedder: Embedder) -> None:
    """Several calls at the same time get what each gets alone."""
    alone = await _embed(embedder, TEXTS)
    found: dict[int, Embedding] = {}

    async def ask(i: int) -> None:
        (found[i],) = await _embed(embedder, [TEXTS[i]])

    async with trio.open_nursery() as nursery:
        for i in range(len(TEXTS)):
            nursery.start_soon(ask, i)
    for i, text in enumerate(TEXTS):
        _same(alone[i], found[i], f"{text!r}, asked at the same time as others")


async def a_text_that_is_too_long_is_refused(embedder: Embedder) -> None:
    """It is :class:`ContextLengthExceeded` with both numbers and its place; nothing is cut."""
    most = embedder.card.context_length
    for place, texts in (("input", ["word " * most * 2]), ("input[1]", ["x", "word " * most * 2])):
        try:
            await embedder.embed(texts)
        except ContextLengthExceeded as error:
            both = (error.prompt_tokens, error.context_tokens)
            require(both[0] > both[1] == most, f"{most} tokens are allowed; the error has {both}")
            shown = all(str(number) in error.message for number in both)
            require(shown, f"{both} are not both in the message {error.message!r}")
            require(error.param == place, f"its param is {error.param!r}, not {place!r}")
        else:
            broken(f"a text of {2 * most} words was taken, where {most} tokens are allowed")


async def tokens_that_are_none_are_refused(embedder: Embedder) -> None:
    """No tokens at all, and numbers that no vocabulary has, are a :class:`RequestError`."""
    for ids in ((), (2**31 - 1,), (-1,), (2**63,)):
        async with refused(RequestError, f"embed([TokenIds({ids})])"):
            await embedder.embed([TokenIds(ids)])


async def a_cancelled_call_harms_nothing(embedder: Embedder) -> None:
    """After calls that were cancelled at once, or in the middle, the next one works."""
    before = await _embed(embedder, TEXTS)
    for patience in (0.0, 0.0, 0.002, 0.01, 0.02):
        with trio.move_on_after(patience):
            await embedder.embed(TEXTS * 4)
    for text, one, other in zip(TEXTS, before, await _embed(embedder, TEXTS), strict=True):
        _same(one, other, f"{text!r}, after calls that were cancelled")


async def _embed(embedder: Embedder, texts: Sequence[str]) -> Sequence[Embedding]:
    found = await embedder.embed(texts)
    require(len(found) == len(texts), f"{len(texts)} texts got {len(found)} vectors")
    for embedding in found:
        wanted, has = embedder.card.dimensions, len(embedding.vector)
        require(has == wanted, f"a vector has {has} numbers, and the card says {wanted}")
    return found


def _cosine(one: Embedding, other: Embedding) -> float:
    return sum(a * b for a, b in zip(one.vector, other.vector, strict=True))


def _same(one: Embedding, other: Embedding, what: str) -> None:
    apart = max(abs(a - b) for a, b in zip(one.vector, other.vector, strict=True))
    require(apart <= TOLERANCE, f"{what}: a number of its vector is {apart:g} off")
    require(one.tokens == other.tokens, f"{what}: counts {other.tokens} tokens, not {one.tokens}")


EMBEDDER_RULES: tuple[Callable[[Embedder], Awaitable[None]], ...] = (
    the_card_is_sound_and_stable,
    a_vector_has_length_one,
    no_texts_are_no_work,
    nearer_meanings_are_nearer,
    a_vector_does_not_depend_on_its_neighbours,
    callers_at_once_get_their_own,
    a_text_that_is_too_long_is_refused,
    tokens_that_are_none_are_refused,
    a_cancelled_call_harms_nothing,
)
