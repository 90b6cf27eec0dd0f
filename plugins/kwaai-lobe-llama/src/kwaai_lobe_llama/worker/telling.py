"""From the logits of one row to what a caller sees of it: the next token, its text, the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Protocol

from kwaai_core import CallPiece, TokenLogprob
from kwaai_lobe_llama.answers import Failure, FailureCode, Finish
from kwaai_lobe_llama.worker.calling import CallReader
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.sampler import DeadEnd, Sampler
from kwaai_lobe_llama.worker.text import TextAssembler

if TYPE_CHECKING:  # it imports numpy
    from kwaai_lobe_llama.worker.logprobs import LogprobReader

HOLD_SECONDS = 0.02
"""How long text waits for more of it, after the first piece.

Each frame costs the node half a millisecond of a core that may be computing the next token; a
fiftieth of a second is below what a reader notices, and slower tokens go out one by one."""


class Digest(Protocol):
    """What is told the logits of every sampled row of a session, as bytes: a hash, say."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class Sink(Protocol):
    """Where answers go; :meth:`flush` is called after each call of ``llama_decode``."""

    def logprobs(self, session: Session, tokens: Sequence[TokenLogprob]) -> None: ...
    def text(self, session: Session, tokens: int, text: str) -> None: ...
    def finish(self, session: Session, finish: Finish) -> None: ...
    def fail(self, session: Session, failure: Failure) -> None: ...
    def calls(self, session: Session, pieces: Sequence[CallPiece]) -> None: ...
    def flush(self) -> None: ...


@dataclass(slots=True)
class Stream:
    """One KV sequence: ``tokens`` are what its cells hold, ``chunked`` how many of them, from
    the front, whole prefill chunks have written; ``session`` is who uses it now."""

    number: int
    tokens: list[int] = field(default_factory=list)
    chunked: int = 0
    used: int = 0
    session: Session | None = None


@dataclass(slots=True)
class Echo:
    """A prompt that is told before its answer: the bytes of its tokens, of which so many are
    ``told``. ``scored``: with their probabilities, for which every row of it is an output."""

    pieces: Sequence[bytes]
    scored: bool
    told: int = 0

    def rest(self) -> bytes:
        """What is not told yet; it is now."""
        begin, self.told = self.told, len(self.pieces)
        return b"".join(self.pieces[begin:])


@dataclass(slots=True, eq=False)
class Session:
    """One answer in the making. ``prompt`` is not empty and leaves room for a token. ``calls``
    reads calls of tools, where there may be any. ``repeatable``: on an idle worker it shall be the
    same answer whenever it is asked for. ``asked`` is when it was submitted, by
    ``time.perf_counter``, and ``computed`` for how many seconds calls took that it was part of."""

    number: int
    prompt: list[int]
    limit: int
    sampler: Sampler
    text: TextAssembler
    digest: Digest | None = None
    told: LogprobReader | None = None
    echo: Echo | None = None
    calls: CallReader | None = None
    repeatable: bool = False
    asked: float = 0.0
    computed: float = 0.0
    stream: Stream | None = None
    token: int = -1
    generated: int = 0
    cached: int = 0
    unsent: int = 0
    pending: str = ""
    sent: float = -inf
    cancelled: bool = False

    @property
    def decoding(self) -> bool:
        return self.token >= 0

    @property
    def scored(self) -> bool:
        """Whether the logits of every row of its prompt are wanted."""
        return self.echo is not None and self.echo.scored


class Teller:
    """Takes the next token of sessions from an engine's last call, and tells a sink of it."""

    def __init__(
        self,
        engine: Loaded,
        sink: Sink,
        *,
        endless: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._sink = sink
        self._endless = endless  # go on past a token that ends an answer, to measure
        self._now = clock

    def score(self, session: Session, rows: Sequence[int]) -> None:
        """These rows of the engine's last call are the next ones of a prompt that is scored: tell
        the probabilities of the tokens that follow them."""
        echo, reader = session.echo, session.told
        if echo is None or reader is None:
            raise RuntimeError(f"session {session.number} is not to be scored")
        found = []
        if not echo.told:  # the first token follows nothing
            found.append(TokenLogprob(echo.pieces[0], None))
        first = max(1, echo.told)
        echo.told = min(first + len(rows), len(session.prompt))  # what follows the last is drawn
        for row, at in zip(rows, range(first, echo.told), strict=False):
            found.append(reader.read(self._engine, row, session.prompt[at], echo.pieces[at]))
        self._sink.logprobs(session, found)
        text = session.text.before(b"".join(one.token for one in found))
        self._sink.text(session, 0, text)

    def take(self, session: Session, row: int, *, hold: bool = False) -> bool:
        """Sample from a row; True where that was the end of the session, which is told.

        ``hold``: text may wait a little for more of it.
        """
        if session.digest is not None:
            session.digest.update(self._engine.logits(row))
        if session.echo is not None:
            session.pending += session.text.before(session.echo.rest())
        if not session.limit:
            return self._end(session, "length")
        try:
            token = session.sampler.sample(self._engine, row)
        except DeadEnd:
            self._sink.fail(session, _dead_end(session))
            return True
        if session.cancelled:
            return False
        session.generated += 1  # a token that ends an answer has no text, and counts
        session.unsent += 1
        ends = not self._endless and self._engine.is_end(token)
        if session.told is not None and not (ends and session.echo is None):
            session.told.take(self._engine, row, token)
        if ends:
            return self._end(session, "stop")
        session.token = token
        piece = self._engine.piece(token)
        if session.calls is not None:
            piece = session.calls.marks.get(token, piece)
        text = session.text.push(piece)
        if session.text.stopped:
            return self._end(session, "stop", text)
        if session.generated >= session.limit:
            return self._end(session, "length", text)
        self._send(session, text, hold=hold)
        return False

    def _send(self, session: Session, text: str, *, hold: bool = False, last: bool = False) -> None:
        session.pending += text
        now = self._now()
        ready = session.pending and not (hold and now < session.sent + HOLD_SECONDS)
        if ready or (last and (session.unsent or (session.told and session.told.waiting))):
            if session.told is not None:
                told = session.told.shown(len(session.pending.encode("utf-8", "replace")))
                if last and not session.text.stopped:
                    told += session.told.rest()
                self._sink.logprobs(session, told)
            said, session.pending = session.pending, ""
            if session.calls is not None:
                said, pieces = session.calls.push(said, last=last)
                if pieces:
                    self._sink.calls(session, pieces)
                elif not said and not last:
                    return  # it may be the beginning of a call
            self._sink.text(session, session.unsent, said)
            session.unsent, session.sent = 0, now

    def _end(self, session: Session, reason: str, text: str = "") -> bool:
        self._send(session, text + session.text.flush(), last=True)
        if reason == "stop" and session.calls is not None and session.calls.called:
            reason = "tool_calls"
        digest = session.digest.digest() if session.digest else b""
        counts = (len(session.prompt), session.generated, session.cached)
        waited = max(0.0, time.perf_counter() - session.asked - session.computed)
        took = (waited * 1e3, session.computed * 1e3)
        self._sink.finish(session, Finish(reason, *counts, digest, *took))
        return True


def _dead_end(session: Session) -> Failure:
    return Failure(
        FailureCode.BAD_REQUEST,
        "the vocabulary of this model has no token with which the answer could go on as it has to: "
        "ask for another form",
        param="response_format" if session.calls is None else "tools",
    )
