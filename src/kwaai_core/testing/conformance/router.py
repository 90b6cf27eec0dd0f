"""What every router must do."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from kwaai_core.errors import LobeFailed, ModelNotFound
from kwaai_core.roles import Host, Route, Router
from kwaai_core.testing.conformance.rules import SECONDS, UNKNOWN, hold, refused, require
from kwaai_core.testing.fakes import CARD, FakeHost, ScriptedExecutor
from kwaai_core.types import Intent, ModelCard

OpenRouter = Callable[[Host], AbstractAsyncContextManager[Router]]


async def check_router(open_router: OpenRouter, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.Router`; ``open_router`` is the ``open`` of its offer.

    It is opened on hosts with fake executors and nothing else, in a folder that is removed at the
    end. ``seconds`` is how long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in ROUTER_RULES:
        await hold(partial(rule, open_router), rule.__name__, seconds)


@asynccontextmanager
async def _routing(open_router: OpenRouter, *executors: ScriptedExecutor) -> AsyncIterator[Router]:
    with tempfile.TemporaryDirectory() as folder:
        async with open_router(FakeHost(Path(folder), executors=executors)) as router:
            yield router


def _executors() -> tuple[ScriptedExecutor, ScriptedExecutor]:
    cards = [replace(CARD, id=f"fake/{n}", digest=f"{n:064x}") for n in (1, 2, 3)]
    return ScriptedExecutor(cards=cards[:2]), ScriptedExecutor(cards=cards[2:])


async def every_model_has_a_route(open_router: OpenRouter) -> None:
    """By id and by digest, to an executor that really has the model."""
    executors = _executors()
    async with _routing(open_router, *executors) as router:
        for executor in executors:
            for card in executor.cards:
                for name in (card.id, card.digest):
                    await _check_route(await router.route(Intent(name)), card, name)


async def _check_route(route: Route, card: ModelCard, name: str) -> None:
    require(route.model == card, f"the route for {name!r} runs {route.model}")
    there = await route.executor.models()
    require(card in there, f"the route for {name!r} leads to an executor that has only {there}")


async def an_unknown_id_is_answered_with_all_there_are(open_router: OpenRouter) -> None:
    """:class:`ModelNotFound` lists every id, for a name and for the empty digest of no model."""
    executors = _executors()
    ids = sorted(card.id for executor in executors for card in executor.cards)
    async with _routing(open_router, *executors) as router:
        for name in (UNKNOWN.id, UNKNOWN.digest, ""):
            async with refused(ModelNotFound, f"route({name!r})"):
                try:
                    await router.route(Intent(name))
                except ModelNotFound as error:
                    there = sorted(error.available)
                    require(there == ids, f"route({name!r}) says there are {there}, not {ids}")
                    raise


async def a_failed_executor_hides_no_other(open_router: OpenRouter) -> None:
    """What others have is still found; what nobody else has is the failure, and not a 404."""
    failed, works = _executors()
    failed.models_error = LobeFailed("fake", "on purpose")
    async with _routing(open_router, failed, works) as router:
        card = works.cards[0]
        await _check_route(await router.route(Intent(card.id)), card, card.id)
        async with refused(LobeFailed, "route to a model that no working executor has"):
            await router.route(Intent(failed.cards[0].id))


async def an_executor_s_change_is_seen(open_router: OpenRouter) -> None:
    """A model that appears while the router is open has a route, one that goes has none."""
    executor, other = _executors()
    async with _routing(open_router, executor) as router:
        gone, card = executor.cards[0], other.cards[0]
        await _check_route(await router.route(Intent(gone.id)), gone, gone.id)
        executor.cards = other.cards
        await _check_route(await router.route(Intent(card.id)), card, card.id)
        async with refused(ModelNotFound, "route to a model that is gone"):
            await router.route(Intent(gone.id))


ROUTER_RULES: tuple[Callable[[OpenRouter], Awaitable[None]], ...] = (
    every_model_has_a_route,
    an_unknown_id_is_answered_with_all_there_are,
    a_failed_executor_hides_no_other,
    an_executor_s_change_is_seen,
)
