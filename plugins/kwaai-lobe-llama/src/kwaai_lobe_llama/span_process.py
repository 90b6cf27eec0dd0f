"""A worker process of spans, seen from the node: links handed over, routes asked for."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import trio

from kwaai_core import (
    DataChannel,
    Hop,
    HopTiming,
    KwaaiError,
    LobeFailed,
    ModelFileError,
    PeerLost,
    Report,
    Span,
)
from kwaai_core.errors import cause_of
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.roles import SpanLoad
from kwaai_lobe_llama.frames import Kind
from kwaai_lobe_llama.plan import takes_turns
from kwaai_lobe_llama.planning import default_threads
from kwaai_lobe_llama.process import Request, Worker
from kwaai_lobe_llama.span_plan import HoldPlan, LinkPlan, SpanPlan

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Link:
    """``settled`` once it is ``made`` or nothing comes of it, ``gone`` when it is of no use."""

    made: bool = False
    settled: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    reason: str = "the link is closed"


@dataclass(eq=False, slots=True)
class _Loading:
    done: trio.Event = field(default_factory=trio.Event)
    facts: Mapping[str, object] = field(default_factory=dict)
    error: KwaaiError | None = None


class SpanWorker(Worker):
    """One worker process with units, and perhaps the head, of one model."""

    def __init__(self, name: str, span_plan: SpanPlan, *, spin: int) -> None:
        super().__init__(name, span_plan.plan, spin=spin)
        self.load = SpanLoad(0, 0, 0, (), ())
        self._span_plan = span_plan
        self._links: dict[int, _Link] = {}
        self._loadings: dict[int, _Loading] = {}
        self._link_numbers = count(1)

    async def _run(self) -> None:
        self._hand, self._other_hand = socket.socketpair()
        self._hand.setblocking(False)  # a process that stands still must not hold up the node
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await super()._run()
                nursery.cancel_scope.cancel()
        finally:
            self._hand.close()
            self._other_hand.close()
            for link in self._links.values():
                link.gone.set()
                link.settled.set()
            for loading in self._loadings.values():
                loading.error = self.error or self._lost("was stopped")
                loading.done.set()

    def _arguments(self) -> tuple[list[str], list[int]]:
        sockets = self._other_hand.fileno()
        return [self._span_plan.to_json(), str(sockets)], [sockets]

    def _environment(self) -> dict[str, str]:
        environment = super()._environment()
        threads, cores = self.plan.threads, len(os.sched_getaffinity(0))
        alone = threads == default_threads() and takes_turns(cores, threads)
        if alone and not self.plan.gpu_layers and "GOMP_CPU_AFFINITY" not in os.environ:
            # workers of spans compute in turn, so that none of them is on those cores meanwhile;
            # unbound, two threads of a call are now and then put on the same one, for some ms
            environment |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
        return environment

    # -- what it runs

    async def hold(self, held: HoldPlan) -> int:
        """Load slices in place of those that were; how many rows a call may have.

        The sessions over those that were end. Errors: :class:`ModelFileError`, and nothing is held.
        """
        self.plan = held.plan
        return await self._loaded(Kind.HOLD, held.to_json())

    async def head(self, path: os.PathLike[str]) -> int:
        """Load the head; how many rows a call may have. Errors: :class:`ModelFileError`."""
        return await self._loaded(Kind.HEAD, os.fsencode(path))

    async def _loaded(self, kind: Kind, payload: bytes) -> int:
        if self.ended.is_set():
            raise self.error or self._lost("was stopped")
        number = next(self._numbers) & 0xFFFFFFFF
        loading = self._loadings[number] = _Loading()
        try:
            self._out.send_nowait((kind, number, payload))
            await loading.done.wait()
        finally:
            del self._loadings[number]
        if loading.error is not None:
            raise loading.error
        rows = loading.facts.get("max_rows")
        return rows if isinstance(rows, int) else 1

    def drain(self) -> None:
        """Take no more sessions, and ask for those there are to be moved."""
        self._out.send_nowait((Kind.DRAIN, 0, b""))

    def reserve(self, sessions: Mapping[str, int]) -> None:
        """Keep room for so many more sessions of each of these peers, and of no others."""
        self._out.send_nowait((Kind.RESERVE, 0, json.dumps(dict(sessions)).encode()))

    # -- links

    @asynccontextmanager
    async def link(
        self,
        peer: str,
        channel: DataChannel,
        *,
        hosting: bool,
        replay_rows: int = 1,
        rtt: float = 0.0,
        lone: Mapping[Span, float] | None = None,
    ) -> AsyncIterator[int]:
        """Hand a connected socket over to the process; the number of the link. The rest is of the
        host, where that is the peer: see :meth:`kwaai_core.span.roles.SpanHead.link`.

        Errors: :class:`PeerLost` where the handshake fails; :class:`WorkerLost`.
        """
        with channel.socket:
            if self.ended.is_set():
                raise self.error or self._lost("was stopped")
            units = tuple((unit.lo, unit.hi, seconds) for unit, seconds in (lone or {}).items())
            plan = _link_plan(peer, channel, hosting)  # each socket that is sent has a frame
            plan = replace(plan, replay_rows=replay_rows, rtt=rtt, lone=units)
            number = next(self._link_numbers)
            try:
                socket.send_fds(self._hand, [b"l"], [channel.socket.fileno()])
            except OSError as error:  # it takes none, or too many are on their way
                raise PeerLost(f"no link to {peer}: its socket is not taken ({error})") from None
            link = self._links[number] = _Link()
        self._out.send_nowait((Kind.LINK, number, plan.to_json()))
        try:
            await link.settled.wait()
            if not link.made:  # one that was, and is lost already, is a link all the same
                raise PeerLost(f"no link to {peer}: {link.reason}")
            yield number
        finally:
            del self._links[number]
            if not self.ended.is_set() and not link.gone.is_set():
                self._out.send_nowait((Kind.UNLINK, number, b""))

    async def link_gone(self, number: int) -> str:
        """Wait until a link is of no use any more; why."""
        link = self._links[number]
        await link.gone.wait()
        return link.reason

    def link_lost(self, number: int) -> bool:
        """Whether a link is of no use any more."""
        link = self._links.get(number)
        return link is None or link.gone.is_set()

    # -- what comes back

    def _take(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.LINKED and number in self._links:
            self._links[number].made = True
            self._links[number].settled.set()
        elif kind is Kind.LOST and number in self._links:
            link = self._links[number]
            link.reason = payload.decode("utf-8", "replace")
            link.gone.set()
            link.settled.set()
        elif kind is Kind.ASK and number in self._requests:
            request = self._requests[number]
            request.scope = trio.CancelScope()  # there is at most one question at a time
            self._nursery.start_soon(self._answer_ask, number, request, payload)
        elif kind is Kind.TIMINGS and number in self._requests:
            self._requests[number].report = _report(payload, exact=self.plan.exact)
        elif kind is Kind.LOAD:
            self.load = _load(payload)
        elif kind in (Kind.LOADED, Kind.UNFIT) and number in self._loadings:
            loading = self._loadings[number]
            if kind is Kind.LOADED:
                loading.facts = json.loads(payload)
            else:
                loading.error = ModelFileError(payload.decode("utf-8", "replace"))
            loading.done.set()
        else:
            super()._take(kind, number, payload)

    async def _answer_ask(self, number: int, request: Request, question: bytes) -> None:
        with request.scope:  # cancelled already where its caller has left meanwhile
            await trio.lowlevel.checkpoint()
            if request.routing is None:
                return
            try:
                places = await request.routing(*_question(question))
            except KwaaiError as error:
                self._give_up(number, request, error)
            except Exception as error:  # foreign code: it costs this answer only
                log.debug("the router failed", exc_info=error)
                self._give_up(number, request, LobeFailed("router", cause_of(error)))
            else:
                route = [[place.link, place.span.lo, place.span.hi] for place in places]
                self._out.send_nowait((Kind.ROUTE, number, json.dumps(route).encode()))

    def _give_up(self, number: int, request: Request, error: KwaaiError) -> None:
        request.answer.fail(error)
        self._out.send_nowait((Kind.CANCEL, number, b""))


def _link_plan(peer: str, channel: DataChannel, hosting: bool) -> LinkPlan:
    try:
        return LinkPlan(
            peer,
            hosting,
            channel.server,
            channel.certificate.decode("ascii"),
            channel.key.decode("ascii"),
            channel.trusted.decode("ascii"),
        )
    except UnicodeDecodeError:
        raise PeerLost(f"no link to {peer}: what its data channel trusts is no PEM") from None


def _question(payload: bytes) -> tuple[int, list[Place], list[Trouble]]:
    """What ASK asks: tokens, the route there was, what is wrong with it."""
    question = json.loads(payload)
    route = [Place(link, Span(lo, hi)) for link, lo, hi in question["route"]]
    trouble = [
        Trouble(Place(link, Span(lo, hi)), Blame(blame), reason, retry, took)
        for link, lo, hi, blame, reason, retry, took in question["trouble"]
    ]
    return question["tokens"], route, trouble


def _load(payload: bytes) -> SpanLoad:
    facts = json.loads(payload)
    return SpanLoad(
        facts["free"],
        facts["sessions"],
        facts["waiting"],
        tuple(facts["step_seconds"]),
        tuple(facts["row_seconds"]),
        facts["idle"],
    )


def _report(payload: bytes, *, exact: bool) -> Report:
    """What TIMINGS tells; each hop's peer is the number of its link."""
    timings = []
    for link, lo, hi, _, rows, replayed, total, waited, computed in json.loads(payload):
        wire = max(0.0, total - waited - computed)
        milliseconds = (seconds * 1e3 for seconds in (waited, computed, wire))
        timings.append(HopTiming(Hop(str(link), Span(lo, hi)), rows, replayed, *milliseconds))
    return Report(tuple(timings), exact, same_text_guaranteed=exact)
