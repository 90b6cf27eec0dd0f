"""A worker of spans: units for sessions of its own and of peers, and the head of its own answers.

The main thread does everything that matters, in rounds: read what has come over the links, compute
what can be, send what that gave. It never waits but for something to do. A step thus passes from
socket to batch and from batch to socket without a task switch. Beside it run the threads that read
the node's frames and take its jobs in, one that sends heartbeats while the main one computes, and
one for each handshake.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from kwaai_core import FrameError, ModelFileError, Span
from kwaai_core.span.chain import Settings
from kwaai_core.span.frames import Frame, FrameReader
from kwaai_core.span.frames import Kind as Spoken
from kwaai_core.span.hop import Place, Trouble
from kwaai_core.span.journal import Budget
from kwaai_core.span.roles import LOCAL
from kwaai_core.span.watch import HEARTBEAT_SECONDS, Pace
from kwaai_lobe_llama.answers import Finish
from kwaai_lobe_llama.frames import Kind
from kwaai_lobe_llama.span_plan import HoldPlan, LinkPlan, SpanPlan
from kwaai_lobe_llama.worker.cores import CORES
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.exact import NotExact
from kwaai_lobe_llama.worker.fingerprint import describe, fingerprint
from kwaai_lobe_llama.worker.heading import Heading
from kwaai_lobe_llama.worker.hosting import Hosting
from kwaai_lobe_llama.worker.links import Link, LinkLost
from kwaai_lobe_llama.worker.loaded import EngineError
from kwaai_lobe_llama.worker.residency import release_zero_pages
from kwaai_lobe_llama.worker.server import Server
from kwaai_lobe_llama.worker.span_engine import HeadEngine
from kwaai_lobe_llama.worker.span_gate import load_head, load_units
from kwaai_lobe_llama.worker.telling import Session
from kwaai_lobe_llama.worker.turns import Turns, lock_of
from kwaai_lobe_llama.worker.waiting import Waiting, others
from kwaai_lobe_llama.worker.wires import Wires

TICK_SECONDS = 0.1
LOAD_SECONDS = 1.0
"""How often the node is told how long steps take; of sessions that come and go it hears at once."""


class SpanServer(Server):
    """Serves a :class:`SpanPlan` over the node's connection until that ends. ``sockets`` is where
    the node hands over the sockets of links, each before its LINK frame."""

    def __init__(self, connection: socket.socket, sockets: socket.socket) -> None:
        super().__init__(connection)
        self._sockets = sockets
        self._own: deque[Frame] = deque()
        self._ticked = 0.0
        self._last_load = b""
        self._idle = False
        self._told, self._told_room = 0.0, (False, 0, 0, 0)
        self._waiting = Waiting(others(CORES), len(CORES))
        self._wires = Wires(self._outbox, self._waiting, self._linked, self._gone)
        self._turns = Turns(None)
        self._head: HeadEngine | None = None
        self._heading: Heading | None = None

    def run(self, plan: SpanPlan) -> None:
        """Say READY, with nothing loaded yet, and serve for ever."""
        self._plan = plan
        self._budget = Budget(plan.journal)
        if not plan.plan.gpu_layers:
            self._turns = Turns(lock_of(CORES, plan.plan.threads))
        self._hosting = Hosting(
            plan.plan, self._send, per_peer=plan.per_peer, between=self._wires.flush
        )
        self._hosting.attach(LOCAL, "")
        self._start(self._take_frames)
        self._start(self._beat)
        engine = describe(plan.plan)
        facts = {"engine": engine, "fingerprint": fingerprint(engine)}
        self._outbox.send(Kind.READY, 0, json.dumps(facts).encode())
        while True:
            self._round()

    def _load(self, number: int, load: Callable[[], int]) -> None:
        """Load what HOLD or HEAD asked for, which answers with the rows that a call may have."""
        try:
            rows = load()
        except (EngineError, NotExact, ModelFileError) as error:
            self._outbox.send(Kind.UNFIT, number, str(error).encode("utf-8", "replace"))
            return
        release_zero_pages()
        self._tell_load(time.monotonic())  # first, so that whoever may ask knows what is free
        self._outbox.send(Kind.LOADED, number, json.dumps({"max_rows": rows}).encode())

    def _hold(self, held: HoldPlan) -> int:
        self._hosting.let_go()  # first: there may be no room for both
        self._plan = replace(self._plan, plan=held.plan)
        if self._head is not None:
            self._head.plan = replace(self._head.plan, context=held.plan.context)
        units, rows = load_units(held.plan, held.units, self._report)
        self._hosting.hold(held.plan, units, rows)
        return rows

    def _behead(self, path: str) -> int:
        self._head, rows = load_head(self._plan.plan, path, self._report)
        settings = Settings(self._plan.width, 0, self._plan.plan.chunk)
        embedding = Embedding(self._plan.plan.path)
        self._heading = Heading(
            self._head,
            embedding.rows,
            settings,
            self._budget,
            self._send,
            self,
            self._ask,
            self._replay_rows,
            self._new_pace,
        )
        self._take_answers(self._head)
        return rows

    def _report(self, line: str) -> None:
        self._outbox.send(Kind.LOADING, 0, line.encode())

    # -- the main thread

    def _round(self) -> None:
        self._read()
        worked = self._ready()
        if worked:
            self._compute()
            self._waiting.worked()
        self._idle = not worked
        self._tick()

    def _ready(self) -> bool:
        head = self._heading is not None and self._heading.ready()
        return bool(head or self._own or self._hosting.host.ready())

    def _compute(self) -> None:
        """Compute what can be, and send it on while nobody else computes: whoever gets more than
        one session's step out of that can do them in one call."""
        self._hosting.since = time.monotonic()  # who waits for a turn is not idle
        with self._turns:
            if self._turns.waited:
                self._idle = False
                self._read()
            self._pass_on()
            if self._heading is not None:
                self._heading.step()
            if any(step.rows > 1 for _, step in self._hosting.host.ready()):
                self.flush()  # text does not wait for the chunk of a prompt
            self._hosting.step()  # the next tokens' too, so that sessions come together
            self._pass_on()
            if self._turns.waited or len(self._hosting.host.sessions) != 1:
                # before the turn of another one, who may be there to compute something else, or
                # with the steps of other sessions: to write takes the core that it begins on
                self._wires.flush()
        self._wires.flush()
        self._hosting.since = 0.0
        self.flush()  # while others compute: the node needs a core for it

    def _pass_on(self) -> None:
        """Give what was computed here for answers of one's own to where they are made."""
        while self._own and self._heading is not None:
            self._heading.receive(LOCAL, self._own.popleft())

    def _read(self) -> None:
        """Take what has come, and wait for it where there is nothing else to do."""
        for link in self._wires.ready(TICK_SECONDS if self._idle else 0.0):
            self._receive(link)

    def _receive(self, link: Link) -> None:
        now = time.monotonic()
        try:
            for frame in link.receive():
                link.silence.heard(now)
                self._dispatch(link, frame, now)
        except LinkLost as lost:
            self._wires.lose(link, str(lost))
        except FrameError as error:
            self._wires.lose(link, error.message)

    def _dispatch(self, link: Link, frame: Frame, now: float) -> None:
        if link.hosting:
            self._hosting.receive(link.number, frame, now)
        elif self._heading is None:
            raise FrameError(f"a host sends a {frame.kind.name} frame to where no answer is made")
        elif frame.kind is Spoken.DRAIN:
            self._heading.leave(link.number)
        elif frame.kind is Spoken.HEARTBEAT:
            self._heading.beat(link.number, frame)
        else:
            self._heading.receive(link.number, frame)

    def _send(self, link: Hashable, frame: Frame) -> None:
        if link != LOCAL:
            found = self._wires.links.get(link) if isinstance(link, int) else None
            if found is not None:
                # who is near cannot compute yet, and would only take the core from this one
                (found.keep if found.near and self._turns.held else found.send)(frame)
                self._wires.follow(found)
        elif frame.kind in _FROM_OWNER:
            self._hosting.receive(LOCAL, frame, time.monotonic())
        elif self._heading is not None:
            self._own.append(frame)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._ticked < TICK_SECONDS:
            return
        self._ticked = now
        self._wires.lose_silent(now)
        self._hosting.host.tick(now)
        if self._heading is not None:
            self._heading.tick()
        self._tell_load(now)

    def _tell_load(self, now: float) -> None:
        host = self._hosting.host
        free = self._hosting.free(now)
        room = (host.draining, free, len(host.sessions), len(self._hosting.units.units))
        if room == self._told_room and now - self._told < LOAD_SECONDS:
            return
        load = json.dumps(
            {
                "free": free,
                "sessions": len(host.sessions),
                "waiting": sum(len(session.pending) for session in host.sessions),
                "step_seconds": [unit.pace.lone for unit in self._hosting.units.units],
                "row_seconds": [unit.pace.row for unit in self._hosting.units.units],
                "idle": 0 if host.draining else self._hosting.idle(now),
            }
        ).encode()
        if load != self._last_load:  # an idle worker says nothing
            self._last_load, self._told_room, self._told = load, room, now
            self._outbox.send(Kind.LOAD, 0, load)

    # -- links

    def _replay_rows(self, place: Place) -> int:
        """How many lone rows may be replayed at a place in one call: as its host says, since each
        has found out that for itself."""
        if place.link == LOCAL:
            return self._hosting.max_rows if self._plan.plan.exact else 1
        link = self._wires.links.get(place.link) if isinstance(place.link, int) else None
        return link.replay_rows if link is not None else 1

    def _new_pace(self, place: Place) -> Pace:
        """That of a place which was never gone to, as far as its host says."""
        link = self._wires.links.get(place.link) if isinstance(place.link, int) else None
        return Pace() if link is None else Pace.told(place.span, link.rtt, link.lone)

    def _linked(self, link: Link) -> None:
        if link.hosting:
            self._hosting.attach(link.number, link.peer)

    def _gone(self, link: Link) -> None:
        if link.hosting:
            self._hosting.detach(link.number, time.monotonic())
        elif self._heading is not None:
            self._heading.lose(link.number, "the link to it is lost")

    def _beat(self) -> None:
        """Tell the owners of sessions that this process lives, in a thread of its own."""
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            since = self._hosting.since
            computing = int((time.monotonic() - since) * 1e6) if since else 0
            frame = Frame(Spoken.HEARTBEAT, step=self._hosting.calls, computed=computing)
            self._wires.send_all(frame)

    # -- the node

    def _control(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.LINK:
            _, descriptors, _, _ = socket.recv_fds(self._sockets, 1, 1)
            if not descriptors:
                self._outbox.send(Kind.LOST, number, b"this process has too many open files")
                return
            connection = socket.socket(fileno=descriptors[0])
            reader = FrameReader(self._plan.width, self._plan.plan.chunk)
            self._wires.connect(number, LinkPlan.from_json(payload), connection, reader)
        elif kind is Kind.UNLINK:
            self._wires.disconnect(number)
        elif kind is Kind.ROUTE:
            places = [Place(link, Span(lo, hi)) for link, lo, hi in json.loads(payload)]
            self._wires.run_soon(lambda: self._route(number, places))
        elif kind is Kind.DRAIN:
            self._wires.run_soon(lambda: self._hosting.host.drain())
        elif kind is Kind.RESERVE:
            sessions = json.loads(payload)
            self._wires.run_soon(lambda: self._hosting.reserve(sessions))
        elif kind is Kind.HOLD:
            held = HoldPlan.from_json(payload)
            self._wires.run_soon(lambda: self._load(number, lambda: self._hold(held)))
        elif kind is Kind.HEAD:
            self._wires.run_soon(lambda: self._load(number, lambda: self._behead(payload.decode())))
        else:
            raise FrameError(f"a worker of spans is sent no {kind.name} frame")

    def _route(self, number: int, places: Sequence[Place]) -> None:
        if self._heading is None:
            return
        self._heading.route(number, places)
        for link in {place.link for place in places} - {LOCAL, *self._wires.links}:
            if isinstance(link, int):  # it was lost while the router thought of it
                self._heading.lose(link, "there is no such link any more")

    def _submit(self, session: Session) -> None:
        if self._heading is not None:
            self._wires.run_soon(lambda: self._heading.open(session))  # type: ignore[union-attr]

    def _stop(self, session: Session) -> None:
        session.cancelled = True
        if self._heading is not None:
            self._wires.run_soon(lambda: self._heading.cancel(session))  # type: ignore[union-attr]

    def _ask(
        self, number: int, tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> None:
        question = {
            "tokens": tokens,
            "route": [_words(place) for place in route],
            "trouble": [
                [*_words(t.place), t.blame.value, t.reason, t.retry_after, t.took] for t in trouble
            ],
        }
        self._outbox.send(Kind.ASK, number, json.dumps(question).encode())

    def finish(self, session: Session, finish: Finish) -> None:
        if self._heading is not None:
            hops = [
                [
                    *_words(hop.place),
                    hop.timing.steps,
                    hop.timing.rows,
                    hop.timing.replayed,
                    hop.timing.total,
                    hop.timing.waited,
                    hop.timing.computed,
                ]
                for hop in self._heading.hops(session.number)
            ]
            self._outbox.collect(Kind.TIMINGS, session.number, json.dumps(hops).encode())
        super().finish(session, finish)


_FROM_OWNER = frozenset({Spoken.OPEN, Spoken.STEP, Spoken.FENCE, Spoken.CLOSE})


def _words(place: Place) -> list[object]:
    return [place.link, place.span.lo, place.span.hi]
