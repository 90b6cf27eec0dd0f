"""The host's half of a span worker: steps of all sessions, as few calls as the rules allow."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby

from kwaai_core import Span
from kwaai_core.span.frames import FaultCode, Flags, Frame, Kind
from kwaai_core.span.host import Host, Limits, SendFrame
from kwaai_core.span.hosted import Session, Step
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.grouping import groups
from kwaai_lobe_llama.worker.loaded import EngineError
from kwaai_lobe_llama.worker.units import Piece, Unit, Units

Work = tuple[Session, Step]

IDLE_SECONDS = 30.0
"""How long a session is left alone between two steps although another peer finds no room."""


class Hosting:
    """Sessions over the units of one model. One thread calls all of it.

    ``calls`` and ``since`` are for heartbeats: how many calls are finished, and since when one is
    under way, or 0. A call has at most ``max_rows`` lone rows. ``between`` is called before a
    chunk, for which nobody's row should wait.
    """

    def __init__(
        self,
        plan: Plan,
        send: SendFrame,
        *,
        per_peer: int,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.calls = 0
        self.since = 0.0
        self._send = send
        self._per_peer = per_peer
        self._between = between
        self._peers: dict[Hashable, str] = {}
        self.hold(plan, [], plan.max_rows)

    def hold(self, plan: Plan, units: Sequence[Unit], max_rows: int) -> None:
        """Serve sessions over these units of a plan, with calls of at most so many rows.

        Whoever called it before calls :meth:`let_go` first.
        """
        self._plan, self.units, self.max_rows = plan, Units(units), max_rows
        # one cell of each stream is left for the dummy rows of other sessions' calls
        limits = Limits(plan.streams, plan.cells - 1, plan.chunk, self._per_peer)
        self.host = Host([unit.span for unit in units], self.units, limits, self._send)
        self._reserved: Mapping[str, int] = {}
        for link, peer in self._peers.items():
            self.host.attach(link, peer)

    def let_go(self) -> None:
        """Free the units. The sessions over them end, and their owners are told."""
        for session in self.host.sessions:
            if session.link is not None:
                self._send(session.link, _ended(session))
        for unit in self.units.units:
            unit.engine.close()
        self.hold(self._plan, [], self._plan.max_rows)

    def attach(self, link: Hashable, peer: str) -> None:
        """A link to an authenticated peer is there."""
        self._peers[link] = peer
        self.host.attach(link, peer)

    def detach(self, link: Hashable, now: float) -> None:
        """A link is gone."""
        del self._peers[link]
        self.host.detach(link, now)

    def reserve(self, sessions: Mapping[str, int]) -> None:
        """Keep room for so many more sessions of each of these peers, and of no others."""
        self._reserved = sessions
        self.host.reserve(sessions)

    def free(self, now: float) -> int:
        """How many more sessions there is room for: for a peer that has none yet, which those that
        stand idle would be ended for."""
        return 0 if self.host.draining else self.host.free + self.idle(now)

    def idle(self, now: float) -> int:
        """How many sessions stand idle, and would be ended for those of others."""
        return sum(bool(s.owner) and _stands_idle(s, now) for s in self.host.sessions)

    def receive(self, link: Hashable, frame: Frame, now: float) -> None:
        """Take a frame of an owner. Errors: :class:`FrameError`, see :meth:`Host.receive`."""
        peer = self._peers.get(link)
        if frame.kind is Kind.OPEN and peer is not None:
            self._share(peer, frame, now)
        self.host.receive(link, frame, now)

    def _share(self, peer: str, frame: Frame, now: float) -> None:
        """Make room for a session of a peer where there is none: whoever has most, and more than
        that peer, loses sessions that stand idle. One peer may have all as long as nobody else
        asks; this node itself may in any case. Nobody loses any where that is of no use."""
        sessions = self.host.sessions
        if self.host.draining or any(session.number == frame.session for session in sessions):
            return  # it takes its own place
        if self.host.objection(frame):
            return
        kept = sum(room for other, room in self._reserved.items() if other != peer)
        has = Counter(session.owner for session in sessions)
        idle = [s for s in sessions if s.owner and _stands_idle(s, now)]
        ending = list[Session]()
        while self.host.free + len(ending) <= kept:
            longest = min(
                (session for session in idle if has[session.owner] > has[peer]),
                key=lambda session: (-has[session.owner], session.used),
                default=None,
            )
            if longest is None:
                return
            idle.remove(longest)
            has[longest.owner] -= 1
            ending.append(longest)
        for session in ending:
            end = Frame(Kind.CLOSE, session.number, session.epoch)
            self.host.receive(session.link, end, now)

    def step(self) -> bool:
        """One round: a lone row of each session that has one, then one longer piece. False where
        there was nothing to do."""
        ready = self.host.ready()
        if not ready:
            return False
        lone = [work for work in ready if work[1].rows == 1]
        for _, same in groupby(sorted(lone, key=_span), key=_span):
            for group in groups(same, _stream, self.max_rows):
                self._run(group, self._lone_rows)
        longer = [work for work in ready if work[1].rows > 1]
        if longer:
            self._between()
            self._run(longer[:1], self._chunk)
        return True

    def _run(
        self, group: list[Work], compute: Callable[[Span, list[Work]], Sequence[bytes]]
    ) -> None:
        began = self.since = time.monotonic()
        started = [(session, step) for session, _ in group if (step := self.host.start(session))]
        try:
            outputs = compute(group[0][0].span, started) if started else []
        except EngineError as error:
            for session, _ in started:
                self.host.fail(session, f"its engine failed: {error}")
            return
        finally:
            self.since = 0.0
            self.calls += 1
        seconds = time.monotonic() - began
        for (session, step), output in zip(started, outputs, strict=True):
            self.host.finish(session, output, waited=began - step.arrived, computed=seconds)

    def _lone_rows(self, span: Span, group: list[Work]) -> Sequence[bytes]:
        return self.units.lone_rows(span, [_piece(work) for work in group])

    def _chunk(self, span: Span, group: list[Work]) -> Sequence[bytes]:
        return [self.units.chunk(span, _piece(group[0]))]


def _stands_idle(session: Session, now: float) -> bool:
    busy = session.pending or session.computing
    return session.link is not None and not busy and now - session.used > IDLE_SECONDS


def _ended(session: Session) -> Frame:
    words = b"the blocks of this session are not held any more"
    code = FaultCode.NEED_REPLAY
    return Frame(Kind.FAULT, session.number, session.epoch, rows=code, payload=words)


def _piece(work: Work) -> Piece:
    session, step = work
    quiet = bool(step.flags & (Flags.SILENT | Flags.LAST))
    return Piece(session.stream, step.position, step.rows, step.states, quiet)


def _span(work: Work) -> tuple[int, int]:
    return work[0].span.lo, work[0].span.hi


def _stream(work: Work) -> int:
    return work[0].stream
