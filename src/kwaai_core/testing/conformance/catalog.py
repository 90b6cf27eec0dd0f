"""What every catalog must do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from kwaai_core.errors import ModelNotFound
from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import model_digest
from kwaai_core.roles import Catalog
from kwaai_core.testing.conformance.rules import (
    SECONDS,
    UNKNOWN,
    check_cards,
    hold,
    refused,
    require,
)


async def check_catalog(catalog: Catalog, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.Catalog` on one that is open and has a model.

    It should be at rest: what is added or removed meanwhile breaks a rule. ``seconds`` is how
    long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in CATALOG_RULES:
        await hold(partial(rule, catalog), rule.__name__, seconds)


async def cards_are_distinct_and_stable(catalog: Catalog) -> None:
    """Ids are unique and not empty, a digest is well formed, and asking changes nothing."""
    cards = await catalog.cards()
    require(bool(cards), "the catalog is empty: the checks need a model in it")
    check_cards(cards, await catalog.cards())


async def a_fetched_file_is_the_card_s(catalog: Catalog) -> None:
    """``fetch`` gives a file that is there, of the size and the digest that its card names."""
    for card in await catalog.cards():
        path = await catalog.fetch(card)
        require(path.is_file(), f"{card.id}: {path} is not a file")
        size = path.stat().st_size
        require(card.size in (0, size), f"{card.id}: {path} has {size} bytes, not {card.size}")
        if card.digest:
            digest = await trio.to_thread.run_sync(_digest, path)
            require(digest == card.digest, f"{card.id}: {path} is the model {digest}")


def _digest(path: Path) -> str:
    return model_digest(read_gguf(path))


async def fetching_at_once_gives_one_answer(catalog: Catalog) -> None:
    """Two callers of ``fetch`` do not disturb one another, and a third finds the same file."""
    card = (await catalog.cards())[0]
    paths: list[Path] = []

    async def fetch() -> None:
        paths.append(await catalog.fetch(card))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        nursery.start_soon(fetch)
    await fetch()
    require(len(set(paths)) == 1, f"{card.id}: three calls gave {paths}")


async def a_cancelled_fetch_harms_nothing(catalog: Catalog) -> None:
    """After a ``fetch`` that was cancelled, the next one works."""
    card = (await catalog.cards())[0]
    with trio.CancelScope() as scope:
        scope.cancel()
        await catalog.fetch(card)
    require((await catalog.fetch(card)).is_file(), f"{card.id}: no file after a cancelled fetch")


async def an_unknown_card_is_refused(catalog: Catalog) -> None:
    """A card that is not one of the catalog's is :class:`ModelNotFound`, also with a known id."""
    card = (await catalog.cards())[0]
    for unknown in (UNKNOWN, replace(card, id=card.id + "-other", digest="0" * 64)):
        async with refused(ModelNotFound, f"fetch({unknown.id!r})"):
            await catalog.fetch(unknown)


CATALOG_RULES: tuple[Callable[[Catalog], Awaitable[None]], ...] = (
    cards_are_distinct_and_stable,
    a_fetched_file_is_the_card_s,
    fetching_at_once_gives_one_answer,
    a_cancelled_fetch_harms_nothing,
    an_unknown_card_is_refused,
)
