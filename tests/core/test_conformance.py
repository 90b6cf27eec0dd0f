"""The conformance checks pass what is right, and each rule catches what is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kwaai_core import defaults
from kwaai_core.errors import Busy, KwaaiError, ModelNotFound, NoPeerAvailable
from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import model_digest
from kwaai_core.roles import Executor, Host, Route, Router
from kwaai_core.testing import (
    CARD,
    FakeCatalog,
    Nonconformance,
    ScriptedExecutor,
    check_catalog,
    check_executor,
    check_router,
)
from kwaai_core.testing.models import Shape, write_random_model
from kwaai_core.types import (
    Delta,
    GenerateRequest,
    Intent,
    ModelCard,
    Span,
    TokenIds,
    Tokenizer,
    Usage,
)

Step = Delta | Exception | trio.Event


async def test_the_fake_executor_conforms() -> None:
    await check_executor(ScriptedExecutor())


async def test_a_slow_executor_conforms(autojump_clock: trio.testing.MockClock) -> None:
    await check_executor(Slow())


class Slow(ScriptedExecutor):
    """Takes longer for a token than anybody waits at once."""

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        send, receive = trio.open_memory_channel[Delta](0)

        async def speak(deltas: trio.abc.ReceiveChannel[Delta]) -> None:
            with send:
                async for delta in deltas:
                    await trio.sleep(0.01)
                    await send.send(delta)

        async with super().generate(request) as deltas, trio.open_nursery() as nursery:
            nursery.start_soon(speak, deltas)
            yield receive
            nursery.cancel_scope.cancel()


class TwoOfOneId(ScriptedExecutor):
    async def models(self) -> Sequence[ModelCard]:
        return [CARD, CARD]


class OtherCardsEachTime(ScriptedExecutor):
    asked = 0

    async def models(self) -> Sequence[ModelCard]:
        self.asked += 1
        return [CARD, replace(CARD, id=f"model-{self.asked}", digest="")]


class BadDigest(ScriptedExecutor):
    async def models(self) -> Sequence[ModelCard]:
        return [replace(CARD, digest="ABC")]


class NoEnd(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        yield from list(super().answer(request))[:-1]


class TwoEnds(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        deltas = list(super().answer(request))
        yield from [*deltas, deltas[-1]]


class NoUsage(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        *deltas, _ = super().answer(request)
        yield from [*deltas, Delta("", finish="stop")]


class Miscounts(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        *deltas, _ = super().answer(request)
        yield from [*deltas, Delta("", finish="stop", usage=Usage(3, len(deltas) + 1))]


class MoreCachedThanThere(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        *deltas, _ = super().answer(request)
        yield from [*deltas, Delta("", finish="length", usage=Usage(3, len(deltas), 4))]


class HalfCharacters(ScriptedExecutor):
    def __init__(self) -> None:
        super().__init__(("One", "\udcf0", "\udc9f", "!"))


class NoLimit(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        return super().answer(replace(request, max_tokens=None))


class ForgetsTheEcho(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        return super().answer(replace(request, echo=False))


class CountsTheEcho(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        for number, step in enumerate(super().answer(request)):
            yield replace(step, tokens=1) if request.echo and not number else step  # type: ignore[arg-type]


class LosesSpaces(ScriptedExecutor):
    async def detokenize(self, model: ModelCard, tokens: TokenIds) -> str:
        return (await super().detokenize(model, tokens)).strip()


class AddsNothing(ScriptedExecutor):
    async def tokenizer(self, model: ModelCard) -> Tokenizer:
        return replace(await super().tokenizer(model), adds_bos=True, adds_eos=True)


class HasAnyToken(ScriptedExecutor):
    async def detokenize(self, model: ModelCard, tokens: TokenIds) -> str:
        known = TokenIds(tuple(token for token in tokens.ids if token < 258))
        return await super().detokenize(model, known)


class CallsACutAStop(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        for step in super().answer(request):
            yield replace(step, finish="stop") if isinstance(step, Delta) and step.finish else step


class NoStop(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        return super().answer(replace(request, stop=()))


class StopsWithinOneDeltaOnly(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        for step in super().answer(replace(request, stop=())):
            if isinstance(step, Delta) and any(stop in step.text for stop in request.stop):
                at = min(step.text.find(stop) for stop in request.stop if stop in step.text)
                yield replace(step, text=step.text[:at], finish="stop", usage=Usage(1, 1))
                return
            yield step


class CutsTooMuch(ScriptedExecutor):
    """Drops the whole delta in which a stop string begins."""

    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        whole = list(super().answer(replace(request, stop=())))
        kept = list(super().answer(request))
        yield from kept if len(kept) == len(whole) else [*kept[:-2], kept[-1]]


class ConversationsOnly(ScriptedExecutor):
    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        if isinstance(request.prompt, str):
            raise NoPeerAvailable("raw text is not for me")
        return super().answer(request)


class KeepsItsSlots(ScriptedExecutor):
    """Frees the place of an answer only when that is read to its end."""

    slots = 8

    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        if self.slots == 0:
            raise Busy("all places are taken")
        self.slots -= 1
        yield from super().answer(request)
        self.slots += 1


class LosesWhatIsCancelled(ScriptedExecutor):
    """Takes a delta before it waits, and drops it where the wait is cancelled."""

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        async with super().generate(request) as deltas:
            yield Careless(deltas)


class Careless(trio.abc.ReceiveChannel[Delta]):
    def __init__(self, inner: trio.abc.ReceiveChannel[Delta]) -> None:
        self._inner = inner

    async def receive(self) -> Delta:
        with trio.CancelScope(shield=True):
            delta = await self._inner.receive()
        if delta.finish is None:
            await trio.lowlevel.checkpoint()
        return delta

    async def aclose(self) -> None:
        await self._inner.aclose()


class RunsAnything(ScriptedExecutor):
    def generate(self, request: GenerateRequest):  # type: ignore[no-untyped-def]
        return super().generate(replace(request, model=CARD))


class OneAtATime(ScriptedExecutor):
    def __init__(self) -> None:
        super().__init__()
        self._lock = trio.Lock()

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        async with self._lock, super().generate(request) as deltas:
            yield deltas


class MixesUp(ScriptedExecutor):
    """Reads every answer from one and the same place."""

    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        for step in super().answer(request):
            self.script = (*self.script[1:], *self.script[:1]) if self.running > 1 else self.script
            yield step

    @property
    def running(self) -> int:
        return sum(not played.ended.is_set() for played in self.plays)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (TwoOfOneId, "two cards have one id"),
        (OtherCardsEachTime, "asked twice, the cards differ"),
        (BadDigest, "neither empty nor 64"),
        (NoEnd, "has finish or usage in those at"),
        (TwoEnds, "has finish or usage in those at"),
        (NoUsage, "must have finish and usage"),
        (Miscounts, "tokens came, and usage says"),
        (MoreCachedThanThere, "do not add up"),
        (HalfCharacters, "not whole code points"),
        (NoLimit, "max_tokens=0 gave"),
        (ForgetsTheEcho, "the echo of"),
        (LosesSpaces, "comes back from its tokens as"),
        (AddsNothing, "special adds 1 tokens"),
        (HasAnyToken, "detokenize of a token that there is not"),
        (CountsTheEcho, "tokens, with"),
        (CallsACutAStop, "finish is 'stop'"),
        (NoStop, "is in the answer"),
        (StopsWithinOneDeltaOnly, "(is in the answer|tokens came)"),
        (CutsTooMuch, "is not"),
        (ConversationsOnly, "both kinds of prompt.*raw text is not for me"),
        (KeepsItsSlots, "leaving early frees.*all places are taken"),
        (LosesWhatIsCancelled, "with receive cancelled in between"),
        (RunsAnything, "raised nothing, not ModelNotFound"),
        (OneAtATime, "streams are independent: nothing more happened within"),
        (MixesUp, "streams are independent: alone the answer was"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_a_broken_executor_is_caught(
    broken: Callable[[], Executor], complaint: str | None, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(Nonconformance, match=complaint):
        await check_executor(broken())


async def test_an_executor_that_does_not_end_is_caught(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(Nonconformance, match=r"an answer ends once.*nothing more.* within 5 s"):
        await check_executor(ScriptedExecutor(("One", trio.Event())), seconds=5)


async def test_an_executor_without_models_cannot_be_checked() -> None:
    with pytest.raises(Nonconformance, match="no model"):
        await check_executor(ScriptedExecutor(cards=()))


async def test_what_is_not_repeatable_can_conform() -> None:
    await check_executor(Fickle(), repeatable=False)
    with pytest.raises(Nonconformance):
        await check_executor(Fickle())


class Fickle(ScriptedExecutor):
    """Another answer each time, and honest in everything else."""

    def answer(self, request: GenerateRequest) -> Iterator[Step]:
        self.script = (f"{len(self.plays)}", " two", " three", " four", " five")
        return super().answer(request)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[ModelCard, Path]:
    shape = Shape(blocks=1, embedding=64, feed_forward=64, vocabulary=259)
    path = write_random_model(tmp_path_factory.mktemp("models") / "a.gguf", shape)
    digest = model_digest(read_gguf(path))
    return {ModelCard("a", digest, "llama", path.stat().st_size, 1): path}


async def test_the_fake_catalog_conforms(files: dict[ModelCard, Path]) -> None:
    await check_catalog(FakeCatalog(files))


class AnyCard(FakeCatalog):
    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        return next(iter(self.files.values()))


class WrongError(FakeCatalog):
    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        return self.files[card]


class OnceOnly(FakeCatalog):
    """Is broken for good by a call that is cancelled."""

    usable = True

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        if not self.usable:
            raise KwaaiError("half a file is in the way")
        self.usable = False
        path = await super().fetch(card, span=span, into=into)
        self.usable = True
        return path


def with_card(card: ModelCard) -> Callable[[dict[ModelCard, Path]], FakeCatalog]:
    return lambda files: FakeCatalog(dict.fromkeys([card], *files.values()))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (AnyCard, "raised nothing, not ModelNotFound"),
        (WrongError, "raised KeyError"),
        (OnceOnly, "half a file"),
        (lambda files: FakeCatalog({}), "the catalog is empty"),
        (with_card(ModelCard("")), "an empty id"),
        (with_card(ModelCard("a", size=7)), "bytes, not 7"),
        (with_card(ModelCard("a", digest="0" * 64)), "is the model"),
        (lambda files: FakeCatalog({ModelCard("a"): Path("/nowhere")}), "is not a file"),
    ],
)
async def test_a_broken_catalog_is_caught(
    broken: Callable[[dict[ModelCard, Path]], FakeCatalog],
    complaint: str,
    files: dict[ModelCard, Path],
) -> None:
    with pytest.raises(Nonconformance, match=complaint):
        await check_catalog(broken(files))


async def test_core_s_own_router_conforms() -> None:
    offer = defaults.provide_router()
    assert offer is not None
    await check_router(offer.open)


class First:
    """Takes the first model of the first executor; subclasses do it wrong in other ways."""

    def __init__(self, host: Host) -> None:
        self.host = host

    async def route(self, intent: Intent) -> Route:
        executor = self.host.executors[0]
        return Route(executor, (await executor.models())[0])


class ByIdOnly(First):
    async def route(self, intent: Intent) -> Route:
        for executor in self.host.executors:
            for card in await executor.models():
                if card.id == intent.model:
                    return Route(executor, card)
        raise ModelNotFound(intent.model, ())


class Silent(First):
    """Says nothing of what there is."""

    async def route(self, intent: Intent) -> Route:
        for executor in self.host.executors:
            for card in await executor.models():
                if intent.model in (card.id, card.digest):
                    return Route(executor, card)
        raise ModelNotFound(intent.model, ())


class WrongExecutor(First):
    async def route(self, intent: Intent) -> Route:
        for executor in self.host.executors:
            for card in await executor.models():
                if intent.model in (card.id, card.digest):
                    return Route(self.host.executors[0], card)
        raise ModelNotFound(intent.model, ())


class Swallows(First):
    """Takes a failed executor for an empty one."""

    async def route(self, intent: Intent) -> Route:
        ids = []
        for executor in self.host.executors:
            try:
                cards = await executor.models()
            except KwaaiError:
                continue
            for card in cards:
                if intent.model and intent.model in (card.id, card.digest):
                    return Route(executor, card)
                ids.append(card.id)
        raise ModelNotFound(intent.model, ids)


class Remembers(Swallows):
    """Asks each executor only once."""

    async def route(self, intent: Intent) -> Route:
        self.known = getattr(self, "known", {})
        failure = None
        for executor in self.host.executors:
            try:
                self.known.setdefault(id(executor), (executor, await executor.models()))
            except KwaaiError as error:
                failure = error
        for executor, cards in self.known.values():
            for card in cards:
                if intent.model in (card.id, card.digest):
                    return Route(executor, card)
        ids = [card.id for _, cards in self.known.values() for card in cards]
        raise failure or ModelNotFound(intent.model, ids)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (First, "runs ModelCard"),
        (ByIdOnly, "there is no model"),
        (Silent, r"says there are \[\]"),
        (WrongExecutor, "leads to an executor that has only"),
        (Swallows, "not LobeFailed"),
        (Remembers, "there is no model"),
    ],
)
async def test_a_broken_router_is_caught(broken: type[First], complaint: str) -> None:
    @asynccontextmanager
    async def opened(host: Host) -> AsyncIterator[Router]:
        yield broken(host)

    with pytest.raises(Nonconformance, match=complaint):
        await check_router(opened)
