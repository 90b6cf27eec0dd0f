"""What every executor must do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

import trio

from kwaai_core.errors import ModelNotFound, UnsupportedParameter
from kwaai_core.roles import Executor, Tokenizes
from kwaai_core.testing.conformance.rules import (
    SECONDS,
    UNKNOWN,
    broken,
    check_cards,
    hold,
    refused,
    require,
)
from kwaai_core.testing.conformance.tokens import check_tokens
from kwaai_core.types import (
    Delta,
    FinishReason,
    GenerateRequest,
    Message,
    ModelCard,
    Prompt,
    Sampling,
    Usage,
)

COUNT: Prompt = (Message("user", "Count: one two three four five six seven eight"),)


@dataclass(frozen=True, slots=True)
class Subject:
    """An executor under test, the model to ask, and how.

    The answers to ``prompt`` should be of ``tokens`` tokens or more. ``repeatable``: with
    temperature 0 and ``exact``, the same prompt gets the same text, alone or among others.
    """

    executor: Executor
    card: ModelCard
    prompt: Prompt
    tokens: int
    repeatable: bool

    def request(
        self,
        prompt: Prompt | None = None,
        *,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> GenerateRequest:
        """A greedy request for ``max_tokens`` tokens, or ``tokens`` of them."""
        return GenerateRequest(
            self.card,
            prompt or self.prompt,
            Sampling(temperature=0.0, seed=1),
            stop,
            self.tokens if max_tokens is None else max_tokens,
            exact=True if self.repeatable else None,
        )

    async def answer(self, request: GenerateRequest) -> Given:
        """All of an answer."""
        async with self.executor.generate(request) as deltas:
            return await _read(deltas)


@dataclass(frozen=True, slots=True)
class Given:
    """An answer that was read to its end."""

    deltas: tuple[Delta, ...]
    finish: FinishReason
    usage: Usage

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


async def _read(deltas: trio.abc.ReceiveChannel[Delta]) -> Given:
    """The rest of a stream; raises :class:`Nonconformance` where it does not end as it must."""
    found: list[Delta] = []
    while True:
        try:
            found.append(await deltas.receive())
        except trio.EndOfChannel:
            break
    endings = [n for n, delta in enumerate(found) if delta.finish or delta.usage]
    require(
        endings == [len(found) - 1],
        f"the stream of {len(found)} deltas has finish or usage in those at {endings}, and must "
        "have both in the last one alone",
    )
    last = found[-1]
    if last.finish not in ("stop", "length") or last.usage is None:
        broken(f"the last delta must have finish and usage: {last}")
    return Given(tuple(found), last.finish, last.usage)


async def check_executor(
    executor: Executor,
    *,
    card: ModelCard | None = None,
    prompt: Prompt = COUNT,
    tokens: int = 8,
    repeatable: bool = True,
    seconds: float = SECONDS,
) -> None:
    """Check every rule of :class:`kwaai_core.Executor` on one that is open.

    ``card`` is the model to ask, by default the first; ``prompt`` must be one to which it answers
    with at least four tokens, of which ``tokens`` are asked for. ``repeatable`` False leaves out
    the comparisons of one answer with another. ``seconds`` is how long one rule may take.
    Errors: :class:`Nonconformance`.
    """
    cards = await executor.models()
    require(bool(cards), "the executor has no model: the checks need one")
    subject = Subject(executor, card or cards[0], prompt, tokens, repeatable)
    for rule in EXECUTOR_RULES:
        await hold(partial(rule, subject), rule.__name__, seconds)


async def models_are_distinct_and_stable(subject: Subject) -> None:
    """Ids are unique and not empty, a digest is well formed, and asking changes nothing."""
    executor = subject.executor
    check_cards(await executor.models(), await executor.models())
    require(isinstance(executor.ready(), bool), "ready() must give True or False")


async def an_answer_ends_once_and_is_counted(subject: Subject) -> None:
    """``finish`` and ``usage`` are in the last delta alone, and the counts of tokens agree."""
    given = await subject.answer(subject.request())
    usage, counted = given.usage, sum(delta.tokens for delta in given.deltas)
    require(usage.completion_tokens == counted, f"{counted} tokens came, and usage says {usage}")
    require(counted > 3, f"the answer {given.text!r} has {counted} tokens: the checks need four")
    require(
        0 <= usage.cached_tokens <= usage.prompt_tokens and usage.prompt_tokens > 0,
        f"the tokens of the prompt do not add up: {usage}",
    )
    for delta in given.deltas:
        require(_is_text(delta.text), f"a delta is not whole code points: {delta.text!r}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def max_tokens_is_honoured(subject: Subject) -> None:
    """An answer of 0, 1, 2 or 3 tokens at most has no more, and says ``length``."""
    for limit in (0, 1, 2, 3):
        given = await subject.answer(subject.request(max_tokens=limit))
        count = given.usage.completion_tokens
        require(count == limit, f"max_tokens={limit} gave {count} tokens: {given.text!r}")
        require(given.finish == "length", f"cut at {limit} tokens, finish is {given.finish!r}")


async def a_stop_string_is_never_in_the_text(subject: Subject) -> None:
    """The text ends before the first stop string, also where that crosses deltas."""
    whole = (await subject.answer(subject.request())).text
    step = max(1, len(whole) // 4)
    for stop in [whole[at : at + n] for n in (1, 3) for at in range(step, len(whole) - n, step)]:
        given = await subject.answer(subject.request(stop=("\x00never", stop)))
        require(stop not in given.text, f"stop={stop!r} is in the answer {given.text!r}")
        if subject.repeatable:
            wanted = whole[: whole.index(stop)]
            require(given.text == wanted, f"stop={stop!r}: {given.text!r} is not {wanted!r}")
            require(given.finish == "stop", f"stop={stop!r}: finish is {given.finish!r}")


async def both_kinds_of_prompt_work(subject: Subject) -> None:
    """A conversation and raw text, with characters outside ASCII, get an answer."""
    talk = (Message("system", "Be brief."), Message("user", "Où es-tu, 世界 🌍?"))
    for prompt in (
        talk,
        (*talk, Message("assistant", "Ici."), talk[1]),
        "Ünïcödé 🌍 and more of it",
    ):
        given = await subject.answer(subject.request(prompt))
        require(given.usage.prompt_tokens > 0, f"{prompt!r} counts as no tokens: {given.usage}")


async def an_echo_comes_first_or_is_refused(subject: Subject) -> None:
    """``echo`` tells the prompt before the answer, or is :class:`UnsupportedParameter`."""
    prompt = "Ünïcödé 🌍 and more of it"
    request = subject.request(prompt, max_tokens=3)
    try:
        given = await subject.answer(replace(request, echo=True))
    except UnsupportedParameter:
        return
    plain = await subject.answer(request)
    echoed, counted = given.text, sum(delta.tokens for delta in given.deltas)
    require(echoed.startswith(prompt), f"the echo of {prompt!r} is {echoed!r}")
    require(counted == given.usage.completion_tokens, f"{counted} tokens, with {given.usage}")
    if subject.repeatable:
        wanted = prompt + plain.text
        require(echoed == wanted, f"with an echo the answer {wanted!r} became {echoed!r}")


async def texts_have_tokens(subject: Subject) -> None:
    """Of an executor that is :class:`kwaai_core.roles.Tokenizes`: texts survive their tokens."""
    if isinstance(subject.executor, Tokenizes):
        await check_tokens(subject.executor, subject.card)


async def leaving_early_frees(subject: Subject) -> None:
    """Whoever leaves an answer unread, or half read, twenty times, still gets the next one."""
    for number in range(20):
        async with subject.executor.generate(subject.request()) as deltas:
            for _ in range(number % 3):
                await deltas.receive()
    await subject.answer(subject.request())


async def a_cancelled_receive_loses_nothing(subject: Subject) -> None:
    """``receive`` can be cancelled, before and while it waits, and called again."""
    whole = await subject.answer(subject.request())
    async with subject.executor.generate(subject.request()) as deltas:
        given = await _read(_Impatient(deltas))
    counted = sum(delta.tokens for delta in given.deltas)
    require(
        counted == given.usage.completion_tokens,
        f"with receive cancelled in between, {counted} tokens came of {given.usage}",
    )
    if subject.repeatable:
        require(
            given.text == whole.text,
            f"with receive cancelled in between, {whole.text!r} became {given.text!r}",
        )


class _Impatient(trio.abc.ReceiveChannel[Delta]):
    """Cancels each ``receive`` at once, then while it waits, and then lets it be."""

    def __init__(self, inner: trio.abc.ReceiveChannel[Delta]) -> None:
        self._inner = inner

    async def receive(self) -> Delta:
        for patience in (0.0, 0.0005, 0.002):
            with trio.move_on_after(patience):
                return await self._inner.receive()
        return await self._inner.receive()

    async def aclose(self) -> None:
        await self._inner.aclose()


async def an_unknown_model_is_refused(subject: Subject) -> None:
    """A card that the executor does not have is :class:`ModelNotFound`, on entering."""
    async with refused(ModelNotFound, f"generate for the model {UNKNOWN.id!r}"):
        await subject.answer(replace(subject.request(), model=UNKNOWN))


async def streams_are_independent(subject: Subject) -> None:
    """Answers read in turns, one of them not at all, are the answers that each gets alone."""
    prompts: list[Prompt] = [
        (Message("user", f"Count: {'one two three four ' * n}{n}"),) for n in (1, 2, 3)
    ]
    alone = [await subject.answer(subject.request(prompt)) for prompt in prompts]
    together: dict[int, Given] = {}

    async def ask(number: int) -> None:
        together[number] = await subject.answer(subject.request(prompts[number]))

    async with subject.executor.generate(subject.request()), trio.open_nursery() as nursery:
        for number in range(len(prompts)):
            nursery.start_soon(ask, number)
    for number, given in enumerate(alone):
        if subject.repeatable:
            require(
                together[number].text == given.text,
                f"alone the answer was {given.text!r}, among others {together[number].text!r}",
            )


async def an_answer_is_repeatable(subject: Subject) -> None:
    """The same greedy request has the same answer, where the executor claims it."""
    first, second = [await subject.answer(subject.request()) for _ in range(2)]
    if subject.repeatable:
        require(first.text == second.text, f"asked twice: {first.text!r}, {second.text!r}")


EXECUTOR_RULES: tuple[Callable[[Subject], Awaitable[None]], ...] = (
    models_are_distinct_and_stable,
    an_answer_ends_once_and_is_counted,
    max_tokens_is_honoured,
    a_stop_string_is_never_in_the_text,
    both_kinds_of_prompt_work,
    an_echo_comes_first_or_is_refused,
    texts_have_tokens,
    leaving_early_frees,
    a_cancelled_receive_loses_nothing,
    an_unknown_model_is_refused,
    streams_are_independent,
    an_answer_is_repeatable,
)
