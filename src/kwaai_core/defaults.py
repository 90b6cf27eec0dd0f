"""Core's own modest filling of a role, through the same hooks as a lobe's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kwaai_core.errors import LobeFailed, ModelNotFound, RequestError, UnsupportedParameter
from kwaai_core.hookspecs import hookimpl
from kwaai_core.roles import Executor, Host, Offer, Route, Router
from kwaai_core.types import Hop, Intent, ModelCard, Span


@hookimpl
def provide_router() -> Offer[Router]:
    """A router over the executors of this node, in the order in which they were opened."""
    return Offer("core", _open_router)


@asynccontextmanager
async def _open_router(host: Host) -> AsyncIterator[Router]:
    yield LocalRouter(host)


class LocalRouter:
    """Takes the first executor that has the model; this node satisfies any tier of itself."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def route(self, intent: Intent) -> Route:
        """See :meth:`kwaai_core.Router.route`; a failed executor counts only if no other can."""
        if intent.max_price is not None:
            raise RequestError("max_price: nothing has a price here yet", param="kwaai.max_price")
        for name in ("max_latency_ms", "max_first_token_ms"):
            if getattr(intent, name) is not None:
                why = "nothing is measured without a lobe that routes, such as kwaai-lobe-router"
                raise UnsupportedParameter(f"{name}: {why}", param=f"kwaai.{name}")
        seen, failure = set[str](), None
        for executor in self._host.executors:
            try:
                cards = await executor.models()
            except LobeFailed as error:
                failure = error
                continue
            for card in cards:
                if intent.model == card.id or (card.digest and intent.model == card.digest):
                    return _local(executor, card)
            seen.update(card.id for card in cards)
        if failure is not None:
            raise failure
        raise ModelNotFound(intent.model, sorted(seen))


def _local(executor: Executor, card: ModelCard) -> Route:
    return Route(executor, card, (Hop("local", Span(0, card.blocks)),))
