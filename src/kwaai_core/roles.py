"""The roles that lobes fill: a small Protocol each; and what core and lobes hand each other.

:class:`Catalog`, :class:`Embedder`, :class:`Executor` and :class:`Router` are final, and so are
identity and transport, which are in :mod:`kwaai_core.peering`. The other three have the shape that
the first lobe of each will settle, together with its conformance checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:  # trio takes a tenth of a second to import; `kwaai --help` has 0.3
    from pathlib import Path

    from trio.abc import ReceiveChannel

    from kwaai_core.peering import Identity, Transport
    from kwaai_core.types import (
        Assessment,
        Delta,
        Embedding,
        GenerateRequest,
        Hop,
        Intent,
        Message,
        ModelCard,
        Span,
        TokenIds,
        Tokenizer,
        Tokens,
    )

T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S")


class Catalog(Protocol):
    """Which models exist, and their bytes."""

    async def cards(self) -> Sequence[ModelCard]:
        """Every model this catalog has now; ids are unique within it."""
        ...

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        """A verified GGUF file that holds at least the blocks of ``span`` (None: all) of a card.

        A catalog of local files answers with the file's own path and leaves ``into`` alone; one
        that downloads writes below ``into``. The file is the catalog's: nobody else changes it.

        Errors:
          ModelNotFound: the card is not, or no longer, one of this catalog.
          ModelFileError: the bytes are not those that the card's digest names.
        """
        ...


class Executor(Protocol):
    """Runs a model. A remote one is an executor too: near and far are one type."""

    async def models(self) -> Sequence[ModelCard]:
        """Every model this executor can run now, loaded or not."""
        ...

    def generate(
        self, request: GenerateRequest
    ) -> AbstractAsyncContextManager[ReceiveChannel[Delta]]:
        """Open the stream of one answer.

        Entering returns once the request is accepted: the prompt is tokenised, fits, and is
        queued or running. The stream then gives deltas, the last of which has ``finish`` and
        ``usage``, and ends. ``receive`` may be cancelled and called again; nothing is lost.

        Resources: leaving the context ends the work at once and frees what it held, whether or
        not the stream was read to its end.

        Errors:
          RequestError and its kinds, on entering: the request cannot be served as it is.
          ModelLoading, ModelFileError, LobeFailed, on entering: the model cannot be run (yet).
          WorkerLost, UpstreamLost, while reading: what computed the answer is gone.
        """
        ...

    def ready(self) -> bool:
        """Whether a request would be served now without waiting for a model to load first."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """Where an intent goes: an executor, the card it shall run, and who computes which blocks."""

    executor: Executor
    model: ModelCard
    hops: tuple[Hop, ...] = ()


class Router(Protocol):
    """From an intent to something that can execute it."""

    async def route(self, intent: Intent) -> Route:
        """The route for an intent.

        Errors:
          ModelNotFound: no executor has a model of this id or digest.
          NoPeerAvailable: there is the model, but nothing satisfies the rest of the intent.
        """
        ...


class TrustPolicy(Protocol):
    """How far this node trusts a peer, and why."""

    async def assess(self, peer: str) -> Assessment: ...
    async def observe(self, evidence: object) -> None: ...


class Settlement(Protocol):
    """Who owes whom, from co-signed receipts."""

    async def record(self, receipt: bytes) -> None: ...
    async def balance(self, peer: str) -> int: ...


class Embedder(Protocol):
    """Texts to vectors, which point the same way where the texts mean the same."""

    @property
    def card(self) -> ModelCard:
        """Its one model: a text may have ``context_length`` tokens, a vector has ``dimensions``."""
        ...

    async def embed(self, texts: Sequence[str | TokenIds]) -> Sequence[Embedding]:
        """A vector for each text, in order, of nothing but that text: whatever else is embedded
        beside it moves none of its numbers by more than 1e-6.

        :class:`TokenIds` are taken as they are: all tokens of a text, those that the model's own
        tokenizer puts around it too. Cancelling ends the work, of which at most a batch goes on.

        Errors:
          ContextLengthExceeded: a text has more tokens than the model takes. Nothing is cut off.
          RequestError: tokens that are none of this model, or are not whole.
          RequestTooLarge: the texts of this call are too much together.
          Busy: too many calls wait already.
          The ``param`` of the first two is ``input``, or ``input[i]`` where there are several.
        """
        ...


class KnowledgeStore(Protocol):
    """Private knowledge, in spaces that belong to identities."""

    async def spaces(self) -> Sequence[str]: ...
    async def search(self, space: str, query: str, k: int) -> Sequence[object]: ...


class Host(Protocol):
    """What a lobe sees of the node: roles opened before it, its own folder, its own settings.

    A single role is None where nobody offers it, and raises :class:`LobeFailed` where the lobe
    that fills it has failed; so whoever needs that role waits for it, visibly. Reaching for a
    role that opens later is a :class:`ConfigError`: the order of roles is the dependency graph.
    Each object stands for the role whatever happens to its lobe, and may be kept.
    """

    @property
    def identity(self) -> Identity | None: ...
    @property
    def transport(self) -> Transport | None: ...
    @property
    def trust(self) -> TrustPolicy | None: ...
    @property
    def settlement(self) -> Settlement | None: ...
    @property
    def catalogs(self) -> Sequence[Catalog]: ...
    @property
    def embedder(self) -> Embedder | None: ...
    @property
    def stores(self) -> Sequence[KnowledgeStore]: ...
    @property
    def executors(self) -> Sequence[Executor]: ...
    @property
    def router(self) -> Router | None: ...

    @property
    def state(self) -> Path:
        """A folder of this lobe's own (0700), kept between runs."""
        ...

    def settings(self, kind: type[S]) -> S:
        """This lobe's table of ``kwaai.toml`` as the dataclass that its offer declared."""
        ...


@dataclass(frozen=True, slots=True)
class NoSettings:
    """The settings of a lobe that has none."""


@dataclass(frozen=True, slots=True)
class Offer(Generic[T_co]):
    """One filling of one role: a name for ``kwaai.toml``, and how core opens it.

    ``open`` is called inside the node's event loop; what it yields fills the role until the
    context is left. An exception out of the context means that the lobe crashed. ``settings`` is
    a frozen dataclass whose fields, with their defaults, are the keys of the table ``[name]``;
    its ``__post_init__`` may refuse a value with :class:`ValueError`. A field of the type ``int``
    may be written as a size, ``"2GiB"``; one of :data:`kwaai_core.config.Count` may not.
    """

    name: str
    open: Callable[[Host], AbstractAsyncContextManager[T_co]]
    settings: type[Any] = NoSettings


@runtime_checkable
class Describes(Protocol):
    """Optional, for any role: facts for ``kwaai lobes --json``, as JSON can write them."""

    def describe(self) -> Mapping[str, Any]: ...


@runtime_checkable
class Reaches(Protocol):
    """Optional, for a router that needs other nodes for some models."""

    async def unreachable(self) -> str:
        """Why no model here could be answered now; nothing where one could be."""
        ...


@runtime_checkable
class Tokenizes(Protocol):
    """Optional, for an executor: texts and tokens of its models, without an answer.

    Errors of all: those of :meth:`Executor.generate` on entering.
    """

    async def tokenize(
        self,
        model: ModelCard,
        prompt: str | Sequence[Message],
        *,
        special: bool,
        opened: bool = True,
        shown: bool = False,
    ) -> Tokens:
        """The tokens of a text, or of a conversation as the model's template writes it, ``opened``
        for an answer. ``special``: with those that the tokenizer puts around a text."""
        ...

    async def detokenize(self, model: ModelCard, tokens: TokenIds) -> str:
        """The text of tokens, special ones as they are written."""
        ...

    async def tokenizer(self, model: ModelCard) -> Tokenizer:
        """What the tokenizer is."""
        ...
