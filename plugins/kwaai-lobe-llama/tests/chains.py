"""A model whole, and the same one as a chain of units in this process: logits to compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from kwaai_core import Span
from kwaai_core.gguf import read_gguf
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.planning import row_limits
from kwaai_lobe_llama.slicing import slice_head, slice_span
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.span_engine import HeadEngine, SpanEngine
from kwaai_lobe_llama.worker.units import Piece, Unit

DIGEST = "d1ce" * 16

Logits = list[bytes]
"""The digest of the logits after a prompt, and after each further token."""


def plan_for(path: Path, *, threads: int = 1, exact: bool = True, streams: int = 3) -> Plan:
    plan = Plan(str(path), DIGEST, context=1024, streams=streams, threads=threads)
    types = [tensor.type for tensor in read_gguf(path).tensors if len(tensor.shape) > 1]
    return plan.as_exact(**row_limits(types)) if exact else replace(plan, chunk=128)


def tokens_of(length: int, vocabulary: int) -> list[int]:
    draw = Random(length)
    return [draw.randrange(vocabulary) for _ in range(length)]


@contextmanager
def closing(engine: Loaded) -> Iterator[None]:
    try:
        yield
    finally:
        engine.close()


def whole(plan: Plan, tokens: Sequence[int], prompt: int) -> Logits:
    """What the untouched file gives in one context, to one session."""
    engine = Engine(plan)
    logits = []
    with closing(engine):
        for at in range(0, prompt, plan.chunk):
            chunk = tokens[at : min(at + plan.chunk, prompt)]
            engine.prefill(chunk, at, 0, output=at + len(chunk) == prompt)
        logits.append(_digest(engine, len(chunk) - 1))
        for at in range(prompt, len(tokens)):
            engine.prefill(tokens[at : at + 1], at, 0, output=True)
            logits.append(_digest(engine))
    return logits


def _digest(engine: Loaded, row: int = 0) -> bytes:
    return hashlib.sha256(engine.logits(row)).digest()


class _Recorded(NamedTuple):
    """What was sent to a unit: some rows from a position on, float32."""

    position: int
    rows: int
    states: bytes


class Chain:
    """The units of a model one after the other, its head behind them, and a journal before each."""

    def __init__(self, plan: Plan, cuts: Sequence[int], folder: Path, stack: ExitStack) -> None:
        file = read_gguf(Path(plan.path))
        self.plan = plan
        self.units = []
        for lo, hi in pairwise(cuts):
            path = slice_span(file, DIGEST, Span(lo, hi), folder)
            self.units.append(Unit(Span(lo, hi), SpanEngine(replace(plan, path=str(path)))))
            stack.enter_context(closing(self.units[-1].engine))
        self.head = HeadEngine(replace(plan, path=str(slice_head(file, DIGEST, folder))))
        stack.enter_context(closing(self.head))
        self._embedding = Embedding(plan.path)
        self._journal: dict[tuple[int, int], list[_Recorded]] = {}

    def chunk(
        self, stream: int, position: int, tokens: Sequence[int], *, more: bool = False
    ) -> bytes:
        """Run a part of a prompt; the digest of the logits after its last token, of which there is
        none where ``more`` of it follows."""
        states = memoryview(self._embedding.rows(tokens))
        piece = Piece(stream, position, len(tokens), states)
        for index, unit in enumerate(self.units):
            self._record(index, piece)
            quiet = more and unit is self.units[-1]
            piece = piece._replace(states=unit.chunk(piece._replace(quiet=quiet)))
        if more:
            return b""
        self.head.run_head([bytes(piece.states[-4 * self.head.width :])])
        return _digest(self.head)

    def together(self, rows: Mapping[int, tuple[int, int]]) -> dict[int, bytes]:
        """Run one token of each of several streams, which have (position, token), in one call."""
        pieces = [
            Piece(stream, position, 1, memoryview(self._embedding.rows([token])))
            for stream, (position, token) in rows.items()
        ]
        for index, unit in enumerate(self.units):
            for piece in pieces:
                self._record(index, piece)
            outputs = unit.lone_rows(pieces)
            pieces = [p._replace(states=o) for p, o in zip(pieces, outputs, strict=True)]
        self.head.run_head([bytes(piece.states) for piece in pieces])
        return {piece.stream: _digest(self.head, row) for row, piece in enumerate(pieces)}

    def _record(self, index: int, piece: Piece) -> None:
        journal = self._journal.setdefault((index, piece.stream), [])
        journal.append(_Recorded(piece.position, piece.rows, bytes(piece.states)))

    def forget(self, stream: int) -> None:
        """Empty a stream."""
        for index, unit in enumerate(self.units):
            unit.truncate(stream, 0)
            self._journal.pop((index, stream), None)

    def replay(self, stream: int, first: int, last: int) -> None:
        """Lose what the units from ``first`` up to before ``last`` hold of a stream, and bring it
        back from the journal before the first of them: chunks in their shapes, lone rows as many
        a call as there may be."""
        lost = self.units[first:last]
        for unit in lost:
            unit.truncate(stream, 0)
        for position, rows, states in self._calls(first, stream):
            piece = Piece(stream, position, rows, memoryview(states))
            for unit in lost:
                piece = piece._replace(quiet=unit is lost[-1])  # what comes after has it already
                (output,) = [unit.chunk(piece)] if rows > 1 else unit.lone_rows([piece])
                piece = piece._replace(states=output)

    def _calls(self, index: int, stream: int) -> Iterator[_Recorded]:
        lone: list[_Recorded] = []
        for recorded in self._journal[index, stream]:
            if recorded.rows > 1:
                yield recorded
            else:
                lone.append(recorded)
        most = self.plan.max_rows
        for at in range(0, len(lone), most):
            some = lone[at : at + most]
            yield _Recorded(some[0].position, len(some), b"".join(row.states for row in some))


@contextmanager
def chain(plan: Plan, cuts: Sequence[int], folder: Path) -> Iterator[Chain]:
    with ExitStack() as stack:
        yield Chain(plan, cuts, folder, stack)


class Session:
    """An answer in the making: its tokens are given, so that any two runs compute the same."""

    def __init__(self, stream: int, tokens: Sequence[int], prompt: int) -> None:
        self.stream, self.tokens, self.prompt = stream, tokens, prompt
        self.position = 0
        self.logits: Logits = []

    @property
    def decoding(self) -> bool:
        return self.prompt <= self.position < len(self.tokens)


def advance(spans: Chain, sessions: Sequence[Session]) -> None:
    """One round: a token for all that are decoding, in one call, and a chunk for each that is still
    reading its prompt."""
    decoding = [s for s in sessions if s.decoding]
    for session in [s for s in sessions if s.position < s.prompt]:
        begin = session.position
        session.position = min(begin + spans.plan.chunk, session.prompt)
        tokens = session.tokens[begin : session.position]
        more = session.position < session.prompt
        logits = spans.chunk(session.stream, begin, tokens, more=more)
        if not more:
            session.logits.append(logits)
    if decoding:
        rows = {s.stream: (s.position, s.tokens[s.position]) for s in decoding}
        logits_of = spans.together(rows)
        for session in decoding:
            session.position += 1
            session.logits.append(logits_of[session.stream])


def answer(spans: Chain, tokens: Sequence[int], prompt: int) -> Logits:
    """What a session gets that has the units for itself."""
    session = Session(0, tokens, prompt)
    while session.position < len(tokens):
        advance(spans, [session])
    return session.logits
