"""From the logits of one row to what a caller sees of it: the next token, its text, the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Protocol

from kwaai_core import TokenLogprob
from kwaai_lobe_llama.frames import Finish
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.sampler import Sampler
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


@dataclass(slots=True, eq=False)
class Session:
    """One answer in the making. ``prompt`` is not empty and leaves room for a token."""

    number: int
    prompt: list[int]
    limit: int
    sampler: Sampler
    text: TextAssembler
    digest: Digest | None = None
    told: LogprobReader | None = None
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

    def take(self, session: Session, row: int, *, hold: bool = False) -> bool:
        """Sample from a row; True where that was the end of the session, which is told.

        ``hold``: text may wait a little for more of it.
        """
        if session.digest is not None:
            session.digest.update(self._engine.logits(row))
        token = session.sampler.sample(self._engine, row)
        if session.cancelled:
            return False
        if not self._endless and self._engine.is_end(token):
            return self._end(session, "stop")
        if session.told is not None:
            session.told.take(self._engine, row, token)
        session.token = token
        session.generated += 1
        session.unsent += 1
        text = session.text.push(self._engine.piece(token))
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
        if ready or (last and session.unsent):
            if session.told is not None:
                told = session.told.shown(len(session.pending.encode("utf-8", "replace")))
                if last and not session.text.stopped:
                    told += session.told.rest()
                self._sink.logprobs(session, told)
            self._sink.text(session, session.unsent, session.pending)
            session.pending, session.unsent, session.sent = "", 0, now

    def _end(self, session: Session, reason: str, text: str = "") -> bool:
        self._send(session, text + session.text.flush(), last=True)
        digest = session.digest.digest() if session.digest else b""
        counts = (len(session.prompt), session.generated, session.cached)
        self._sink.finish(session, Finish(reason, *counts, digest))
        return True
