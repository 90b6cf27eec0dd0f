"""What an executor must do that tells of texts and tokens."""

from __future__ import annotations

from kwaai_core.errors import ModelNotFound, RequestError
from kwaai_core.roles import Tokenizes
from kwaai_core.testing.conformance.rules import UNKNOWN, refused, require
from kwaai_core.types import Message, ModelCard, TokenIds

TALK = (Message("system", "Be brief."), Message("user", "Où es-tu, 世界 🌍?"))
_TEXTS = ("", "Once upon a time", "Où es-tu, 世界 🌍?", "line\n\n  two\ttabs ", "x" * 5000)


async def check_tokens(executor: Tokenizes, card: ModelCard) -> None:
    """Check every rule of :class:`kwaai_core.roles.Tokenizes` for a model.

    Errors: :class:`Nonconformance`.
    """
    await _texts_survive(executor, card)
    await _special_tokens_are_asked_for(executor, card)
    await _a_conversation_has_tokens(executor, card)
    await _what_is_not_there_is_refused(executor, card)


async def _texts_survive(executor: Tokenizes, card: ModelCard) -> None:
    for text in _TEXTS:
        tokens = await executor.tokenize(card, text, special=False, shown=True)
        require(len(tokens.shown) == len(tokens.ids), f"{text!r}: not every token is shown")
        require(tokens.context > 0, "the context must hold some tokens")
        again = await executor.detokenize(card, TokenIds(tokens.ids))
        require(again == text, f"{text!r} comes back from its tokens as {again!r}")
        bare = await executor.tokenize(card, text, special=False)
        require(bare.ids == tokens.ids and not bare.shown, f"{text!r}: shown changes the tokens")


async def _special_tokens_are_asked_for(executor: Tokenizes, card: ModelCard) -> None:
    facts = await executor.tokenizer(card)
    without = await executor.tokenize(card, "Once", special=False)
    both = await executor.tokenize(card, "Once", special=True)
    added = len(both.ids) - len(without.ids)
    require(
        added >= facts.adds_bos + facts.adds_eos,
        f"special adds {added} tokens, and the tokenizer says {facts}",
    )
    largest = max(both.ids)
    require(largest < facts.tokens, f"the token {largest} is none of {facts.tokens}")


async def _a_conversation_has_tokens(executor: Tokenizes, card: ModelCard) -> None:
    try:
        open_ = await executor.tokenize(card, TALK, special=False)
    except RequestError:  # the model has no template
        return
    closed = await executor.tokenize(card, TALK, special=False, opened=False)
    require(
        open_.ids[: len(closed.ids)] == closed.ids and len(open_.ids) > len(closed.ids),
        "what opens a turn must come after the conversation",
    )
    text = await executor.detokenize(card, TokenIds(closed.ids))
    require(TALK[1].content in text, f"the conversation is not in its tokens: {text!r}")


async def _what_is_not_there_is_refused(executor: Tokenizes, card: ModelCard) -> None:
    async with refused(ModelNotFound, f"tokenize for the model {UNKNOWN.id!r}"):
        await executor.tokenize(UNKNOWN, "x", special=False)
    async with refused(ModelNotFound, f"tokenizer for the model {UNKNOWN.id!r}"):
        await executor.tokenizer(UNKNOWN)
    async with refused(RequestError, "detokenize of a token that there is not"):
        await executor.detokenize(card, TokenIds((2**31 - 1,)))
