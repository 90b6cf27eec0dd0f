"""The units that a worker holds, run back to back: hidden states in, hidden states out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from kwaai_core import Span
from kwaai_lobe_llama.worker.span_engine import SpanEngine

_MEMORY = 0.1
"""The weight of the newest measurement in the mean of those before it."""


class Piece(NamedTuple):
    """Consecutive rows of one stream: ``rows`` hidden states, float32. ``quiet``: nobody needs what
    becomes of them, but of the last one, and that later ones see them."""

    stream: int
    position: int
    rows: int
    states: memoryview
    quiet: bool = False


class Pace:
    """The mean seconds of a lone row and of a row of a chunk through one unit."""

    def __init__(self) -> None:
        self.lone = 0.0
        self.row = 0.0

    def observe(self, rows: int, seconds: float, *, lone: bool) -> None:
        """A call of so many rows took so long."""
        if lone:
            self.lone = _mixed(self.lone, seconds)
        else:
            self.row = _mixed(self.row, seconds / rows)


def _mixed(mean: float, value: float) -> float:
    return value if not mean else mean + _MEMORY * (value - mean)


class Unit:
    """One slice: its engine, and how many rows each of its streams has."""

    def __init__(self, span: Span, engine: SpanEngine) -> None:
        self.span = span
        self.engine = engine
        self.lengths = [0] * engine.plan.streams
        self.pace = Pace()

    def truncate(self, stream: int, length: int) -> bool:
        """Cut a stream back; False where the rest cannot be trusted, and it is empty then."""
        kept = self.engine.truncate(stream, length)
        self.lengths[stream] = min(self.lengths[stream], length) if kept else 0
        if not kept:
            self.engine.truncate(stream, 0)
        return kept

    def chunk(self, piece: Piece) -> memoryview:
        """Run one piece as a call of its own; its output is good until the next call. Of a quiet
        one it is that of the last row."""
        began = time.perf_counter()
        places = [(piece.position + row, piece.stream) for row in range(piece.rows)]
        output = self.engine.run([piece.states], places, quiet=piece.quiet)
        self.lengths[piece.stream] = piece.position + piece.rows
        self.pace.observe(piece.rows, time.perf_counter() - began, lone=False)
        return output

    def lone_rows(self, pieces: Sequence[Piece]) -> list[memoryview]:
        """Run one row each of neighbouring streams in one call, with dummies for those between
        them and up to the least number of rows; the dummies are removed again."""
        began = time.perf_counter()
        by_stream = {piece.stream: piece for piece in pieces}
        streams = self._streams(min(by_stream), max(by_stream))
        places = [(self.lengths[n], n) for n in streams]
        blank = memoryview(bytes(self.engine.width * 4))
        states = [by_stream[n].states if n in by_stream else blank for n in streams]
        while len(places) < self.engine.plan.min_rows:  # no more streams: behind the last row
            position, stream = places[-1]
            places.append((position + 1, stream))
            states.append(blank)
        try:
            output = self.engine.run(states, places)
            for stream in by_stream:
                self.lengths[stream] += 1
        finally:  # a call that failed may have left dummies as well
            for stream in streams:
                if stream not in by_stream or len(places) > len(streams):
                    self.engine.truncate(stream, self.lengths[stream])
        self.pace.observe(len(pieces), time.perf_counter() - began, lone=True)
        row = self.engine.width * 4
        starts = {stream: at * row for at, stream in enumerate(streams)}
        return [output[starts[p.stream] : starts[p.stream] + row] for p in pieces]

    def _streams(self, low: int, high: int) -> Sequence[int]:
        """These streams and more, as many as a call has rows at least, if there are so many."""
        wanted = min(self.engine.plan.min_rows, len(self.lengths))
        while high - low + 1 < wanted:
            low, high = (low, high + 1) if high + 1 < len(self.lengths) else (low - 1, high)
        return range(low, high + 1)


class Units:
    """All units of a model that are held here; a cache of :class:`kwaai_core.span.host.Host`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units

    def truncate(self, span: Span, stream: int, length: int) -> bool:
        """Cut a stream of the units of a span back; all of them are empty where one cannot."""
        units = self._of(span)
        kept = [unit.truncate(stream, length) for unit in units]
        if not all(kept):
            for unit in units:
                unit.truncate(stream, 0)
        return all(kept)

    def _of(self, span: Span) -> list[Unit]:
        return [u for u in self.units if span.lo <= u.span.lo and u.span.hi <= span.hi]

    def chunk(self, span: Span, piece: Piece) -> bytes:
        """Run one piece through the units of a span."""
        *before, last = self._of(span)
        for unit in before:
            piece = piece._replace(states=unit.chunk(piece._replace(quiet=False)))
        return bytes(last.chunk(piece))

    def lone_rows(self, span: Span, pieces: Sequence[Piece]) -> list[bytes]:
        """Run one row each of several streams through the units of a span."""
        for unit in self._of(span):
            outputs = unit.lone_rows(pieces)
            pieces = [p._replace(states=o) for p, o in zip(pieces, outputs, strict=True)]
        return [bytes(piece.states) for piece in pieces]
