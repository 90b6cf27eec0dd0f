"""What this node holds, by its settings: chosen, loaded, announced, loaded again when lost."""

from __future__ import annotations

import logging
import random
from typing import cast

import trio

from kwaai_core import Executor, Host, KwaaiError, ModelCard, Span
from kwaai_core.errors import cause_of
from kwaai_core.span.roles import SpanExecutor
from kwaai_lobe_router.knowing import Neighbourhoods
from kwaai_lobe_router.placement import place
from kwaai_lobe_router.refusals import blocks
from kwaai_lobe_router.serving import Holding, Serving
from kwaai_lobe_router.settings import SpansSettings, units_of
from kwaai_lobe_router.tasks import tasks

log = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0


def runs_spans(executor: Executor) -> SpanExecutor | None:
    """An executor as one that runs spans, if it does. A role of another lobe answers for what is
    open now, so that its methods are asked for and not its class."""
    try:
        there = all(hasattr(executor, name) for name in ("fits", "hold", "head"))
    except KwaaiError:
        return None
    return cast(SpanExecutor, executor) if there else None


class Keeper:
    """Holds the models of the settings; :meth:`run` never ends."""

    def __init__(
        self, host: Host, settings: SpansSettings, serving: Serving, known: Neighbourhoods
    ) -> None:
        self._host = host
        self._settings = settings
        self._serving = serving
        self._known = known

    async def run(self) -> None:
        """Hold each of them, for as long as this is not cancelled."""
        async with trio.open_nursery() as nursery:
            for model in self._settings.models:
                nursery.start_soon(self._keep, model)

    async def _keep(self, model: str) -> None:
        delay, logged = FIRST_DELAY, ""
        while True:
            began = trio.current_time()
            try:
                await self._hold(model)
            except Exception as error:  # of a catalog or an executor: it costs this model only
                if (cause := cause_of(error)) != logged:
                    log.error("[spans] %s is not held: %s", model, cause)
                    logged = cause
                log.debug("[spans] %s", model, exc_info=error)
            if trio.current_time() - began > LONGEST_DELAY:
                delay = FIRST_DELAY
            await trio.sleep(delay * random.uniform(0.75, 1.0))
            delay = min(delay * 2, LONGEST_DELAY)

    async def _hold(self, model: str) -> None:
        executor, card = await self._find(model)
        units = await self._units(card)
        exact = self._settings.exact
        async with executor.hold(card, units, exact=exact) as host, tasks() as nursery:
            holding = self._serving.holdings[card.digest] = Holding(card, host)
            nursery.start_soon(self._serving.keep_room, holding)
            names = ", ".join(map(blocks, units))
            log.info("held for the swarm, of %s: %s", card.id, names)
            nursery.start_soon(self._serving.announce, card.digest)
            try:
                await trio.sleep_forever()
            finally:
                del self._serving.holdings[card.digest]

    async def _find(self, model: str) -> tuple[SpanExecutor, ModelCard]:
        seen = list[str]()
        for executor in self._host.executors:
            spans = runs_spans(executor)
            for card in await executor.models() if spans is not None else ():
                seen.append(card.id)
                if spans is not None and card.digest and model in (card.id, card.digest):
                    return spans, card
        there = ", ".join(sorted(seen)) or "none"
        raise KwaaiError(f"no executor here runs spans of it; models of those that do: {there}")

    async def _units(self, card: ModelCard) -> tuple[Span, ...]:
        settings = self._settings
        span = settings.span
        if span is not None:
            if span.hi > card.blocks:
                raise KwaaiError(f'blocks = "{settings.blocks}": it has {card.blocks} blocks')
            return units_of(span, settings.unit)
        unit = settings.unit
        size = -(-card.size // card.blocks)
        sizes = [size] * card.blocks
        seed = random.randrange(1 << 32)
        holders = await self._holders(card)
        memory = settings.memory // len(settings.models)
        units = place(holders, sizes, memory, unit=unit, seed=seed)
        if not units:
            need = size * min(unit, card.blocks)
            raise KwaaiError(f"a unit of it takes {need} bytes, and memory leaves it {memory}")
        return units

    async def _holders(self, card: ModelCard) -> list[int]:
        others = self._known.of(card)
        await others.first()
        counts = [0] * card.blocks
        for candidate in others.candidates():
            for unit in candidate.units:
                for block in range(unit.span.lo, min(unit.span.hi, card.blocks)):
                    counts[block] += 1
        return counts
