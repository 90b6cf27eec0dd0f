"""The scheduler on an engine whose logits are a function of the cells alone.

Whoever else is served, whatever is cancelled, reused or padded: an answer is the pure function
of its prompt. The fake checks on every call what llama.cpp would get silently wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwaai_core import CallPiece, TokenLogprob
from kwaai_lobe_llama.answers import Failure, Finish
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.engine import Row
from kwaai_lobe_llama.worker.loaded import Aborted
from kwaai_lobe_llama.worker.scheduler import Scheduler
from kwaai_lobe_llama.worker.telling import Echo, Session
from kwaai_lobe_llama.worker.text import TextAssembler

PLAN = Plan("model", "digest", context=64, streams=8, threads=1, max_rows=8, chunk=8)
END = 0


def following(tokens: Sequence[int]) -> int:
    """The next token of a sequence; now and then the end."""
    return hashlib.sha256(repr(list(tokens)).encode()).digest()[0] % 23


def answer(prompt: list[int], limit: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < limit and (token := following(tokens)) != END:
        tokens.append(token)
    return tokens[len(prompt) :]


class FakeEngine:
    """Cells by stream; a call must append to each, in consecutive streams, within the limits."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.scored_rows = plan.chunk if plan.exact else 5
        self.cells: dict[int, list[int]] = {n: [] for n in range(plan.streams)}
        self.outputs: list[int] = []
        self.calls: list[int] = []
        self.abort_next = False
        self.aborts = 0
        self.during_call: Callable[[], None] = lambda: None

    def decode(self, rows: Sequence[Row]) -> None:
        numbers = [row.stream for row in rows]
        assert numbers == list(range(numbers[0], numbers[0] + len(rows)))
        assert self.plan.min_rows <= len(rows) <= self.plan.max_rows
        self._maybe_abort()
        self.calls.append(len(rows))
        for row in rows:
            assert row.position == len(self.cells[row.stream]) < self.plan.cells
            self.cells[row.stream].append(row.token)
        self.outputs = [following(self.cells[row.stream]) for row in rows]

    def score(self, tokens: Sequence[int], position: int, stream: int) -> None:
        assert len(tokens) <= self.scored_rows
        before = len(self.cells[stream])
        self.prefill(tokens, position, stream, output=True)
        ends = range(before + 1, before + len(tokens) + 1)
        self.outputs = [following(self.cells[stream][:end]) for end in ends]

    def prefill(self, tokens: Sequence[int], position: int, stream: int, *, output: bool) -> None:
        assert position == len(self.cells[stream])
        assert 0 < len(tokens) <= self.plan.chunk
        if self.plan.exact:
            assert position // self.plan.chunk == (position + len(tokens) - 1) // self.plan.chunk
            assert position % self.plan.chunk == 0
        self._maybe_abort()
        self.cells[stream] += tokens
        assert len(self.cells[stream]) < self.plan.cells
        self.outputs = [-1] * (len(tokens) - 1) + [following(self.cells[stream]) if output else -1]

    def abort(self) -> None:
        self.aborts += 1
        self.abort_next = True

    def _maybe_abort(self) -> None:
        self.during_call()
        if self.abort_next:
            self.abort_next = False
            raise Aborted

    def truncate(self, stream: int, length: int) -> bool:
        assert length <= len(self.cells[stream])
        del self.cells[stream][length:]
        return True

    def is_end(self, token: int) -> bool:
        return token == END

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([97 + token])

    def arm(self) -> None:
        self.aborts = 0


class FakeSampler:
    closed = False

    def sample(self, engine: FakeEngine, row: int) -> int:
        assert not self.closed
        return engine.outputs[row]

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class FakeReader:
    """Tells of a token of a prompt, as its probability, which token was likeliest there."""

    waiting = False

    def take(self, engine: FakeEngine, row: int, token: int) -> None: ...

    def read(self, engine: FakeEngine, row: int, token: int, piece: bytes) -> TokenLogprob:
        return TokenLogprob(piece, float(engine.outputs[row]))

    def shown(self, size: int) -> list[TokenLogprob]:
        return []

    def rest(self) -> list[TokenLogprob]:
        return []


@dataclass
class Collected:
    """Keeps the texts, and what each frame would hold: how many tokens, and their text."""

    texts: dict[int, str] = field(default_factory=dict)
    told: dict[int, list[float | None]] = field(default_factory=dict)
    pieces: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    ends: dict[int, Finish] = field(default_factory=dict)

    def logprobs(self, session: Session, tokens: Sequence[TokenLogprob]) -> None:
        assert session.told is not None, "no probabilities were asked for"
        self.told.setdefault(session.number, []).extend(one.logprob for one in tokens)

    def text(self, session: Session, tokens: int, text: str) -> None:
        assert session.number not in self.ends
        self.texts[session.number] = self.texts.get(session.number, "") + text
        self.pieces.setdefault(session.number, []).append((tokens, text))

    def finish(self, session: Session, finish: Finish) -> None:
        assert session.number not in self.ends
        self.ends[session.number] = finish

    def fail(self, session: Session, failure: Failure) -> None:
        raise NotImplementedError("no answer has to be of a form")

    def calls(self, session: Session, pieces: Sequence[CallPiece]) -> None:
        raise NotImplementedError("there are no tools")

    def flush(self) -> None: ...


def session(number: int, prompt: list[int], limit: int, *, echo: bool = False) -> Session:
    made = Session(number, prompt, limit, FakeSampler(), TextAssembler())  # type: ignore[arg-type]
    if echo:
        made.told = FakeReader()  # type: ignore[assignment]
        made.echo = Echo([bytes([97 + token]) for token in prompt], scored=True)
    return made


def spelled(tokens: list[int]) -> str:
    return "".join(chr(97 + token) for token in tokens)


plans = st.sampled_from(
    [
        PLAN,
        replace(PLAN, streams=1, max_rows=1),
        replace(PLAN, streams=3, max_rows=2),
        replace(PLAN, exact=True, max_rows=7),
        replace(PLAN, exact=True, max_rows=4, min_rows=2),
        replace(PLAN, exact=True, max_rows=1),
    ]
)
# few different tokens, so that prompts share beginnings
prompts = st.lists(st.integers(1, 2), min_size=1, max_size=50)
events = st.lists(
    st.tuples(
        prompts,
        st.integers(0, 30),
        st.integers(0, 9),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=300, deadline=None)
@given(plans, events)
def test_an_answer_is_its_own_whatever_happens_around_it(
    plan: Plan, arrivals: list[tuple[list[int], int, int, bool, bool, bool]]
) -> None:
    engine, sink = FakeEngine(plan), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    sessions, expected = [], {}
    for number, (prompt, limit, steps, cancel, abort, echo) in enumerate(arrivals):
        limit = min(limit, plan.context - len(prompt))
        sessions.append(session(number, prompt, limit, echo=echo))
        expected[number] = answer(prompt, limit)
        scheduler.submit(sessions[-1])
        for _ in range(steps):
            engine.abort_next = abort
            scheduler.step()
        if cancel:
            sessions[number // 2].cancelled = True
    while not scheduler.idle:
        scheduler.step()
    for one in sessions:
        assert one.sampler.closed  # type: ignore[attr-defined]
        if one.cancelled and one.number not in sink.ends:
            continue
        tokens = expected[one.number]
        told = spelled(one.prompt) if one.echo is not None else ""
        assert sink.texts.get(one.number, "") == told + spelled(tokens)
        if one.echo is not None:
            likeliest = [following(one.prompt[:end]) for end in range(1, len(one.prompt))]
            assert sink.told[one.number] == [None, *likeliest]
        end = sink.ends[one.number]
        reason = "length" if len(tokens) == one.limit else "stop"
        count = len(tokens) + (reason == "stop")  # the token that ends it is one too
        assert (end.reason, end.prompt_tokens) == (reason, len(one.prompt))
        assert end.completion_tokens == count == sum(n for n, _ in sink.pieces.get(one.number, ()))


def test_a_lone_row_of_the_last_stream_is_padded_in_front() -> None:
    engine, sink = FakeEngine(replace(PLAN, exact=True, min_rows=2)), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    for number in range(PLAN.streams):
        scheduler.submit(session(number, [1], 1))
    run(scheduler)
    assert set(sink.texts.values()) == {spelled(answer([1], 1))}


def run(scheduler: Scheduler) -> None:
    while not scheduler.idle:
        scheduler.step()


def test_fast_tokens_share_a_frame_and_the_first_waits_for_none() -> None:
    sink, moments = Collected(), iter([0.0, 0.008, 0.016, 0.024, 0.032, 0.040])
    scheduler = Scheduler(FakeEngine(PLAN), sink, clock=lambda: next(moments))  # type: ignore[arg-type]
    scheduler.submit(session(0, [1], 6))
    run(scheduler)
    text = spelled(answer([1], 6))
    assert sink.pieces[0] == [(1, text[0]), (3, text[1:4]), (2, text[4:])]


def test_text_does_not_wait_while_a_prompt_is_computed() -> None:
    sink = Collected()
    scheduler = Scheduler(FakeEngine(PLAN), sink, clock=lambda: 0.0)  # type: ignore[arg-type]
    scheduler.submit(session(0, [1], 9))
    scheduler.step()
    scheduler.step()  # its second token waits for a third
    scheduler.submit(session(1, [1] * 3 * PLAN.chunk, 1))
    scheduler.step()
    text = spelled(answer([1], 9))
    assert sink.pieces[0] == [(1, text[0]), (2, text[1:3])]


def test_a_second_turn_computes_only_what_is_new() -> None:
    sink = Collected()
    scheduler = Scheduler(FakeEngine(PLAN), sink)  # type: ignore[arg-type]
    scheduler.submit(session(0, [5] * 20, 5))
    run(scheduler)
    scheduler.submit(session(1, [5] * 20 + [7], 5))
    run(scheduler)
    assert sink.ends[1].cached_tokens == 20


def test_a_prompt_that_is_scored_is_computed_anew_and_may_be_used_again() -> None:
    sink = Collected()
    scheduler = Scheduler(FakeEngine(PLAN), sink)  # type: ignore[arg-type]
    for number, echo in ((0, False), (1, True), (2, False)):
        scheduler.submit(session(number, [5] * 20, 0, echo=echo))
        run(scheduler)
    assert [sink.ends[number].cached_tokens for number in range(3)] == [0, 0, 19]


@pytest.mark.parametrize("exact", [True, False])
def test_an_exact_worker_and_a_repeatable_session_reuse_whole_chunks_only(exact: bool) -> None:
    sink = Collected()
    scheduler = Scheduler(FakeEngine(replace(PLAN, exact=exact)), sink)  # type: ignore[arg-type]
    prompts = [5] * 20, [5] * 20 + [7], [5] * 16  # of the last all chunks but one are enough
    for number, prompt in enumerate(prompts):
        made = session(number, prompt, 5)
        made.repeatable = not exact
        scheduler.submit(made)
        run(scheduler)
    assert (sink.ends[1].cached_tokens, sink.ends[2].cached_tokens) == (16, 8)


def test_eight_sessions_are_two_calls_of_four_where_seven_rows_are_the_limit() -> None:
    engine = FakeEngine(replace(PLAN, exact=True, max_rows=7))
    scheduler = Scheduler(engine, Collected())  # type: ignore[arg-type]
    for number in range(8):
        scheduler.submit(session(number, [1 + number], 40))
    for _ in range(8):
        scheduler.step()
    engine.calls.clear()
    scheduler.step()
    assert sum(engine.calls) <= 8 and max(engine.calls) <= 4


def test_a_long_prompt_does_not_stall_the_others() -> None:
    engine = FakeEngine(PLAN)
    scheduler = Scheduler(engine, Collected())  # type: ignore[arg-type]
    scheduler.submit(session(0, [1], 50))
    scheduler.step()
    scheduler.submit(session(1, [2] * 60, 3))
    while len(engine.cells[1]) < 60 and not scheduler.idle:
        before = len(engine.cells[0])
        scheduler.step()
        assert scheduler.idle or len(engine.cells[0]) == before + 1 or engine.cells[0] == []


def test_neither_does_one_that_is_scored() -> None:
    engine, sink = FakeEngine(PLAN), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    scheduler.submit(session(0, [1], 50))
    scheduler.step()
    scheduler.submit(session(1, [2] * 60, 0, echo=True))
    while 1 not in sink.ends:
        before = [len(engine.cells[stream]) for stream in (0, 1)]
        scheduler.step()
        assert len(engine.cells[0]) == before[0] + 1 or 0 in sink.ends
        assert len(engine.cells[1]) <= before[1] + engine.scored_rows


def test_an_idle_stream_that_is_full_still_lends_a_row() -> None:
    plan = replace(PLAN, exact=True, min_rows=2, streams=2)
    engine, sink = FakeEngine(plan), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    engine.cells[1] = [1] * plan.cells
    scheduler._streams[1].tokens = [1] * plan.cells
    scheduler.submit(session(0, [3, 3, 4], 10))
    run(scheduler)
    assert sink.texts.get(0, "") == spelled(answer([3, 3, 4], 10))


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_aborted_call_loses_nothing(cancelled: bool) -> None:
    engine, sink = FakeEngine(PLAN), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    one = session(0, [1, 2, 1, 2, 2], 20)
    scheduler.submit(one)
    engine.abort_next = True
    scheduler.step()
    one.cancelled = cancelled
    run(scheduler)
    assert sink.texts.get(0, "") == ("" if cancelled else spelled(answer(one.prompt, 20)))


def test_only_the_call_of_one_session_alone_is_stopped_for_it() -> None:
    engine, sink = FakeEngine(PLAN), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    first, second, third = (session(number, [1 + number, 2], 20) for number in range(3))
    for one in (first, second, third):
        scheduler.submit(one)
        scheduler.step()
    engine.during_call = lambda: scheduler.cancel(first)  # while all three are in one call
    scheduler.step()
    assert first.cancelled and not engine.aborts
    second.cancelled = True
    engine.during_call = lambda: scheduler.cancel(second)  # dropped before the others' call
    scheduler.step()
    assert not engine.aborts
    scheduler.cancel(third)  # between two calls
    assert not engine.aborts
    run(scheduler)
    assert not sink.ends


def test_a_session_alone_is_stopped_in_mid_call() -> None:
    engine, sink = FakeEngine(PLAN), Collected()
    scheduler = Scheduler(engine, sink)  # type: ignore[arg-type]
    one = session(0, [1, 2, 1], 20)
    scheduler.submit(one)
    engine.during_call = lambda: scheduler.cancel(one)
    scheduler.step()
    assert engine.aborts == 1 and engine.cells[0] == []
    run(scheduler)
    assert not sink.ends and one.sampler.closed  # type: ignore[attr-defined]
