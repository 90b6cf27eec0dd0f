"""The host's side of the fake: sessions over units of the toy model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

import trio

from kwaai_core.errors import PeerLost
from kwaai_core.peering import DataChannel
from kwaai_core.span.frames import Frame, Kind
from kwaai_core.span.host import Host, Limits
from kwaai_core.span.roles import SpanFacts, SpanLoad
from kwaai_core.span.watch import HEARTBEAT_SECONDS
from kwaai_core.testing.spans.lines import FrameLine, line_over
from kwaai_core.testing.toy import ToyCache
from kwaai_core.types import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kwaai_core.testing.spans.executor import FakeSpanExecutor

LEAST_SECONDS = 1e-6
_POLL_SECONDS = 0.05


class FakeSpanHost:
    """A :class:`kwaai_core.span.roles.SpanHost` of the toy model; made by the executor's ``hold``.

    ``host`` has the sessions. ``lines`` are those that it serves now.
    """

    def __init__(self, executor: FakeSpanExecutor, units: Sequence[Span], facts: SpanFacts) -> None:
        self.units = tuple(units)
        self.facts = facts
        self.lines: dict[Hashable, FrameLine] = {}
        self._executor = executor
        self._scopes: dict[trio.CancelScope, None] = {}
        self._numbers = count(1)
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a process does that has died: no sessions, no lines."""
        e = self._executor
        self.cache = ToyCache()
        limits = Limits(e.streams, self.facts.cells, self.facts.chunk, e.per_peer, retry=e.retry)
        self.host = Host(self.units, self.cache, limits, self._send)
        self._calls, self._since = 0, 0.0
        self._work = trio.Event()
        for scope in self._scopes:
            scope.cancel()

    def _send(self, link: Hashable, frame: Frame) -> None:
        if link in self.lines:
            self.lines[link].send(frame)

    def load(self) -> SpanLoad:
        """See :meth:`kwaai_core.span.roles.SpanHost.load`."""
        sessions = self.host.sessions
        step = max(self._executor.step_seconds, LEAST_SECONDS)
        row = max(self._executor.row_seconds, LEAST_SECONDS)
        return SpanLoad(
            self.host.free,
            len(sessions),
            sum(len(session.pending) for session in sessions),
            (step,) * len(self.units),
            (row,) * len(self.units),
        )

    async def serve(self, peer: str, channel: DataChannel) -> None:
        """See :meth:`kwaai_core.span.roles.SpanHost.serve`."""
        line = await line_over(channel, peer)
        host, number = self.host, next(self._numbers)
        self.lines[number] = line
        host.attach(number, peer)
        try:
            with self._mortal():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._beat, line)
                    nursery.start_soon(self._carry, host, number, line)
        except* PeerLost as error:
            if "broke the protocol" in str(error.exceptions[0]):
                raise error.exceptions[0] from None
        finally:
            del self.lines[number]
            host.detach(number, trio.current_time())

    @contextmanager
    def _mortal(self) -> Iterator[None]:
        with trio.CancelScope() as scope:
            self._scopes[scope] = None
            try:
                yield
            finally:
                del self._scopes[scope]

    async def _carry(self, host: Host, number: int, line: FrameLine) -> None:
        def take(frame: Frame) -> None:
            host.receive(number, frame, trio.current_time())
            self._work.set()

        await line.run(take, self._executor.going)

    async def _beat(self, line: FrameLine) -> None:
        while True:
            await self._executor.going()
            now = trio.current_time()
            computing = int((now - self._since) * 1e6) + 1 if self._since else 0
            line.send(Frame(Kind.HEARTBEAT, step=self._calls, computed=computing))
            await trio.sleep(HEARTBEAT_SECONDS)

    async def compute(self) -> None:
        """Compute what sessions ask for, for ever."""
        while True:
            await self._executor.going()
            self.host.tick(trio.current_time())
            ready = self.host.ready()
            if ready:
                await self._step()
            else:
                self._work = trio.Event()
                with trio.move_on_after(1):
                    await self._work.wait()

    async def _step(self) -> None:
        host, cache = self.host, self.cache
        session, step = host.ready()[0]
        if host.start(session) is None:
            return
        began = self._since = trio.current_time()
        each = self._executor.step_seconds if step.rows == 1 else self._executor.row_seconds
        units = sum(session.span.lo <= unit.lo < session.span.hi for unit in self.units)
        await trio.sleep(each * step.rows * units * self._executor.slowness)
        await self._executor.going()
        if self.host is not host:
            return
        self._calls, self._since = self._calls + 1, 0.0
        now = trio.current_time()
        host.finish(session, cache.run(session), waited=began - step.arrived, computed=now - began)

    def reserve(self, sessions: Mapping[str, int]) -> None:
        """See :meth:`kwaai_core.span.roles.SpanHost.reserve`."""
        self.host.reserve(sessions)

    async def drain(self) -> None:
        """See :meth:`kwaai_core.span.roles.SpanHost.drain`."""
        self.host.drain()
        while self.host.sessions:  # noqa: ASYNC110  # a poll of a number
            await trio.sleep(_POLL_SECONDS)


async def serve_quietly(host: FakeSpanHost, peer: str, channel: DataChannel) -> None:
    """Serve, and let the end of the line be no error of whoever serves."""
    with suppress(PeerLost):
        await host.serve(peer, channel)
