"""The role router: the whole model here where that can be, else a route over its spans."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from kwaai_core import (
    Executor,
    GenerateRequest,
    Hop,
    Host,
    Intent,
    LobeFailed,
    ModelCard,
    ModelNotFound,
    NoPeerAvailable,
    RequestError,
    Route,
    Router,
    Span,
    Tier,
)
from kwaai_core.span.roles import SpanExecutor
from kwaai_lobe_router import showing
from kwaai_lobe_router.alone import Alone
from kwaai_lobe_router.answering import ChainExecutor, prompt_tokens
from kwaai_lobe_router.candidates import candidate
from kwaai_lobe_router.gateways import Gateway, Gateways
from kwaai_lobe_router.holding import Keeper, runs_spans
from kwaai_lobe_router.knowing import Neighbourhoods
from kwaai_lobe_router.measuring import RoundTrips, fast_facts, slow_facts
from kwaai_lobe_router.planning import plan
from kwaai_lobe_router.refusals import blocks
from kwaai_lobe_router.serving import Holding, Serving
from kwaai_lobe_router.sessions import SessionRouting, View
from kwaai_lobe_router.settings import SpansSettings
from kwaai_lobe_router.swarm import LOCAL, Candidate, Plan, TierOf, Wish
from kwaai_lobe_router.tasks import tasks

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_router(host: Host) -> AsyncIterator[Router]:
    """The router, with what this node holds of models. Leaving moves the sessions of peers first.

    Without a transport, or an identity, it routes to the executors of this node alone.
    """
    settings, transport, identity = host.settings(SpansSettings), host.transport, host.identity
    if transport is None or identity is None:
        yield SpanRouter(host, settings)
        return
    async with tasks() as nursery:
        trips = RoundTrips(transport, nursery)
        serving = Serving(transport, trips, settings.links)
        swarm = Shared(
            identity.peer_id,
            serving,
            Neighbourhoods(nursery, transport, trips, identity.peer_id),
            Gateways(nursery, transport),
        )
        nursery.start_soon(Keeper(host, settings, serving, swarm.known).run)
        async with serving.opened():
            yield SpanRouter(host, settings, swarm)
            await serving.drain(settings.drain_seconds)


class Shared:
    """What a router over spans goes by: who ``me`` is, what is held, who is known, who is linked.

    ``blamed`` counts how often the link to a peer failed in an answer.
    """

    def __init__(
        self, me: str, serving: Serving, known: Neighbourhoods, gateways: Gateways
    ) -> None:
        self.me = me
        self.serving = serving
        self.known = known
        self.gateways = gateways
        self.blamed = Counter[str]()

    def mine(self, digest: str) -> Candidate | None:
        """This node's own units of a model, as a plan sees them."""
        holding = self.serving.holdings.get(digest)
        fast = None if holding is None else fast_facts(digest, holding.host, {}, holding.kept())
        if holding is None or fast is None:
            return None
        return candidate(LOCAL, slow_facts(holding.card, holding.host), fast, rtt=0, me=self.me)

    def blame(self, peer: str, reason: str) -> None:
        """Note that a peer's link failed under an answer."""
        log.warning("%s was lost in an answer: %s", peer, reason)
        self.blamed[peer] += 1


class SpanRouter:
    """See :class:`kwaai_core.Router`. ``swarm`` is None where there are no peers at all."""

    def __init__(self, host: Host, settings: SpansSettings, swarm: Shared | None = None) -> None:
        self._host = host
        self._settings = settings
        self.swarm = swarm
        self._alone = Alone()

    async def route(self, intent: Intent) -> Route:
        """See :meth:`kwaai_core.Router.route`; a failed executor counts only if no other can."""
        if intent.max_price is not None:
            raise RequestError("max_price: nothing has a price here yet", param="kwaai.max_price")
        found = await self.executors_of(intent.model)
        for executor, card in found:
            spans = runs_spans(executor)
            alone = self.swarm is None or not card.digest or spans is None
            if alone or (spans and await self._fits(spans, card, intent)):
                return await self._whole(executor, card, intent)
        executor, card = found[0]
        spans = runs_spans(executor)
        if spans is None or self.swarm is None:
            return await self._whole(executor, card, intent)
        return await self._over_spans(self.swarm, spans, card, intent)

    async def _whole(self, executor: Executor, card: ModelCard, intent: Intent) -> Route:
        within = await self._alone.within(executor, card, intent)
        return Route(within, card, (Hop(LOCAL, Span(0, card.blocks)),))

    async def _fits(self, executor: SpanExecutor, card: ModelCard, intent: Intent) -> bool:
        whole = self._settings.whole
        return whole and await executor.fits(card, exact=bool(intent.exact))

    async def executors_of(self, model: str) -> list[tuple[Executor, ModelCard]]:
        """Everything here that runs a model of this id or digest, at least one.

        Errors: :class:`ModelNotFound`, :class:`LobeFailed`.
        """
        seen, found, failure = set[str](), list[tuple[Executor, ModelCard]](), None
        for executor in self._host.executors:
            try:
                cards = await executor.models()
            except LobeFailed as error:
                failure = error
                continue
            seen.update(card.id for card in cards)
            found += [
                (executor, card)
                for card in cards
                if model == card.id or (card.digest and model == card.digest)
            ]
        if not found:
            raise failure or ModelNotFound(model, sorted(seen))
        return found

    async def _over_spans(
        self, swarm: Shared, executor: SpanExecutor, card: ModelCard, intent: Intent
    ) -> Route:
        gateway = await self._gateway(swarm, executor, card, exact=self._exact(intent))
        view = await self.view(swarm, card)
        wish = self.wish(swarm, intent, gateway)
        found = plan(view.swarm(), wish, view.tier_of)
        if not isinstance(found, Plan):
            raise NoPeerAvailable(
                f"{card.id} is not run by this node alone, and {found}; {_ask(card)}"
            )
        begin = partial(self._begin, swarm, executor, card, wish)
        return Route(ChainExecutor(card, begin), card, found.hops)

    def _exact(self, intent: Intent) -> bool:
        return self._settings.exact if intent.exact is None else intent.exact

    async def _gateway(
        self, swarm: Shared, executor: SpanExecutor, card: ModelCard, *, exact: bool
    ) -> Gateway:
        """The head, in the worker that holds this node's own units, whose mode may be exact though
        nobody asks for that; no other could pass a step to them."""
        mine = swarm.mine(card.digest)
        beside = exact or (mine is not None and mine.exact)
        return await swarm.gateways.of(executor, card, exact=exact, exact_head=beside)

    async def view(self, swarm: Shared, card: ModelCard) -> View:
        """What is known of a model's holders, once they have been asked."""
        others = swarm.known.of(card)
        await others.first()
        tier_of = await self._tiers(others.known)
        return View(card.id, card.blocks, others, partial(swarm.mine, card.digest), tier_of)

    async def _tiers(self, peers: Mapping[str, object]) -> TierOf:
        """How far each peer is trusted; without a lobe that judges them they are unknown."""
        trust, tiers = self._host.trust, dict[str, Tier]()
        if trust is not None:
            tiers = {peer: (await trust.assess(peer)).tier for peer in list(peers)}
        return lambda peer: tiers.get(peer, "unknown")

    def wish(self, swarm: Shared, intent: Intent, gateway: Gateway) -> Wish:
        """What a route has to satisfy for an intent."""
        return Wish(
            min_tier=intent.min_tier,
            max_latency=_nanoseconds(intent.max_latency_ms),
            max_first_token=_nanoseconds(intent.max_first_token_ms),
            local_blocks=max(intent.local_blocks, self._settings.local_blocks),
            exact=self._exact(intent),
            fingerprint=gateway.head.facts.fingerprint,
            salt=swarm.me,
        )

    async def _begin(
        self,
        swarm: Shared,
        executor: SpanExecutor,
        card: ModelCard,
        wish: Wish,
        request: GenerateRequest,
    ) -> tuple[Gateway, SessionRouting]:
        gateway = await self._gateway(swarm, executor, card, exact=wish.exact)
        view = await self.view(swarm, card)
        wish = replace(wish, prompt=prompt_tokens(request.prompt))
        return gateway, SessionRouting(view, gateway, wish, swarm.blame, request.max_tokens)

    async def show(self, model: str, *, planned: bool, prompt: int = 1) -> dict[str, Any]:
        """What is known of a model's holders, and where an answer would go now, for JSON; the time
        to the first token is that after a prompt of so many.

        Errors: those of :meth:`route` for a model that is not here, or cannot be cut.
        """
        found = await self.executors_of(model)
        spans = [(runs, card) for executor, card in found if (runs := runs_spans(executor))]
        if self.swarm is None or not spans:
            raise NoPeerAvailable(
                f"{model} is not run in spans here: that takes lobes for identity and transport, "
                "and an executor that runs spans"
            )
        executor, card = spans[0]
        view = await self.view(self.swarm, card)
        contradicting = view.others.contradictions if view.others is not None else {}
        intent = Intent(model)
        whole = await self._fits(executor, card, intent)
        complete = partial(showing.complete, whole=whole, contradictions=contradicting)
        if not planned:
            return complete(showing.status(card, view.swarm()))
        if whole:
            return complete(showing.alone(card, view.swarm()))
        exact = self._exact(intent)
        gateway = await self._gateway(self.swarm, executor, card, exact=exact)
        wish = replace(self.wish(self.swarm, intent, gateway), prompt=prompt)
        return complete(showing.planned(card, view.swarm(), wish, view.tier_of))

    async def unreachable(self) -> str:
        """See :class:`kwaai_core.roles.Reaches`."""
        why = ""
        for executor in self._host.executors:
            spans = runs_spans(executor)
            for card in await executor.models():
                if self.swarm is None or not card.digest or spans is None:
                    return ""
                if await self._fits(spans, card, Intent(card.id)):
                    return ""
                gaps = showing.gaps((await self.view(self.swarm, card)).swarm())
                if not gaps:
                    return ""
                missing = ", ".join(map(blocks, gaps))
                why = why or f"nobody in reach holds {missing} of {card.id}; {_ask(card)}"
        return why

    def describe(self) -> Mapping[str, Any]:
        """What is held here for the swarm, with the sessions that use it and how many more there is
        room for; and which peers were lost in answers."""
        if self.swarm is None:
            return {"holds": [], "lost": {}}
        holds = [_held(holding) for holding in self.swarm.serving.holdings.values()]
        return {"holds": holds, "lost": dict(self.swarm.blamed)}


def _ask(card: ModelCard) -> str:
    return f"“kwaai swarm status {card.id}” shows who holds what"


def _held(holding: Holding) -> Mapping[str, Any]:
    load = holding.host.load()
    units = [[unit.lo, unit.hi] for unit in holding.host.units]
    return {
        "model": holding.card.id,
        "units": units,
        "sessions": load.sessions,
        "free": load.free,
        "reserved": sum(holding.kept().values()),
    }


def _nanoseconds(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else int(milliseconds * 1e6)
