"""The gate: whether the bits of an answer are really its own, for this model on this machine.

By default the logits of a session depend on who else is served: kernels change with the number
of rows of a call and with the cells of other sessions. The rules of :meth:`Plan.as_exact` were
found to make them independent, but that was on some processors with some models. So before an
exact worker serves, it runs sessions alone, together, interleaved and replayed, with its real
settings, and compares every logit to the bit. Where they differ it tries fewer rows a call, and
where nothing helps it refuses. A gate on short prompts would pass wrongly: attention is split
over threads from position 256 on, so sessions on both sides of 256 and 512 take part.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kwaai_core import CallPiece, Sampling, TokenLogprob
from kwaai_lobe_llama.answers import Failure, Finish
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.sampler import Sampler
from kwaai_lobe_llama.worker.scheduler import Scheduler
from kwaai_lobe_llama.worker.telling import Session
from kwaai_lobe_llama.worker.text import TextAssembler

PROMPTS = (3, 40, 9, 22, 12, 5, 250, 505)
"""Tokens of the gate's prompts, one a stream, the last ones where there are fewer streams; with
whole chunks, remainders and lone rows, and answers that pass position 256 and 512."""

ANSWER = 15
"""Tokens of each answer: replayed in calls of 3, 4 and 7 rows, and one more to compare."""

REPLAYED = (3, 4, 7)
"""Rows of the calls in which an answer is replayed."""


class NotExact(Exception):
    """No row limit makes this model's logits independent of other sessions here."""


@dataclass(slots=True)
class _Trace:
    """A digest of the logits of each sampled row, in order."""

    rows: list[bytes] = field(default_factory=list)

    def update(self, data: bytes, /) -> None:
        self.rows.append(hashlib.sha256(data).digest())

    def digest(self) -> bytes:
        return b"".join(self.rows)


class _Quiet:
    """A sink for answers that nobody reads."""

    def logprobs(self, session: Session, tokens: Sequence[TokenLogprob]) -> None: ...
    def text(self, session: Session, tokens: int, text: str) -> None: ...
    def finish(self, session: Session, finish: Finish) -> None: ...
    def fail(self, session: Session, failure: Failure) -> None: ...
    def calls(self, session: Session, pieces: Sequence[CallPiece]) -> None: ...
    def flush(self) -> None: ...


def check(engine: Engine, *, report: Callable[[str], None] = lambda _: None) -> list[str]:
    """What differs, a line each, between sessions alone and the same ones in company.

    Uses the engine's own plan; its streams are empty before and after. Takes about twice the
    time of a prefill of :data:`PROMPTS`.
    """
    prompts = list(_prompts(engine))
    differences, alone = [], []
    for number, prompt in enumerate(prompts):
        report(f"exactness: session {number + 1} of {len(prompts)} alone")
        trace, tokens = _alone(engine, prompt)
        alone.append(trace)
        differences += _replay(engine, prompt, tokens, trace)
        _clear(engine)
    report(f"exactness: {len(prompts)} sessions together")
    together = _together(engine, prompts)
    _clear(engine)
    for prompt, a, b in zip(prompts, alone, together, strict=True):
        if a.rows != b.rows:
            first = next(i for i, (x, y) in enumerate(zip(a.rows, b.rows, strict=True)) if x != y)
            differences.append(
                f"a prompt of {len(prompt)} tokens: among others, token {first} has other logits"
            )
    return differences


def _prompts(engine: Engine) -> Iterator[list[int]]:
    draw = random.Random(20)
    room = engine.plan.cells - ANSWER
    for length in PROMPTS[-engine.plan.streams :]:
        yield [draw.randrange(engine.n_vocab) for _ in range(min(length, room))]


def _clear(engine: Engine) -> None:
    for stream in range(engine.plan.streams):
        engine.truncate(stream, 0)


def _session(number: int, prompt: list[int]) -> tuple[Session, _Trace]:
    trace = _Trace()
    sampler = Sampler(Sampling(temperature=0))
    return Session(number, prompt, ANSWER, sampler, TextAssembler(), trace), trace


def _alone(engine: Engine, prompt: list[int]) -> tuple[_Trace, list[int]]:
    scheduler = Scheduler(engine, _Quiet(), endless=True)
    session, trace = _session(0, prompt)
    scheduler.submit(session)
    while not scheduler.idle:
        scheduler.step()
    return trace, scheduler.held(0)[len(prompt) :]


def _together(engine: Engine, prompts: Sequence[list[int]]) -> list[_Trace]:
    """All sessions, each starting a step after the one before: the numbers of rows sweep up,
    and down again; cells that a session leaves are there for the others, if they can take them."""
    scheduler = Scheduler(engine, _Quiet(), endless=True)
    traces = []
    for number, prompt in enumerate(prompts):
        session, trace = _session(number, prompt)
        traces.append(trace)
        scheduler.submit(session)
        scheduler.step()
    while not scheduler.idle:
        scheduler.step()
        scheduler.forget()
    return traces


def _replay(engine: Engine, prompt: list[int], tokens: list[int], trace: _Trace) -> list[str]:
    """Run the answer's tokens again, several rows a call, as a lost session is rebuilt."""
    engine.truncate(0, len(prompt))
    differences, done = [], 0
    for rows in REPLAYED:
        rows = max(1, min(rows, engine.plan.max_rows))
        if rows < engine.plan.min_rows:
            break
        engine.prefill(tokens[done : done + rows], len(prompt) + done, 0, output=True)
        done += rows
        if hashlib.sha256(engine.logits(rows - 1)).digest() != trace.rows[done]:
            differences.append(f"a prompt of {len(prompt)} tokens: replay of {rows} rows differs")
    return differences


def pass_gate(
    plan: Plan, key: str, open_engine: Callable[[Plan], Engine], report: Callable[[str], None]
) -> Engine:
    """An engine that has passed, with the most rows a call that are exact.

    ``key`` names the model and everything that decides its bits; results are kept under it in
    ``plan.gate_folder``. Raises :class:`NotExact` with the differences.
    """
    if plan.streams < max(2, plan.min_rows):
        raise NotExact("[llama] memory has room for one session only, and exactness needs two")
    known = recall(plan, key)
    if known is not None:
        return open_engine(replace(plan, max_rows=known))
    report(
        "exactness: this model is compared with itself, alone and in company, before the first "
        "exact answer: seconds to a minute or two, once on this machine"
    )
    began = time.monotonic()
    for rows in [n for n in (8, 7, 4, 2, 1) if plan.min_rows <= n <= plan.max_rows]:
        engine = open_engine(replace(plan, max_rows=rows))
        differences = check(engine, report=report)
        if not differences:
            remember(plan, key, rows)
            taken = time.monotonic() - began
            report(f"exactness: passed in {taken:.1f} s, with calls of up to {rows} rows")
            return engine
        report(f"exactness: calls of {rows} rows are not exact: {differences[0]}")
        engine.close()
    raise NotExact("; ".join(differences[:3]))


def _file(plan: Plan, key: str) -> Path | None:
    tried = f"{plan.max_rows} rows of {plan.streams} sessions of {plan.cells} tokens"
    name = hashlib.sha256(f"{plan.digest}\n{tried}\n{key}".encode()).hexdigest()
    return Path(plan.gate_folder, f"{name[:32]}.json") if plan.gate_folder else None


def recall(plan: Plan, key: str) -> int | None:
    """The row limit that was found before for what ``key`` names."""
    file = _file(plan, key)
    try:
        rows = json.loads(file.read_text())["max_rows"] if file else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: the gate runs again
    return rows if isinstance(rows, int) and plan.min_rows <= rows <= plan.max_rows else None


def remember(plan: Plan, key: str, rows: int) -> None:
    """Keep the row limit that was found for what ``key`` names."""
    file = _file(plan, key)
    if file is not None:
        part = file.with_suffix(".part")
        with suppress(OSError):  # no room, say: then the gate runs again the next time
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"max_rows": rows, "engine": key}))
            part.replace(file)
