"""What every catalog, executor and router must do: plain async functions, one for each rule.

They need no pytest. Each raises :class:`Nonconformance`, which says what was expected and what
came. ``CATALOG_RULES``, ``EXECUTOR_RULES`` and ``ROUTER_RULES`` have them one by one, for a test
run that wants to show them by name.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import trio

from kwaai_core.errors import KwaaiError, LobeFailed, ModelNotFound
from kwaai_core.roles import Catalog, Executor, Host, Route, Router
from kwaai_core.testing.fakes import CARD, FakeHost, ScriptedExecutor
from kwaai_core.types import (
    Delta,
    GenerateRequest,
    Intent,
    Message,
    ModelCard,
    Prompt,
    Sampling,
    Usage,
)

SECONDS = 60.0
"""How long a rule may take, where a caller does not say otherwise."""

_UNKNOWN = ModelCard("no-such/model", digest="0" * 64)


class Nonconformance(AssertionError):
    """A lobe broke a rule of its role."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Nonconformance(message)


def _broken(message: str) -> NoReturn:
    raise Nonconformance(message)


async def _in_time(rule: Callable[[], Awaitable[None]], name: str, seconds: float) -> None:
    with trio.move_on_after(seconds) as scope:
        await rule()
    if scope.cancelled_caught:
        _broken(f"{name.replace('_', ' ')}: nothing more happened within {seconds:g} s")


@asynccontextmanager
async def _refused(kind: type[KwaaiError], what: str) -> AsyncIterator[None]:
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise Nonconformance(f"{what} raised {error!r}, not {kind.__name__}") from error
    _broken(f"{what} raised nothing, not {kind.__name__}")


def _check_cards(cards: Sequence[ModelCard], again: Sequence[ModelCard]) -> None:
    ids = [card.id for card in cards]
    _require(all(ids), f"a card has an empty id: {cards}")
    _require(len(set(ids)) == len(ids), f"two cards have one id: {sorted(ids)}")
    _require(list(cards) == list(again), f"asked twice, the cards differ: {cards} and {again}")
    for card in cards:
        hexadecimal = set(card.digest) <= set("0123456789abcdef")
        _require(
            hexadecimal and len(card.digest) in (0, 64),
            f"{card.id}: the digest {card.digest!r} is neither empty nor 64 lower-case hex digits",
        )


# Catalog


async def check_catalog(catalog: Catalog, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.Catalog` on one that is open and has a model.

    It should be at rest: what is added or removed meanwhile breaks a rule. ``seconds`` is how
    long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in CATALOG_RULES:
        await _in_time(partial(rule, catalog), rule.__name__, seconds)


async def cards_are_distinct_and_stable(catalog: Catalog) -> None:
    """Ids are unique and not empty, a digest is well formed, and asking changes nothing."""
    cards = await catalog.cards()
    _require(bool(cards), "the catalog is empty: the checks need a model in it")
    _check_cards(cards, await catalog.cards())


async def a_fetched_file_is_the_card_s(catalog: Catalog) -> None:
    """``fetch`` gives a file that is there, of the size and the digest that its card names."""
    from kwaai_core.digest import model_digest
    from kwaai_core.gguf import read_gguf

    for card in await catalog.cards():
        path = await catalog.fetch(card)
        _require(path.is_file(), f"{card.id}: {path} is not a file")
        size = path.stat().st_size
        _require(card.size in (0, size), f"{card.id}: {path} has {size} bytes, not {card.size}")
        if card.digest:
            digest = await trio.to_thread.run_sync(lambda p=path: model_digest(read_gguf(p)))
            _require(digest == card.digest, f"{card.id}: {path} is the model {digest}")


async def fetching_at_once_gives_one_answer(catalog: Catalog) -> None:
    """Two callers of ``fetch`` do not disturb one another, and a third finds the same file."""
    card = (await catalog.cards())[0]
    paths: list[Path] = []

    async def fetch() -> None:
        paths.append(await catalog.fetch(card))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        nursery.start_soon(fetch)
    await fetch()
    _require(len(set(paths)) == 1, f"{card.id}: three calls gave {paths}")


async def a_cancelled_fetch_harms_nothing(catalog: Catalog) -> None:
    """After a ``fetch`` that was cancelled, the next one works."""
    card = (await catalog.cards())[0]
    with trio.CancelScope() as scope:
        scope.cancel()
        await catalog.fetch(card)
    _require((await catalog.fetch(card)).is_file(), f"{card.id}: no file after a cancelled fetch")


async def an_unknown_card_is_refused(catalog: Catalog) -> None:
    """A card that is not one of the catalog's is :class:`ModelNotFound`, also with a known id."""
    card = (await catalog.cards())[0]
    for unknown in (_UNKNOWN, replace(card, id=card.id + "-other", digest="0" * 64)):
        async with _refused(ModelNotFound, f"fetch({unknown.id!r})"):
            await catalog.fetch(unknown)


CATALOG_RULES: tuple[Callable[[Catalog], Awaitable[None]], ...] = (
    cards_are_distinct_and_stable,
    a_fetched_file_is_the_card_s,
    fetching_at_once_gives_one_answer,
    a_cancelled_fetch_harms_nothing,
    an_unknown_card_is_refused,
)


# Executor


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
            max_tokens or self.tokens,
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
    finish: Literal["stop", "length"]
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
    _require(
        endings == [len(found) - 1],
        f"the stream of {len(found)} deltas has finish or usage in those at {endings}, and must "
        "have both in the last one alone",
    )
    last = found[-1]
    if last.finish not in ("stop", "length") or last.usage is None:
        _broken(f"the last delta must have finish and usage: {last}")
    return Given(tuple(found), last.finish, last.usage)


async def check_executor(
    executor: Executor,
    *,
    card: ModelCard | None = None,
    prompt: Prompt = (Message("user", "Count: one two three four five six seven eight"),),
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
    _require(bool(cards), "the executor has no model: the checks need one")
    subject = Subject(executor, card or cards[0], prompt, tokens, repeatable)
    for rule in EXECUTOR_RULES:
        await _in_time(partial(rule, subject), rule.__name__, seconds)


async def models_are_distinct_and_stable(subject: Subject) -> None:
    """Ids are unique and not empty, a digest is well formed, and asking changes nothing."""
    executor = subject.executor
    _check_cards(await executor.models(), await executor.models())
    _require(isinstance(executor.ready(), bool), "ready() must give True or False")


async def an_answer_ends_once_and_is_counted(subject: Subject) -> None:
    """``finish`` and ``usage`` are in the last delta alone, and the counts of tokens agree."""
    given = await subject.answer(subject.request())
    usage, counted = given.usage, sum(delta.tokens for delta in given.deltas)
    _require(usage.completion_tokens == counted, f"{counted} tokens came, and usage says {usage}")
    _require(counted > 3, f"the answer {given.text!r} has {counted} tokens: the checks need four")
    _require(
        0 <= usage.cached_tokens <= usage.prompt_tokens and usage.prompt_tokens > 0,
        f"the tokens of the prompt do not add up: {usage}",
    )
    for delta in given.deltas:
        _require(_is_text(delta.text), f"a delta is not whole code points: {delta.text!r}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def max_tokens_is_honoured(subject: Subject) -> None:
    """An answer of 1, 2 or 3 tokens at most has no more, and says ``length``."""
    for limit in (1, 2, 3):
        given = await subject.answer(subject.request(max_tokens=limit))
        count = given.usage.completion_tokens
        _require(count == limit, f"max_tokens={limit} gave {count} tokens: {given.text!r}")
        _require(given.finish == "length", f"cut at {limit} tokens, finish is {given.finish!r}")


async def a_stop_string_is_never_in_the_text(subject: Subject) -> None:
    """The text ends before the first stop string, also where that crosses deltas."""
    whole = (await subject.answer(subject.request())).text
    for stop in {whole[at : at + n] for n in (1, 3) for at in range(1, len(whole) - n, 4)}:
        given = await subject.answer(subject.request(stop=("\x00never", stop)))
        _require(stop not in given.text, f"stop={stop!r} is in the answer {given.text!r}")
        if subject.repeatable:
            wanted = whole[: whole.index(stop)]
            _require(given.text == wanted, f"stop={stop!r}: {given.text!r} is not {wanted!r}")
            _require(given.finish == "stop", f"stop={stop!r}: finish is {given.finish!r}")


async def both_kinds_of_prompt_work(subject: Subject) -> None:
    """A conversation and raw text, with characters outside ASCII, get an answer."""
    talk = (Message("system", "Be brief."), Message("user", "Où es-tu, 世界 🌍?"))
    for prompt in (talk, (*talk, Message("assistant", "Ici."), talk[1]), "Ünïcödé 🌍 and more of it"):
        given = await subject.answer(subject.request(prompt))
        _require(given.usage.prompt_tokens > 0, f"{prompt!r} counts as no tokens: {given.usage}")


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
        patient = _Impatient(deltas)
        given = await _read(patient)
    counted = sum(delta.tokens for delta in given.deltas)
    _require(
        counted == given.usage.completion_tokens,
        f"with receive cancelled in between, {counted} tokens came of {given.usage}",
    )
    if subject.repeatable:
        _require(
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
    async with _refused(ModelNotFound, f"generate for the model {_UNKNOWN.id!r}"):
        await subject.answer(replace(subject.request(), model=_UNKNOWN))


async def streams_are_independent(subject: Subject) -> None:
    """Answers read in turns, one of them not at all, are the answers that each gets alone."""
    prompts: list[Prompt] = [
        (Message("user", f"Count: {'one two three four ' * n}{n}"),) for n in (1, 2, 3)
    ]
    alone = [await subject.answer(subject.request(prompt)) for prompt in prompts]
    together: dict[int, Given] = {}

    async def ask(number: int) -> None:
        together[number] = await subject.answer(subject.request(prompts[number]))

    async with subject.executor.generate(subject.request()):
        async with trio.open_nursery() as nursery:
            for number in range(len(prompts)):
                nursery.start_soon(ask, number)
    for number, given in enumerate(alone):
        if subject.repeatable:
            _require(
                together[number].text == given.text,
                f"alone the answer was {given.text!r}, among others {together[number].text!r}",
            )


async def an_answer_is_repeatable(subject: Subject) -> None:
    """The same greedy request has the same answer, where the executor claims it."""
    first, second = [await subject.answer(subject.request()) for _ in range(2)]
    if subject.repeatable:
        _require(first.text == second.text, f"asked twice: {first.text!r}, {second.text!r}")


EXECUTOR_RULES: tuple[Callable[[Subject], Awaitable[None]], ...] = (
    models_are_distinct_and_stable,
    an_answer_ends_once_and_is_counted,
    max_tokens_is_honoured,
    a_stop_string_is_never_in_the_text,
    both_kinds_of_prompt_work,
    leaving_early_frees,
    a_cancelled_receive_loses_nothing,
    an_unknown_model_is_refused,
    streams_are_independent,
    an_answer_is_repeatable,
)


# Router

OpenRouter = Callable[[Host], AbstractAsyncContextManager[Router]]


async def check_router(open_router: OpenRouter, *, seconds: float = SECONDS) -> None:
    """Check every rule of :class:`kwaai_core.Router`; ``open_router`` is the ``open`` of its offer.

    It is opened on hosts with fake executors and nothing else, in a folder that is removed at the
    end. ``seconds`` is how long one rule may take. Errors: :class:`Nonconformance`.
    """
    for rule in ROUTER_RULES:
        await _in_time(partial(rule, open_router), rule.__name__, seconds)


@asynccontextmanager
async def _routing(open_router: OpenRouter, *executors: ScriptedExecutor) -> AsyncIterator[Router]:
    with tempfile.TemporaryDirectory() as folder:
        async with open_router(FakeHost(Path(folder), executors=executors)) as router:
            yield router


def _executors() -> tuple[ScriptedExecutor, ScriptedExecutor]:
    cards = [replace(CARD, id=f"fake/{n}", digest=f"{n:064x}") for n in (1, 2, 3)]
    return ScriptedExecutor(cards=cards[:2]), ScriptedExecutor(cards=cards[2:])


async def every_model_has_a_route(open_router: OpenRouter) -> None:
    """By id and by digest, to an executor that really has the model."""
    executors = _executors()
    async with _routing(open_router, *executors) as router:
        for executor in executors:
            for card in executor.cards:
                for name in (card.id, card.digest):
                    await _check_route(await router.route(Intent(name)), card, name)


async def _check_route(route: Route, card: ModelCard, name: str) -> None:
    _require(route.model == card, f"the route for {name!r} runs {route.model}")
    there = await route.executor.models()
    _require(card in there, f"the route for {name!r} leads to an executor that has only {there}")


async def an_unknown_id_is_answered_with_all_there_are(open_router: OpenRouter) -> None:
    """:class:`ModelNotFound` lists every id, for a name and for the empty digest of no model."""
    executors = _executors()
    ids = sorted(card.id for executor in executors for card in executor.cards)
    async with _routing(open_router, *executors) as router:
        for name in (_UNKNOWN.id, _UNKNOWN.digest, ""):
            async with _refused(ModelNotFound, f"route({name!r})"):
                try:
                    await router.route(Intent(name))
                except ModelNotFound as error:
                    there = sorted(error.available)
                    _require(there == ids, f"route({name!r}) says there are {there}, not {ids}")
                    raise


async def a_failed_executor_hides_no_other(open_router: OpenRouter) -> None:
    """What others have is still found; what nobody else has is the failure, and not a 404."""
    failed, works = _executors()
    failed.models_error = LobeFailed("fake", "on purpose")
    async with _routing(open_router, failed, works) as router:
        card = works.cards[0]
        await _check_route(await router.route(Intent(card.id)), card, card.id)
        async with _refused(LobeFailed, "route to a model that no working executor has"):
            await router.route(Intent(failed.cards[0].id))


async def an_executor_s_change_is_seen(open_router: OpenRouter) -> None:
    """A model that appears while the router is open has a route, one that goes has none."""
    executor, other = _executors()
    async with _routing(open_router, executor) as router:
        gone, executor.cards = executor.cards[0], other.cards
        card = other.cards[0]
        await _check_route(await router.route(Intent(card.id)), card, card.id)
        async with _refused(ModelNotFound, "route to a model that is gone"):
            await router.route(Intent(gone.id))


ROUTER_RULES: tuple[Callable[[OpenRouter], Awaitable[None]], ...] = (
    every_model_has_a_route,
    an_unknown_id_is_answered_with_all_there_are,
    a_failed_executor_hides_no_other,
    an_executor_s_change_is_seen,
)
