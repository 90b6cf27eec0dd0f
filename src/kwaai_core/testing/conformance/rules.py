"""What the checks of all roles share: how a rule is held, and how it says that it is broken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import trio

from kwaai_core.errors import KwaaiError
from kwaai_core.types import ModelCard

SECONDS = 60.0
"""How long a rule may take, where a caller does not say otherwise."""

UNKNOWN = ModelCard("no-such/model", digest="0" * 64)


class Nonconformance(AssertionError):
    """A lobe broke a rule of its role."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Nonconformance(message)


def broken(message: str) -> NoReturn:
    raise Nonconformance(message)


async def hold(rule: Callable[[], Awaitable[None]], name: str, seconds: float) -> None:
    """Check one rule; whatever breaks it is one :class:`Nonconformance` that names it."""
    try:
        with trio.move_on_after(seconds) as scope:
            await rule()
    except Exception as error:  # a lobe is foreign code: any error of it breaks the rule
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        what = str(cause) if isinstance(cause, Nonconformance) else repr(cause)
        raise Nonconformance(f"{name.replace('_', ' ')}: {what}") from error
    if scope.cancelled_caught:
        broken(f"{name.replace('_', ' ')}: nothing more happened within {seconds:g} s")


@asynccontextmanager
async def refused(kind: type[KwaaiError], what: str) -> AsyncIterator[None]:
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise Nonconformance(f"{what} raised {error!r}, not {kind.__name__}") from error
    broken(f"{what} raised nothing, not {kind.__name__}")


def check_cards(cards: Sequence[ModelCard], again: Sequence[ModelCard]) -> None:
    ids = [card.id for card in cards]
    require(all(ids), f"a card has an empty id: {cards}")
    require(len(set(ids)) == len(ids), f"two cards have one id: {sorted(ids)}")
    require(list(cards) == list(again), f"asked twice, the cards differ: {cards} and {again}")
    for card in cards:
        hexadecimal = set(card.digest) <= set("0123456789abcdef")
        require(
            hexadecimal and len(card.digest) in (0, 64),
            f"{card.id}: the digest {card.digest!r} is neither empty nor 64 lower-case hex digits",
        )
