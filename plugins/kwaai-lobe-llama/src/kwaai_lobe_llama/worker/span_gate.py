"""Units and heads, loaded and, for an exact worker, compared with themselves first.

The gate of spans asks the questions of :mod:`kwaai_lobe_llama.worker.exact` of hidden states that
were made up, since the kernels that decide the bits do not look at the values: sessions on both
sides of positions 256 and 512, alone and together, with other sessions' cells beside them, and
replayed in calls of several rows. Where they differ it tries fewer rows a call.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from kwaai_core import Span
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.span_plan import UnitFile
from kwaai_lobe_llama.worker.exact import PROMPTS, REPLAYED, NotExact, recall, remember
from kwaai_lobe_llama.worker.fingerprint import describe
from kwaai_lobe_llama.worker.grouping import groups
from kwaai_lobe_llama.worker.span_engine import HeadEngine, SpanEngine
from kwaai_lobe_llama.worker.units import Piece, Unit

Report = Callable[[str], None]

_ANSWER = 15
_MEASURED = 8
_ROW_LIMITS = (8, 7, 4, 2, 1)


def load_units(plan: Plan, files: Sequence[UnitFile], report: Report) -> tuple[list[Unit], int]:
    """The units of these slices, and the most rows a call of them may have.

    Errors: :class:`EngineError`; :class:`NotExact` where an exact plan cannot be kept.
    """
    units, rows = [], plan.max_rows
    with ExitStack() as loaded:  # what is loaded before one that cannot be is freed
        for file in files:
            blocks = _blocks(file.span)
            report(f"loading {blocks}")
            unit = Unit(file.span, SpanEngine(replace(plan, path=file.path)))
            loaded.callback(unit.engine.close)
            if plan.exact:
                limit = _limit(plan, file.path, blocks, _rows_of(unit), report)
                rows = min(rows, limit)
            _measure(unit)
            units.append(unit)
        loaded.pop_all()
    return units, rows


def _blocks(span: Span) -> str:
    """For people, who count the last one too."""
    last = span.hi - 1
    return f"block {last}" if last == span.lo else f"blocks {span.lo} to {last}"


def _measure(unit: Unit) -> None:
    """Pass a chunk and a few lone rows through a unit: what it announces of its speed is measured,
    and its weights are in memory before the first session."""
    rows = min(_MEASURED, unit.engine.plan.cells - 1 - _MEASURED)
    states = _made_up(random.Random(20), unit.engine.width, 2 * rows)
    unit.chunk(_piece(unit, states, 0, 0, rows))
    for position in range(rows, 2 * rows):
        unit.lone_rows([_piece(unit, states, 0, position, 1)])
    unit.truncate(0, 0)


def load_head(plan: Plan, path: str, report: Report) -> tuple[HeadEngine, int]:
    """The head, and the most rows a call of it may have; errors as of :func:`load_units`."""
    report("loading the head")
    head = HeadEngine(replace(plan, path=path))
    rows = plan.max_rows
    if plan.exact:
        with ExitStack() as loaded:
            loaded.callback(head.close)
            rows = _limit(plan, path, "head", lambda most: _head_differences(head, most), report)
            loaded.pop_all()
        head.plan = replace(head.plan, max_rows=rows)
    return head, rows


def _limit(
    plan: Plan, path: str, what: str, differences: Callable[[int], list[str]], report: Report
) -> int:
    """The most rows a call that are exact; recalled where it was found out before."""
    key = f"{describe(plan)}\n{what} of {path}"
    known = recall(plan, key)
    if known is not None:
        return known
    found: list[str] = []
    for rows in [n for n in _ROW_LIMITS if plan.min_rows <= n <= plan.max_rows]:
        report(f"exactness: {what} with calls of up to {rows} rows")
        found = differences(rows)
        if not found:
            remember(plan, key, rows)
            return rows
    raise NotExact("; ".join(found[:3]))


def _rows_of(unit: Unit) -> Callable[[int], list[str]]:
    return lambda most: _differences(unit, most)


def _made_up(draw: random.Random, width: int, rows: int) -> memoryview:
    values = (draw.gauss(0.0, 1.0) for _ in range(width * rows))
    return memoryview(struct.pack(f"<{width * rows}f", *values))


def _sessions(unit: Unit) -> Iterator[tuple[memoryview, int]]:
    """Hidden states of a prompt and its answer, and the length of the prompt."""
    draw = random.Random(20)
    width, room = unit.engine.width, unit.engine.plan.cells - 1 - _ANSWER
    for length in PROMPTS[-unit.engine.plan.streams :]:
        length = min(length, room)
        yield _made_up(draw, width, length + _ANSWER), length


def _differences(unit: Unit, most: int) -> list[str]:
    """What differs between sessions alone and the same ones together, a line each."""
    sessions = list(_sessions(unit))
    alone, found = [], []
    for states, prompt in sessions:
        alone.append(_alone(unit, states, prompt))
        found += _replay(unit, states, prompt, alone[-1], most)
        unit.truncate(0, 0)
    together = _together(unit, sessions, most)
    for number, (_, prompt) in enumerate(sessions):
        unit.truncate(number, 0)
        if alone[number] != together[number]:
            found.append(f"{prompt} rows: among others the output is another")
    return found


def _piece(unit: Unit, states: memoryview, stream: int, position: int, rows: int) -> Piece:
    row = unit.engine.width * 4
    return Piece(stream, position, rows, states[position * row : (position + rows) * row])


def _prefill(unit: Unit, states: memoryview, stream: int, position: int, prompt: int) -> int:
    """One chunk of a prompt; where the next one begins."""
    rows = min(unit.engine.plan.chunk - position % unit.engine.plan.chunk, prompt - position)
    piece = _piece(unit, states, stream, position, rows)
    if rows == 1:
        unit.lone_rows([piece])
    else:
        unit.chunk(piece)
    return position + rows


def _alone(unit: Unit, states: memoryview, prompt: int) -> list[bytes]:
    position = 0
    while position < prompt:
        position = _prefill(unit, states, 0, position, prompt)
    outputs = []
    for position in range(prompt, prompt + _ANSWER):
        (output,) = unit.lone_rows([_piece(unit, states, 0, position, 1)])
        outputs.append(hashlib.sha256(output).digest())
    return outputs


def _replay(
    unit: Unit, states: memoryview, prompt: int, alone: list[bytes], most: int
) -> list[str]:
    """Run the answer's rows again, several a call, as a lost session is rebuilt."""
    unit.truncate(0, prompt)
    row, done, found = unit.engine.width * 4, 0, []
    for rows in REPLAYED:
        rows = max(1, min(rows, most))
        if rows < max(2, unit.engine.plan.min_rows):
            break
        output = unit.chunk(_piece(unit, states, 0, prompt + done, rows))
        replayed = [output[at * row : (at + 1) * row] for at in range(rows)]
        if [hashlib.sha256(o).digest() for o in replayed] != alone[done : done + rows]:
            found.append(f"{prompt} rows: a replay of {rows} rows differs")
        done += rows
    return found


def _together(
    unit: Unit, sessions: Sequence[tuple[memoryview, int]], most: int
) -> list[list[bytes]]:
    """All sessions, each starting a round after the one before."""
    positions = [0] * len(sessions)
    outputs: list[list[bytes]] = [[] for _ in sessions]
    started = 0
    while any(len(output) < _ANSWER for output in outputs):
        started = min(started + 1, len(sessions))
        under_way = [n for n in range(started) if len(outputs[n]) < _ANSWER]
        decoding = [n for n in under_way if positions[n] >= sessions[n][1]]
        for group in groups(decoding, int, most):
            pieces = [_piece(unit, sessions[n][0], n, positions[n], 1) for n in group]
            for number, output in zip(group, unit.lone_rows(pieces), strict=True):
                outputs[number].append(hashlib.sha256(output).digest())
                positions[number] += 1
        prefilling = [n for n in under_way if n not in decoding]
        for number in prefilling[:1]:
            states, prompt = sessions[number]
            positions[number] = _prefill(unit, states, number, positions[number], prompt)
    return outputs


def _head_differences(head: HeadEngine, most: int) -> list[str]:
    """Whether a row's logits are the same alone and beside others."""
    draw = random.Random(20)
    most = min(most, head.plan.streams)
    states = [bytes(_made_up(draw, head.width, 1)) for _ in range(most)]
    alone = []
    for state in states:
        head.run_head([state])
        alone.append(hashlib.sha256(head.logits(0)).digest())
    found = []
    for rows in range(2, most + 1):
        head.run_head(states[:rows])
        together = [hashlib.sha256(head.logits(row)).digest() for row in range(rows)]
        if together != alone[:rows]:
            found.append(f"the head: of {rows} rows together, some have other logits than alone")
    return found
