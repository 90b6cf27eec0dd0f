"""Continuous batching: which rows go into which call, and which KV is used again.

A call of ``llama_decode`` holds either the next rows of decoding sessions or one prefill chunk
of one session, never both: llama.cpp would split a mixed call anyway (streams of a call advance
by equal numbers of rows), and the bits of a row would depend on the mixture. So a long prompt
stalls other answers for one chunk at a time, and the chunk is small while others are decoding.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from kwaai_lobe_llama.worker.engine import Engine, Row
from kwaai_lobe_llama.worker.grouping import groups
from kwaai_lobe_llama.worker.loaded import Aborted
from kwaai_lobe_llama.worker.telling import Session, Sink, Stream, Teller

STALL_SECONDS = 0.1
"""How long a prefill chunk may hold up the sessions that are decoding, about."""

_SMALLEST_CHUNK = 32


class Scheduler:
    """Runs sessions on an engine; one thread calls all but :meth:`cancel`."""

    def __init__(
        self,
        engine: Engine,
        sink: Sink,
        *,
        endless: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._teller = Teller(engine, sink, endless=endless, clock=clock)
        self._plan = engine.plan
        self._sink = sink
        self._streams = [Stream(n) for n in range(engine.plan.streams)]
        self._waiting: deque[Session] = deque()
        self._prefilling: deque[Session] = deque()
        self._running: list[Session] = []
        self._clock = 0
        self._row_seconds = 0.0
        self._alone: Session | None = None
        self._aborting = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._waiting or self._running)

    def held(self, stream: int) -> list[int]:
        """The tokens in the cells of a stream."""
        return list(self._streams[stream].tokens)

    def forget(self) -> None:
        """Empty the streams that nobody uses."""
        for stream in self._streams:
            if stream.session is None and stream.tokens:
                self._engine.truncate(stream.number, 0)
                stream.tokens.clear()
                stream.chunked = 0

    def submit(self, session: Session) -> None:
        """Queue a session; it starts as soon as a stream is free."""
        session.asked = time.perf_counter()
        self._waiting.append(session)

    def cancel(self, session: Session) -> None:
        """From any thread: end a session at once, in mid-call where it is computed alone."""
        with self._aborting:  # or the call that is stopped might be the next one, of another
            session.cancelled = True
            if self._alone is session:
                self._engine.abort()

    def step(self) -> None:
        """One round: the next token of every decoding session, then one prefill chunk."""
        self._drop_cancelled()
        self._admit()
        decoding = [session for session in self._running if session.decoding]
        for group in groups(decoding, _number, self._plan.max_rows):
            self._attempt(group, self._decode)
        if self._prefilling:
            session = self._prefilling.popleft()
            self._attempt([session], self._prefill)
            if not session.decoding and session.stream is not None:
                self._prefilling.append(session)  # round robin, so that short prompts pass

    def _attempt(self, group: list[Session], call: Callable[[list[Session]], None]) -> None:
        alone = group[0] if len(group) == 1 else None
        with self._aborting:
            self._alone = alone
            self._engine.arm()
        try:
            if not (alone and alone.cancelled):
                call(group)
        except Aborted:
            pass  # it is dropped next
        with self._aborting:
            self._alone = None
        self._sink.flush()

    def _drop_cancelled(self) -> None:
        for session in [s for s in self._waiting if s.cancelled]:
            self._waiting.remove(session)
            session.sampler.close()
        for session in [s for s in self._running if s.cancelled]:
            self._release(session)

    def _release(self, session: Session) -> None:
        stream = session.stream
        if stream is None:
            return
        self._clock += 1
        stream.session, stream.used, session.stream = None, self._clock, None
        self._running.remove(session)
        if session in self._prefilling:
            self._prefilling.remove(session)
        session.sampler.close()

    # -- streams and what they remember

    def _admit(self) -> None:
        while self._waiting:
            free = [stream for stream in self._streams if stream.session is None]
            if not free:
                return
            session = self._waiting.popleft()
            stream = max(free, key=lambda s: (self._reusable(s, session), -s.used, -s.number))
            self._occupy(stream, session)

    def _occupy(self, stream: Stream, session: Session) -> None:
        keep = self._reusable(stream, session)
        if not self._engine.truncate(stream.number, keep):
            keep = 0
            self._engine.truncate(stream.number, 0)
        del stream.tokens[keep:]
        stream.chunked = min(stream.chunked, keep)
        stream.session, session.stream, session.cached = session, stream, keep
        self._running.append(session)
        self._prefilling.append(session)

    def _reusable(self, stream: Stream, session: Session) -> int:
        """How many tokens of a prompt a stream's cells already hold, and may be used for it.

        An exact worker takes only whole chunks that prefill wrote, and so does a repeatable
        session: every row of the prompt was then computed in the shape in which it would be
        computed anew. Of a prompt that is scored every row is wanted.
        """
        if session.scored:
            return 0
        prompt, whole = session.prompt, self._plan.exact or session.repeatable
        limit = min(len(stream.tokens), len(prompt) - 1)
        if whole:
            limit = min(limit, stream.chunked)
        common = next((i for i in range(limit) if stream.tokens[i] != prompt[i]), limit)
        return common - common % self._plan.chunk if whole else common

    # -- prefill

    def _prefill(self, group: list[Session]) -> None:
        (session,) = group
        stream = _stream_of(session)
        start = len(stream.tokens)
        rows = session.prompt[start : start + self._chunk_rows(start, session)]
        last = start + len(rows) == len(session.prompt)
        began = time.perf_counter()
        place = self._run_chunk(session, rows, start, output=last)
        took = time.perf_counter() - began
        session.computed += took
        self._row_seconds = took / len(rows)
        stream.tokens += rows
        if stream.chunked == start and len(rows) == self._plan.chunk:
            stream.chunked = start + len(rows)
        if last:
            self._take(session, place)

    def _run_chunk(self, session: Session, rows: Sequence[int], start: int, *, output: bool) -> int:
        """Run a chunk of a prompt, and tell of it where that is wanted; the place of its last row,
        which has logits where it is an ``output``."""
        stream = _stream_of(session)
        place = len(rows) - 1
        if len(rows) < self._plan.min_rows:
            (place,) = self._run_padded(
                [Row(rows[0], start, stream.number, output or session.scored)]
            )
        elif session.scored:
            self._engine.score(rows, start, stream.number)
        else:
            self._engine.prefill(rows, start, stream.number, output=output)
        if session.scored:
            self._teller.score(session, range(place + 1 - len(rows), place + 1))
        return place

    def _chunk_rows(self, start: int, session: Session) -> int:
        plan = self._plan
        if plan.exact:  # at absolute multiples: the same rows in the same shapes, always
            return plan.chunk - start % plan.chunk
        most = self._engine.scored_rows if session.scored else plan.chunk
        if len(self._prefilling) + 1 >= len(self._running) or not self._row_seconds:
            return most
        rows = int(STALL_SECONDS / self._row_seconds) // _SMALLEST_CHUNK * _SMALLEST_CHUNK
        return min(max(_SMALLEST_CHUNK, rows), most)

    # -- decoding

    def _decode(self, group: list[Session]) -> None:
        rows = []
        for session in group:
            stream = _stream_of(session)
            rows.append(Row(session.token, len(stream.tokens), stream.number))
        began = time.perf_counter()
        places = self._run_padded(rows)
        took = time.perf_counter() - began
        for session in group:
            session.computed += took
        for session, place in zip(group, places, strict=True):
            _stream_of(session).tokens.append(session.token)
            self._take(session, place)

    def _run_padded(self, rows: list[Row]) -> list[int]:
        """Run rows with dummies for the streams between them, and up to the least number of rows.

        The dummies' cells are removed again; their streams may hold what is used later. Returns
        the place of each given row in the call.
        """
        by_stream = {row.stream: row for row in rows}
        low, high = rows[0].stream, rows[-1].stream
        while high - low + 1 < self._plan.min_rows:
            low, high = (low, high + 1) if high + 1 < len(self._streams) else (low - 1, high)
        call = [by_stream.get(n) or self._dummy(n) for n in range(low, high + 1)]
        try:
            self._engine.decode(call)
        finally:
            for row in call:
                if row.stream not in by_stream:
                    self._engine.truncate(row.stream, row.position)
        return [row.stream - low for row in rows]

    def _dummy(self, number: int) -> Row:
        stream = self._streams[number]
        if len(stream.tokens) >= self._plan.cells:  # make room for one cell
            stream.tokens.pop()
            stream.chunked = min(
                stream.chunked, len(stream.tokens) // self._plan.chunk * self._plan.chunk
            )
            self._engine.truncate(number, len(stream.tokens))
        # rows that are no outputs do not come as far as the output matrix: a lone one would be left
        return Row(0, len(stream.tokens), number, output=self._plan.min_rows > 1)

    def _take(self, session: Session, row: int) -> None:
        """Its next token, or its end, from a row of the last call."""
        if self._teller.take(session, row, hold=not self._prefilling):
            self._release(session)


def _stream_of(session: Session) -> Stream:
    if session.stream is None:
        raise RuntimeError(f"session {session.number} has no stream")
    return session.stream


def _number(session: Session) -> int:
    return _stream_of(session).number
