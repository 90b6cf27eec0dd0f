"""Spans of models: slices made, worker processes kept, and what a router is given of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from kwaai_core import (
    DataChannel,
    Delta,
    GenerateRequest,
    KwaaiError,
    ModelCard,
    ModelLoading,
    Span,
    WorkerLost,
)
from kwaai_core.gguf import GgufFile, read_gguf
from kwaai_core.span.roles import Routing, SpanFacts, SpanLoad
from kwaai_lobe_llama.jobs import job_of
from kwaai_lobe_llama.planning import Planned, machine_memory, make_span_plan
from kwaai_lobe_llama.pool import FindPath, Pool
from kwaai_lobe_llama.settings import LlamaSettings
from kwaai_lobe_llama.slice_folder import SliceFolder
from kwaai_lobe_llama.slicing import slice_head, slice_span
from kwaai_lobe_llama.span_plan import HoldPlan, SpanPlan, UnitFile
from kwaai_lobe_llama.span_process import SpanWorker

log = logging.getLogger(__name__)

RESTART_SECONDS, LONGEST_SECONDS = 2.0, 60.0
"""Until a new process is started, each time twice as long while it cannot load what it shall."""

RELEASE_SECONDS = 5.0
"""For how long a process that stays is waited for to free its units, if it stands still."""


@dataclass(eq=False, slots=True)
class _Shop:
    """The one worker of spans that a model has in one mode, and what it shall have loaded.

    ``users`` hold it or its head; it ends with the last of them, and so does its use of the
    head's file, in ``files``. Its units are ``held`` by one of them at the most, whose plan is then
    that of all: room was reserved for no more than that.
    """

    file: GgufFile
    plan: SpanPlan
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    changed: trio.Event = field(default_factory=trio.Event)
    users: int = 0
    held: bool = False
    units: tuple[UnitFile, ...] = ()
    head: Path | None = None
    heading: trio.Lock = field(default_factory=trio.Lock)
    files: ExitStack = field(default_factory=ExitStack)
    worker: SpanWorker | None = None
    rows: int = 0
    error: KwaaiError | None = None

    async def serving(self) -> SpanWorker:
        """The process, with everything loaded that it shall have. Errors: why there is none."""
        while self.worker is None:
            if self.error is not None:
                raise self.error
            await self.changed.wait()
        return self.worker

    def change(self, worker: SpanWorker | None, error: KwaaiError | None = None) -> None:
        self.worker, self.error = worker, error
        self.changed.set()
        self.changed = trio.Event()

    def facts(self) -> SpanFacts:
        """What is said of it to others."""
        plan = self.plan.plan
        fingerprint = self.worker.facts.get("fingerprint", "") if self.worker else ""
        return SpanFacts(
            self.plan.width,
            self.file.blocks,
            plan.exact,
            str(fingerprint),
            plan.chunk,
            self.rows if plan.exact else 1,
            plan.cells - 1,
        )


class SpanWorkers:
    """See :class:`kwaai_core.span.roles.SpanExecutor`; ``nursery`` owns the processes."""

    def __init__(
        self, nursery: trio.Nursery, settings: LlamaSettings, pool: Pool, state: Path
    ) -> None:
        self._nursery = nursery
        self._settings = settings
        self._pool = pool
        self._state = state
        self.slices = SliceFolder(state / "slices", settings.slices)
        self._shops: dict[tuple[str, bool], _Shop] = {}
        self._opening = trio.Lock()

    def workers(self) -> list[SpanWorker]:
        """The processes there are now."""
        return [shop.worker for shop in self._shops.values() if shop.worker is not None]

    @asynccontextmanager
    async def hold(
        self, card: ModelCard, path: FindPath, units: Sequence[Span], *, exact: bool
    ) -> AsyncIterator[LlamaSpanHost]:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.hold`."""
        file = await _read(path)
        planned = make_span_plan(
            file,
            card.digest,
            self._settings,
            units,
            exact=exact,
            memory=self._pool.memory,
            gate=self._state / "exact",
        )
        async with (
            self._pool.reserved(card, planned.memory),
            self._shop(card, file, planned, exact) as shop,
        ):
            with ExitStack() as files:
                slices = await self._sliced(file, card, units, files)
                async with _holding(shop, card.id):
                    worker = await shop.serving()
                    shop.plan = replace(shop.plan, plan=planned.plan)
                    shop.rows = await worker.hold(HoldPlan(planned.plan, slices))
                    shop.units = slices
                    yield LlamaSpanHost(shop, tuple(units))

    async def _sliced(
        self, file: GgufFile, card: ModelCard, units: Sequence[Span], files: ExitStack
    ) -> tuple[UnitFile, ...]:
        slices = []
        for unit in units:
            use = self.slices.using(partial(slice_span, file, card.digest, unit))
            path = await trio.to_thread.run_sync(files.enter_context, use)
            slices.append(UnitFile(unit, str(path)))
        return tuple(slices)

    @asynccontextmanager
    async def head(
        self, card: ModelCard, path: FindPath, *, exact: bool
    ) -> AsyncIterator[LlamaSpanHead]:
        """See :meth:`kwaai_core.span.roles.SpanExecutor.head`."""
        file = await _read(path)
        planned = make_span_plan(
            file,
            card.digest,
            self._settings,
            (),
            exact=exact,
            memory=self._pool.memory,
            gate=self._state / "exact",
        )
        async with self._shop(card, file, planned, exact) as shop:
            async with shop.heading:  # a second one would take the place of the first
                if shop.head is None:
                    use = self.slices.using(partial(slice_head, file, card.digest))
                    path_of_head = await trio.to_thread.run_sync(shop.files.enter_context, use)
                    shop.rows = await (await shop.serving()).head(path_of_head)
                    shop.head = path_of_head
            yield LlamaSpanHead(shop)

    @asynccontextmanager
    async def heading(self, card: ModelCard, path: FindPath) -> AsyncIterator[SpanWorker]:
        """A process that has the head of a model, and so its vocabulary, for as long as this."""
        async with self.head(card, path, exact=False) as head:
            yield await head.worker()

    def heads(self, card: ModelCard) -> SpanWorker | None:
        """A process that has the head of a model loaded, in whichever mode."""
        shops = [self._shops.get((card.digest, exact)) for exact in (False, True)]
        found = [shop.worker for shop in shops if shop is not None and shop.head is not None]
        return next((worker for worker in found if worker is not None and worker.serving), None)

    @asynccontextmanager
    async def _shop(
        self, card: ModelCard, file: GgufFile, planned: Planned, exact: bool
    ) -> AsyncIterator[_Shop]:
        key = (card.digest, exact)
        shop = self._shops.get(key)
        if shop is None:
            width = file.embedding_length
            journal = self._settings.journal or machine_memory() // 16
            plan = SpanPlan(planned.plan, width, self._settings.streams, journal)
            shop = self._shops[key] = _Shop(file, plan)
            self._nursery.start_soon(self._keep, card.id, shop)
        shop.users += 1
        try:
            yield shop
        finally:
            shop.users -= 1
            if not shop.users:
                del self._shops[key]
                shop.scope.cancel()
                shop.files.close()

    async def _keep(self, name: str, shop: _Shop) -> None:
        """Run the process, and run it again with what it had when it dies, or cannot load that."""
        pause = RESTART_SECONDS
        with shop.scope:
            while True:
                served = await self._run(name, shop)
                pause = RESTART_SECONDS if served else min(2 * pause, LONGEST_SECONDS)
                await trio.sleep(pause)

    async def _run(self, name: str, shop: _Shop) -> bool:
        """Whether it had everything."""
        worker = SpanWorker(name, shop.plan, spin=self._settings.spin)
        served = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._load, shop, worker, nursery.cancel_scope)
                await worker.run()
                nursery.cancel_scope.cancel()
        finally:
            lost = WorkerLost(
                f"the process that computes spans of {name} is being started again",
                retry_after=RESTART_SECONDS,
            )
            served = shop.worker is worker
            shop.change(None, worker.error or lost)
        log.error("%s: %s", name, worker.error)
        return served

    async def _load(self, shop: _Shop, worker: SpanWorker, scope: trio.CancelScope) -> None:
        """Give a new process what the last one had; without all of it, it is of no use."""
        await worker.ready.wait()
        try:
            units = shop.units
            if units:
                shop.rows = await worker.hold(HoldPlan(shop.plan.plan, units))
            if shop.head is not None:
                shop.rows = await worker.head(shop.head)
            if units and not shop.units:  # nobody holds them any more, meanwhile
                await worker.hold(HoldPlan(shop.plan.plan))
        except KwaaiError as error:
            worker.error = worker.error or error
            scope.cancel()
        if worker.serving and not scope.cancel_called:
            shop.change(worker)


@asynccontextmanager
async def _holding(shop: _Shop, name: str) -> AsyncIterator[None]:
    """Be the only one who holds units of a model, and free them in the end: their process may stay
    for its head, and their memory is to be had by others then."""
    if shop.held:
        raise ModelLoading(f"units of {name} are held here already", retry_after=10)
    shop.held = True
    try:
        yield
    finally:
        shop.units = ()
        if shop.worker is not None and shop.users > 1:
            with trio.move_on_after(RELEASE_SECONDS, shield=True), suppress(KwaaiError):
                await shop.worker.hold(HoldPlan(shop.plan.plan))
        shop.held = False


async def _read(path: FindPath) -> GgufFile:
    return await trio.to_thread.run_sync(read_gguf, await path())


async def _worker_for(channel: DataChannel, shop: _Shop) -> SpanWorker:
    """The process that shall have a channel, whose socket is closed where there is none."""
    try:
        return await shop.serving()
    except BaseException:
        channel.socket.close()
        raise


class LlamaSpanHost:
    """See :class:`kwaai_core.span.roles.SpanHost`."""

    def __init__(self, shop: _Shop, units: tuple[Span, ...]) -> None:
        self._shop = shop
        self.units: Sequence[Span] = units

    @property
    def facts(self) -> SpanFacts:
        return self._shop.facts()

    def load(self) -> SpanLoad:
        worker = self._shop.worker
        return worker.load if worker is not None else SpanLoad(0, 0, 0, (), ())

    async def serve(self, peer: str, channel: DataChannel) -> None:
        worker = await _worker_for(channel, self._shop)
        async with worker.link(peer, channel, hosting=True) as number:
            await worker.link_gone(number)

    def reserve(self, sessions: Mapping[str, int]) -> None:
        worker = self._shop.worker
        if worker is not None and worker.serving:
            worker.reserve(sessions)

    async def drain(self) -> None:
        worker = await self._shop.serving()
        worker.drain()
        # until it has said that it takes no more, what it said of its sessions is old
        while worker.serving and (worker.load.free or worker.load.sessions):  # noqa: ASYNC110
            await trio.sleep(0.1)


class LlamaSpanHead:
    """See :class:`kwaai_core.span.roles.SpanHead`."""

    def __init__(self, shop: _Shop) -> None:
        self._shop = shop

    @property
    def facts(self) -> SpanFacts:
        return self._shop.facts()

    async def worker(self) -> SpanWorker:
        """The process that has it, with everything loaded."""
        return await self._shop.serving()

    @asynccontextmanager
    async def link(
        self,
        peer: str,
        channel: DataChannel,
        *,
        replay_rows: int = 1,
        rtt: float = 0.0,
        lone: Mapping[Span, float] | None = None,
    ) -> AsyncIterator[int]:
        worker = await _worker_for(channel, self._shop)
        rows = replay_rows if self._shop.plan.plan.exact else 1
        link = worker.link(peer, channel, hosting=False, replay_rows=rows, rtt=rtt, lone=lone)
        async with link as number:
            yield number

    def lost(self, link: int) -> bool:
        worker = self._shop.worker
        return worker is None or worker.link_lost(link)

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest, routing: Routing
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        worker = await self._shop.serving()
        job = job_of(request)
        async with worker.generate(job, routing) as (answer, _):
            yield answer
