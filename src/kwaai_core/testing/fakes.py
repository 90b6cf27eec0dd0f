"""Real fakes: a host, a catalog and an executor that do what they must, or fail when told to.

They pass the conformance checks of :mod:`kwaai_core.testing.conformance`, as any lobe has to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio

from kwaai_core.errors import ModelNotFound, RequestError, UnsupportedParameter
from kwaai_core.peering import Identity, Transport
from kwaai_core.roles import (
    Catalog,
    Embedder,
    Executor,
    KnowledgeStore,
    Router,
    Settlement,
    TrustPolicy,
)
from kwaai_core.types import (
    Delta,
    FinishReason,
    GenerateRequest,
    Message,
    ModelCard,
    Span,
    TokenIds,
    Tokenizer,
    Tokens,
    Usage,
)

S = TypeVar("S")

CARD = ModelCard("fake/model", digest="fa" * 32, architecture="llama", blocks=4, context_length=64)


@dataclass
class FakeHost:
    """A :class:`kwaai_core.Host` of whatever roles a test gives it.

    ``folder`` is the lobe's state folder; ``tables`` maps a settings type to what
    :meth:`settings` shall answer, where it is not all defaults.
    """

    folder: Path
    tables: Mapping[type[Any], Any] = field(default_factory=dict)
    identity: Identity | None = None
    transport: Transport | None = None
    trust: TrustPolicy | None = None
    settlement: Settlement | None = None
    catalogs: Sequence[Catalog] = ()
    embedder: Embedder | None = None
    stores: Sequence[KnowledgeStore] = ()
    executors: Sequence[Executor] = ()
    router: Router | None = None

    @property
    def state(self) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder

    def settings(self, kind: type[S]) -> S:
        found = self.tables.get(kind)
        return found if isinstance(found, kind) else kind()


class FakeCatalog:
    """A catalog of these files; ``error``, while it is set, is what every call raises."""

    def __init__(self, files: Mapping[ModelCard, Path]) -> None:
        self.files = dict(files)
        self.error: Exception | None = None

    async def cards(self) -> Sequence[ModelCard]:
        """See :meth:`kwaai_core.Catalog.cards`."""
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return list(self.files)

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        """See :meth:`kwaai_core.Catalog.fetch`."""
        if card not in await self.cards():
            raise ModelNotFound(card.id, [known.id for known in self.files])
        return self.files[card]


Step = str | Exception | trio.Event
"""Of a script: a piece of text that counts as one token, an error, or an event to wait for."""


@dataclass(eq=False)
class Played:
    """One answer as the executor saw it: what was asked, when it began, and that it ended."""

    request: GenerateRequest
    began: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    sent: int = 0


class ScriptedExecutor:
    """Answers every request with the same script, and honours ``max_tokens`` and ``stop``.

    The last delta comes by itself. ``models_error`` is what :meth:`models` raises and
    ``entering`` what :meth:`generate` does first: raise an error, or wait for an event.
    ``plays`` are the answers so far.
    """

    def __init__(
        self,
        script: Sequence[Step] = ("One", " two", " three", " four", " five"),
        cards: Sequence[ModelCard] = (CARD,),
    ) -> None:
        self.script = script
        self.cards = cards
        self.plays: list[Played] = []
        self.is_ready = True
        self.models_error: Exception | None = None
        self.entering: Exception | trio.Event | None = None

    async def models(self) -> Sequence[ModelCard]:
        """See :meth:`kwaai_core.Executor.models`."""
        await trio.lowlevel.checkpoint()
        if self.models_error is not None:
            raise self.models_error
        return self.cards

    def ready(self) -> bool:
        """See :meth:`kwaai_core.Executor.ready`."""
        return self.is_ready

    async def tokenize(
        self,
        model: ModelCard,
        prompt: str | Sequence[Message],
        *,
        special: bool,
        opened: bool = True,
        shown: bool = False,
    ) -> Tokens:
        """See :meth:`kwaai_core.roles.Tokenizes.tokenize`: the bytes of the text; 256 is in front
        of it, and 257 opens a turn."""
        await self._known(model)
        if isinstance(prompt, str):
            ids = list(prompt.encode())
        else:
            ids = [n for message in prompt for n in (257, *message.content.encode())]
            ids += [257] * opened
        ids = [256] * special + ids
        return Tokens(tuple(ids), tuple(map(_shown, ids)) if shown else (), 4096)

    async def detokenize(self, model: ModelCard, tokens: TokenIds) -> str:
        """See :meth:`kwaai_core.roles.Tokenizes.detokenize`."""
        await self._known(model)
        if max(tokens.ids, default=0) > 257:
            raise RequestError(f"there is no token {max(tokens.ids)}", param="tokens")
        pieces = (bytes([n]) if n < 256 else _shown(n).encode() for n in tokens.ids)
        return b"".join(pieces).decode("utf-8", "replace")

    async def tokenizer(self, model: ModelCard) -> Tokenizer:
        """See :meth:`kwaai_core.roles.Tokenizes.tokenizer`."""
        await self._known(model)
        return Tokenizer("<s>", "<turn>", template="{{ messages }}", tokens=258, context=4096)

    async def _known(self, model: ModelCard) -> None:
        await trio.lowlevel.checkpoint()
        if model not in self.cards:
            raise ModelNotFound(model.id, [card.id for card in self.cards])

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        """See :meth:`kwaai_core.Executor.generate`."""
        if request.model not in self.cards:
            raise ModelNotFound(request.model.id, [card.id for card in self.cards])
        played = Played(request)
        self.plays.append(played)
        try:
            if isinstance(self.entering, Exception):
                raise self.entering
            if self.entering is not None:
                await self.entering.wait()
            played.began.set()
            yield _Playing(self.answer(request), played)
        finally:
            played.ended.set()

    def answer(self, request: GenerateRequest) -> Iterator[Delta | Exception | trio.Event]:
        """What a request is answered with; a test that needs a broken executor overrides it."""
        if request.echo:
            yield Delta(_echoed(request))
        spoken = [step for step in self.script if isinstance(step, str)]
        text = "".join(spoken[: request.max_tokens])
        end = _cut(text, request.stop)
        shortened = end < len("".join(spoken))
        given = tokens = 0
        for step in self.script:
            if shortened and given == end:
                break
            if isinstance(step, str):
                yield Delta(step[: end - given], 1)
                given, tokens = min(end, given + len(step)), tokens + 1
            else:
                yield step
        finish: FinishReason = "length" if shortened and end == len(text) else "stop"
        yield Delta("", finish=finish, usage=Usage(_words(request), tokens))


def _cut(text: str, stop: Sequence[str]) -> int:
    """How much of a text comes before the first stop string."""
    return min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))


def _echoed(request: GenerateRequest) -> str:
    if not isinstance(request.prompt, str):
        raise UnsupportedParameter("a script has no text of tokens, so no echo", param="echo")
    return request.prompt


def _shown(token: int) -> str:
    return ("<s>", "<turn>")[token - 256] if token > 255 else chr(token)


def _words(request: GenerateRequest) -> int:
    prompt = request.prompt
    if isinstance(prompt, TokenIds):
        return len(prompt.ids)
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return sum(len(text.split()) for text in texts)


class _Playing(trio.abc.ReceiveChannel[Delta]):
    """Reads an answer; what comes without an event before it is ready at once."""

    def __init__(self, steps: Iterator[Delta | Exception | trio.Event], played: Played) -> None:
        self._steps = steps
        self._gate: trio.Event | None = None
        self._played = played

    async def receive(self) -> Delta:
        await trio.lowlevel.checkpoint()
        while True:
            if self._gate is not None:
                await self._gate.wait()
                self._gate = None
            step = next(self._steps, None)
            if step is None:
                raise trio.EndOfChannel
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Delta):
                self._played.sent += 1
                return step
            self._gate = step

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
