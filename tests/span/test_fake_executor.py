"""The fake of an executor that runs spans does what such an executor must."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio.testing

from kwaai_core.span.hosted import Session
from kwaai_core.testing.conformance import (
    SPAN_RULES,
    Nonconformance,
    SpanSubject,
    check_spans,
)
from kwaai_core.testing.conformance.spans import OpenSpans
from kwaai_core.testing.spans import TOY, FakeSpanExecutor, hosting
from kwaai_core.testing.toy import ToyCache
from kwaai_core.types import GenerateRequest, Message

PROMPT = (Message("user", " ".join(f"word{n}" for n in range(40))),)


@asynccontextmanager
async def fresh() -> AsyncIterator[FakeSpanExecutor]:
    yield FakeSpanExecutor()


@asynccontextmanager
async def slower() -> AsyncIterator[FakeSpanExecutor]:
    executor = FakeSpanExecutor()
    executor.step_seconds = executor.row_seconds = 0.01
    yield executor


@pytest.mark.parametrize("rule", SPAN_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("kind", [fresh, slower], ids=["fast", "slow"])
async def test_rules(
    rule: Callable[[SpanSubject], Awaitable[None]],
    kind: OpenSpans,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await rule(SpanSubject(kind, TOY, PROMPT))


class Wrong(ToyCache):
    """What it computes in the second half of the model is not what others compute."""

    def run(self, session: Session) -> bytes:
        states = super().run(session)
        return states if session.span.lo == 0 else bytes(len(states))


class WithoutRoom(FakeSpanExecutor):
    """Takes no session."""

    def __init__(self) -> None:
        super().__init__(streams=0)


@pytest.mark.parametrize(("cache", "kind"), [(Wrong, FakeSpanExecutor), (ToyCache, WithoutRoom)])
async def test_one_that_breaks_a_rule_is_found_out(
    cache: type[ToyCache],
    kind: type[FakeSpanExecutor],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosting, "ToyCache", cache)

    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeSpanExecutor]:
        yield kind()

    with pytest.raises(Nonconformance, match="undivided run"):
        await check_spans(SpanSubject(opened, TOY, PROMPT))


async def test_the_undivided_run_is_that_of_its_spans() -> None:
    executor = FakeSpanExecutor()
    subject = SpanSubject(fresh, TOY, PROMPT)
    async with executor.generate(subject.request()) as deltas:
        whole = "".join([delta.text async for delta in deltas])
    assert len(whole.split()) == subject.tokens
    request = GenerateRequest(TOY, PROMPT, stop=(whole[20:25],), max_tokens=24)
    async with executor.generate(request) as deltas:
        text = "".join([delta.text async for delta in deltas])
    assert text == whole[: whole.find(whole[20:25])]
