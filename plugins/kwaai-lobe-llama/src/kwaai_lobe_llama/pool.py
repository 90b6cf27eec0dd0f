"""Which workers there are: started on demand, within the memory, the idle ones making room."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from kwaai_core import Busy, KwaaiError, ModelCard, ModelLoading, RequestError
from kwaai_core.gguf import read_gguf
from kwaai_lobe_llama.planning import Planned, machine_memory, make_plan
from kwaai_lobe_llama.process import Worker
from kwaai_lobe_llama.settings import LlamaSettings

log = logging.getLogger(__name__)

FindPath = Callable[[], Awaitable[Path]]
_YOUNG_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class _Place:
    """A model in the pool: being planned, loading, serving or leaving."""

    card: ModelCard
    exact: bool
    decided: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    worker: Worker | None = None
    memory: int = 0
    used: float = 0.0
    users: int = 0
    error: KwaaiError | None = None


class Pool:
    """The workers of one executor. ``nursery`` owns their processes."""

    def __init__(self, nursery: trio.Nursery, settings: LlamaSettings, gate: Path) -> None:
        self._nursery = nursery
        self._settings = settings
        self._memory = settings.memory or machine_memory() // 2
        self._gate = gate
        self._places: list[_Place] = []
        self._sharing = trio.Lock()

    @property
    def memory(self) -> int:
        """Bytes for the weights and KV of everything that is loaded."""
        return self._memory

    async def fits(self, card: ModelCard, path: FindPath, *, exact: bool) -> bool:
        """Whether the whole of a model can be loaded here at all, others being idle."""
        try:
            planned = await self._planned(_Place(card, exact or self._settings.exact), path)
        except KwaaiError:
            return False
        return planned.memory <= self._memory

    @asynccontextmanager
    async def reserved(self, card: ModelCard, needed: int) -> AsyncIterator[None]:
        """Keep memory for parts of a model while the context is open.

        Errors: :class:`ModelLoading` where others keep it busy.
        """
        place = _Place(replace(card, digest=f"parts of {card.digest}"), False)
        self._places.append(place)
        try:
            await self._make_room(place, needed)
            yield
        finally:
            self._places.remove(place)

    @property
    def serving(self) -> bool:
        """Whether any model is loaded."""
        return any(place.worker is not None and place.worker.serving for place in self._places)

    def workers(self) -> list[Worker]:
        """The processes there are now."""
        return [place.worker for place in self._places if place.worker is not None]

    def serves(self, card: ModelCard) -> Worker | None:
        """A worker that has a model loaded, in whichever mode."""
        found = [place.worker for place in self._fitting(card) if place.worker is not None]
        return next((worker for worker in found if worker.serving), None)

    async def worker(self, card: ModelCard, path: FindPath, exact: bool | None) -> Worker:
        """A loaded worker for a model; starts one where there is none, and waits for it.

        ``path`` is asked for the model's file where one is started. ``exact`` True asks for an
        exact worker, False and None take any. Errors: :class:`Busy` where the queue is full,
        :class:`ModelFileError`, :class:`ModelLoading` where others keep the memory busy,
        :class:`RequestError` where only ``exact`` stands in the way.
        """
        place = self._find(card, exact) or self._add(card, path, exact)
        try:
            return await self._loaded(place)
        except KwaaiError as error:
            if exact or self._settings.exact or not (place.exact and place.gone.is_set()):
                raise
            log.info("%s: a worker that is not exact is taken instead: %s", card.id, error)
        # who asked for no exactness does without an exact worker that cannot serve
        fast = [other for other in self._fitting(card) if not other.exact]
        return await self._loaded(fast[0] if fast else self._add(card, path, None))

    async def _loaded(self, place: _Place) -> Worker:
        place.used = trio.current_time()
        self._admit(place)
        place.users += 1
        try:
            await place.decided.wait()
            if place.worker is None:
                raise place.error or ModelLoading("the model was not loaded", retry_after=1)
            await place.worker.ready.wait()
            if not place.worker.serving:
                raise place.worker.error or ModelLoading("the model was not loaded", retry_after=1)
        finally:
            place.users -= 1
        return place.worker

    def _find(self, card: ModelCard, exact: bool | None) -> _Place | None:
        fitting = [place for place in self._fitting(card) if place.exact or not exact]
        # a request that does not ask for it leaves the exact worker to those that do
        return min(fitting, key=lambda place: place.exact, default=None)

    def _fitting(self, card: ModelCard) -> list[_Place]:
        same = [place for place in self._places if place.card.digest == card.digest]
        return [place for place in same if not place.scope.cancel_called]

    def _add(self, card: ModelCard, path: FindPath, exact: bool | None) -> _Place:
        place = _Place(card, bool(exact) or self._settings.exact)
        self._places.append(place)
        self._nursery.start_soon(self._keep, place, path)
        return place

    async def _keep(self, place: _Place, path: FindPath) -> None:
        """Plan, run, and run again a worker that died after it had served."""
        try:
            with place.scope:
                while await self._run(place, path):
                    log.warning("%s: starting a new process", place.card.id)
        finally:
            self._places.remove(place)
            place.decided.set()
            place.gone.set()

    async def _run(self, place: _Place, path: FindPath) -> bool:
        """Whether to start anew: the worker had served for a while and died by itself."""
        place.worker = None
        if place.decided.is_set():
            place.decided = trio.Event()
        try:
            planned = await self._planned(place, path)
            await self._make_room(place, planned.memory)
        except KwaaiError as error:
            place.error = error
            return False
        worker = Worker(place.card.id, planned.plan, spin=self._settings.spin)
        place.worker = worker
        place.decided.set()
        await worker.run()
        if worker.error is not None:
            log.error("%s: %s", place.card.id, worker.error)
        # one that dies young would only die again: the next request for it tries
        return trio.current_time() - worker.ready_since > _YOUNG_SECONDS

    async def _planned(self, place: _Place, path: FindPath) -> Planned:
        file = await trio.to_thread.run_sync(read_gguf, await path())
        return make_plan(
            file,
            place.card.digest,
            self._settings,
            exact=place.exact,
            memory=self._memory,
            gate=self._gate,
        )

    async def _make_room(self, place: _Place, needed: int) -> None:
        """Take memory for a place; idle models leave, one by one, where that makes enough."""
        async with self._sharing:
            while (taken := self._taken(place)) + needed > self._memory:
                idle = self._idle(place)
                if taken - sum(other.memory for other in idle) + needed > self._memory:
                    raise self._no_room(place, needed, taken)
                log.info("%s leaves memory for %s", idle[0].card.id, place.card.id)
                idle[0].scope.cancel()
                await idle[0].gone.wait()
            place.memory = needed

    def _taken(self, place: _Place) -> int:
        return sum(other.memory for other in self._places if other is not place)

    def _idle(self, place: _Place) -> list[_Place]:
        """Who can leave for a place: not the other mode of its own model, see below."""
        others = [o for o in self._places if o.card.digest != place.card.digest]
        idle = [o for o in others if o.worker and not o.worker.busy and not o.users]
        return sorted(idle, key=lambda other: other.used)

    def _no_room(self, place: _Place, needed: int, taken: int) -> KwaaiError:
        sizes = f"{needed >> 20} MiB are needed and {taken >> 20} of {self._memory >> 20} in use"
        if any(o.card.digest == place.card.digest for o in self._places if o is not place):
            return RequestError(
                f"exact: {place.card.id} is loaded without it, and [llama] memory has no room for "
                f"a second, exact worker ({sizes}): set [llama] exact = true, or more memory",
                param="kwaai.exact",
            )
        return ModelLoading(
            f"{place.card.id} does not fit beside the models in use now ({sizes}): "
            "try again later, or set [llama] memory",
            retry_after=10,
        )

    def _admit(self, place: _Place) -> None:
        under_way = place.users + (place.worker.requests if place.worker else 0)
        if under_way >= self._settings.streams + self._settings.queue:
            raise Busy(
                f"{under_way} answers of {place.card.id} are under way or waiting, which is all "
                "that [llama] streams and queue allow: try again later",
                retry_after=5,
            )
