"""The host of spans: whose session it is, what it holds, and what may be computed next.

**The host is the authority on position**; nobody assumes what it holds. A step is taken by these
rules, in this order:

1. *Epoch*: what belongs to another epoch than the session's is dropped, without an answer.
2. *Repeat*: the same step with the same input is answered with the same output; within an epoch
   numbers of steps only grow, so that a late copy of an older one changes nothing.
3. *Prefix*: another tag before the step means other tokens: ``NEED_REPLAY``.
4. *Position*: at the end, append; before it, cut back and append; beyond it, ``NEED_REPLAY``.

One who runs a model drives it: :meth:`Host.receive` for each frame, :meth:`Host.ready` for what can
be computed, :meth:`Host.start` and :meth:`Host.finish` around each call, :meth:`Host.tick` now and
then. Frames may be received while a call is under way. Times are seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

from kwaai_core.errors import FrameError
from kwaai_core.span.admission import Admission, Limits
from kwaai_core.span.frames import FaultCode, Flags, Frame, Kind, Opening
from kwaai_core.span.hosted import Answered, Session, Step
from kwaai_core.types import Span

__all__ = ["Cache", "Host", "Limits", "SendFrame"]

SendFrame = Callable[[Hashable, Frame], None]
"""Send a frame over a link."""


class Cache(Protocol):
    """The KV cache of the units that a host runs."""

    def truncate(self, span: Span, stream: int, length: int) -> bool:
        """Cut a stream of the units in ``span`` back to ``length`` rows.

        False where what would remain cannot be trusted; the stream is then empty.
        """
        ...


class Host:
    """The sessions of one model's spans. ``units`` are the blocks of each, in order, without gaps
    between those that one session may use together."""

    def __init__(
        self, units: Sequence[Span], cache: Cache, limits: Limits, send: SendFrame
    ) -> None:
        self._admission = Admission(units, limits)
        self._cache = cache
        self._limits = limits
        self._send = send
        self._peers: dict[Hashable, str] = {}
        self._sessions: dict[int, Session] = {}
        self.draining = False

    def hold(self, units: Sequence[Span]) -> None:
        """Admit sessions over these units from now on."""
        self._admission.hold(units)

    @property
    def sessions(self) -> Sequence[Session]:
        """Every session there is."""
        return list(self._sessions.values())

    @property
    def free(self) -> int:
        """How many more sessions there is room for."""
        return self._admission.free

    @property
    def reserved(self) -> Mapping[str, int]:
        """For how many more sessions of which peers room is kept."""
        return self._admission.reserved

    def reserve(self, sessions: Mapping[str, int]) -> None:
        """Keep room for so many more sessions of each of these peers, and of no others."""
        self._admission.reserve(sessions)

    def attach(self, link: Hashable, peer: str) -> None:
        """A link to a peer, whom the transport has authenticated, is there."""
        self._peers[link] = peer
        if self.draining:
            self._send(link, Frame(Kind.DRAIN))

    def detach(self, link: Hashable, now: float) -> None:
        """A link is gone; its sessions wait a while for their owner to come back."""
        del self._peers[link]
        for session in self._sessions.values():
            if session.link == link:
                session.link, session.used = None, now
                session.keep_computed()

    def receive(self, link: Hashable, frame: Frame, now: float) -> None:
        """Take a frame of an owner; what a link that is gone has left behind is dropped.

        Errors: :class:`FrameError` for what only a host sends; the link is then to be closed.
        """
        peer = self._peers.get(link)
        session = self._sessions.get(frame.session)
        if peer is None:
            return
        if session is not None and session.owner != peer:
            self._refuse(link, frame, FaultCode.REQUEST, "this session is not yours")
            return
        if session is not None and session.closed:
            session = None
        if frame.kind is Kind.STEP:
            self._step(link, session, frame, now)
        elif frame.kind is Kind.OPEN:
            self._open(link, session, frame, now)
        elif frame.kind is Kind.FENCE:
            self._fence(link, session, frame, now)
        elif frame.kind is Kind.CLOSE:
            if session is not None and frame.epoch >= session.epoch:
                self._drop(session)
        else:
            raise FrameError(f"an owner sends no {frame.kind.name} frame")

    def drain(self) -> None:
        """Admit no more sessions, and ask the owners of those there are to move them."""
        self.draining = True
        for link in self._peers:
            self._send(link, Frame(Kind.DRAIN))

    def tick(self, now: float) -> None:
        """Forget the sessions that nobody uses any more."""
        for session in self.sessions:
            patience = self._limits.orphan if session.link is None else self._limits.idle
            under_way = session.pending or session.computing
            if now - session.used > patience and not under_way:
                self._drop(session)

    # -- opening and closing

    def objection(self, frame: Frame) -> str:
        """Why an OPEN frame is refused however much room there is; nothing where it is not."""
        try:
            return self._admission.objection(Opening.decode(frame.payload))
        except FrameError as error:
            return error.message

    def _open(self, link: Hashable, session: Session | None, frame: Frame, now: float) -> None:
        if session is not None and frame.epoch <= session.epoch:
            fresh = frame.epoch == session.epoch and not session.planned
            if fresh and link == session.link:  # a copy
                self._send(link, Frame(Kind.OPENED, frame.session, frame.epoch))
            return
        wrong = self.objection(frame)
        if wrong:
            self._refuse(link, frame, FaultCode.REQUEST, wrong)
            return
        opening = Opening.decode(frame.payload)
        if session is not None:
            self._drop(session)  # its owner starts anew
        self._make_room(self._peers[link])
        if self._full(self._peers[link]) or frame.session in self._sessions:
            self._refuse(link, frame, FaultCode.CAPACITY, "no room for another session")
            return
        self._sessions[frame.session] = Session(
            frame.session,
            self._peers[link],
            link,
            frame.epoch,
            opening.span,
            self._admission.take(),
            opening.tokens,
            now,
        )
        self._send(link, Frame(Kind.OPENED, frame.session, frame.epoch))

    def _make_room(self, peer: str) -> None:
        """An owner who comes back and begins anew has no use for what its lost link has left."""
        orphans = [s for s in self.sessions if s.owner == peer and s.link is None]
        if orphans and self._full(peer):
            self._drop(min(orphans, key=lambda session: session.used))

    def _full(self, peer: str) -> bool:
        own = sum(session.owner == peer for session in self._sessions.values())
        return self.draining or self._admission.full(peer, own)

    def _drop(self, session: Session) -> None:
        session.pending.clear()
        session.closed = True
        if session.computing is None:
            self._cache.truncate(session.span, session.stream, 0)
            del self._sessions[session.number]
            self._admission.give_back(session.stream)

    def _fence(self, link: Hashable, session: Session | None, frame: Frame, now: float) -> None:
        if session is None:
            return self._refuse(link, frame, FaultCode.NEED_REPLAY, "there is no such session")
        if frame.epoch > session.epoch:
            session.enter(frame.epoch, link)
            session.used, session.fence = now, True
        elif frame.epoch < session.epoch or link != session.link or session.pending:
            return None  # too late, or a copy of one that is answered
        if session.computing is None:
            self._fenced(session)
        return None

    def _fenced(self, session: Session) -> None:
        session.fence = False
        if session.link is not None:
            self._send(
                session.link,
                Frame(
                    Kind.FENCED,
                    session.number,
                    session.epoch,
                    position=session.held,
                    payload=session.tag(),
                ),
            )

    # -- steps

    def _step(self, link: Hashable, session: Session | None, frame: Frame, now: float) -> None:
        if session is None:
            return self._need_replay(link, frame, 0)
        if frame.epoch != session.epoch or link != session.link:
            return None
        session.used = now
        digest = hash(frame.payload)
        answered = session.repeated(frame, digest)
        if answered:
            return self._send(link, _result(session, frame, answered))
        if frame.step <= session.latest:
            return None
        if frame.position > session.planned:
            return self._need_replay(link, frame, session.planned)
        if not session.agrees(frame):
            session.empty()
            return self._need_replay(link, frame, 0)
        wrong = self._admission.objection_to_step(session, frame)
        if wrong:
            return self._refuse(link, frame, FaultCode.REQUEST, wrong)
        session.admit(frame, digest, now)
        return None

    def ready(self) -> list[tuple[Session, Step]]:
        """The next step of each session that has one and computes none, the oldest first."""
        waiting = [
            (session, session.pending[0])
            for session in self._sessions.values()
            if session.pending and session.computing is None
        ]
        return sorted(waiting, key=lambda pair: pair[1].arrived)

    def start(self, session: Session) -> Step | None:
        """Take the next step of a session to compute it; None where that turns out impossible."""
        step = session.pending[0]
        if session.cells > step.position:
            kept = self._cache.truncate(session.span, session.stream, step.position)
            if not kept:
                session.cells = 0
                session.empty()
                self._fault(session, step, FaultCode.NEED_REPLAY, "the past is forgotten")
                return None
        return session.take()

    def finish(self, session: Session, output: bytes, *, waited: float, computed: float) -> None:
        """The step under way is computed: send its ``output``, hidden states like its input.

        Of a silent one it may be anything, and of one whose last row alone is wanted just that.
        ``waited`` and ``computed`` are the seconds it waited here, and took.
        """
        step, wanted = self._taken(session)
        if step.flags & Flags.SILENT:
            output = b""
        elif step.flags & Flags.LAST:
            output = output[-(len(step.states) // step.rows) :]
        answered = Answered(step.number, step.digest, step.flags, output, waited, computed)
        session.answered = answered
        if wanted and session.link is not None:
            self._send(session.link, _result(session, step, answered))

    def fail(self, session: Session, reason: str) -> None:
        """The step under way could not be computed; what the cache holds is unknown now."""
        session.empty()
        step, wanted = self._taken(session)
        if wanted:
            self._fault(session, step, FaultCode.HOST, reason)

    def _taken(self, session: Session) -> tuple[Step, bool]:
        """The step that was under way, and whether anybody waits for its end."""
        step, session.computing = session.computing, None
        if step is None:
            raise RuntimeError("a session computes nothing, and something was computed for it")
        if session.closed:
            self._drop(session)
        elif session.fence:
            self._fenced(session)
        else:
            return step, True
        return step, False

    # -- refusals

    def _need_replay(self, link: Hashable, frame: Frame, length: int) -> None:
        self._refuse(link, frame, FaultCode.NEED_REPLAY, f"{length} rows are held here", length)

    def _refuse(
        self, link: Hashable, frame: Frame, code: FaultCode, words: str, number: int = 0
    ) -> None:
        if code is FaultCode.CAPACITY:
            number = int(self._limits.retry * 1000)
        self._send(link, _fault(frame.session, frame.epoch, frame.step, code, words, number))

    def _fault(self, session: Session, step: Step, code: FaultCode, words: str) -> None:
        if session.link is not None:
            self._send(
                session.link, _fault(session.number, session.epoch, step.number, code, words, 0)
            )


def _result(session: Session, step: Step | Frame, answered: Answered) -> Frame:
    return Frame(
        Kind.RESULT,
        session.number,
        session.epoch,
        answered.number,
        step.position,
        step.rows,
        step.flags,
        int(answered.waited * 1e6),
        int(answered.computed * 1e6),
        b"" if step.flags & Flags.SILENT else answered.output,
    )


def _fault(session: int, epoch: int, step: int, code: FaultCode, words: str, number: int) -> Frame:
    payload = words.encode()[:512]
    return Frame(Kind.FAULT, session, epoch, step, number, rows=code, payload=payload)
