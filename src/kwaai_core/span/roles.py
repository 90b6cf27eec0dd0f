"""Parts of models: what an executor that can run spans of blocks offers a router.

The router, in the node, finds out who holds what, plans, connects, and says where a session goes;
the executor's worker runs the loop over tokens and owns the sockets, since a turn through the node
for each token and hop would cost more than the encryption does. Neither knows the other: this is
all that they share, besides the protocol between workers, which is the rest of this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # trio takes a tenth of a second to import; `kwaai --help` has 0.3
    from trio.abc import ReceiveChannel

    from kwaai_core.peering import DataChannel
    from kwaai_core.span.hop import Place, Trouble
    from kwaai_core.types import Delta, GenerateRequest, ModelCard, Span

LOCAL = 0
"""The link that leads nowhere: to the units that this node holds itself."""


@dataclass(frozen=True, slots=True)
class SpanFacts:
    """How a worker computes parts of a model.

    ``width`` is of a hidden state, ``blocks`` of the whole model. Two workers with one
    ``fingerprint`` compute equal bits if they are ``exact``. ``chunk`` rows are a prefill step;
    ``replay_rows`` lone rows may be replayed in one call. A session has room for ``cells`` tokens.
    """

    width: int
    blocks: int
    exact: bool
    fingerprint: str
    chunk: int
    replay_rows: int
    cells: int


@dataclass(frozen=True, slots=True)
class SpanLoad:
    """How busy a host is, and how fast: ``free`` sessions there is room for, ``sessions`` there
    are, ``waiting`` steps; ``idle`` of the sessions are also counted as free, since they would end
    for others. ``step_seconds`` is of a lone row through each unit, ``row_seconds`` of
    a row of a prefill chunk; both are measured, at the start and by what is served."""

    free: int
    sessions: int
    waiting: int
    step_seconds: tuple[float, ...]
    row_seconds: tuple[float, ...]
    idle: int = 0


class SpanHost(Protocol):
    """Units of a model's blocks that this node holds, for sessions of its own and of peers."""

    @property
    def units(self) -> Sequence[Span]:
        """The blocks of each unit, in order."""
        ...

    @property
    def facts(self) -> SpanFacts: ...

    def load(self) -> SpanLoad:
        """How busy it is now."""
        ...

    async def serve(self, peer: str, channel: DataChannel) -> None:
        """Serve sessions of an authenticated peer over a connected socket, until its end.

        The socket is closed in any case. A channel without certificates is spoken to in the
        clear: another process of this node carries it.

        Errors: :class:`PeerLost` where the handshake fails, or the peer breaks the protocol.
        """
        ...

    def reserve(self, sessions: Mapping[str, int]) -> None:
        """Keep room for so many more sessions of each of these peers, and of no others.

        What is kept is still ``free`` in :meth:`load`. A worker that dies forgets it: whoever
        reserves says it again and again.
        """
        ...

    async def drain(self) -> None:
        """Take no more sessions and return when those there are have been moved or have ended."""
        ...


class Routing(Protocol):
    """Where one session goes; a router answers it."""

    async def __call__(
        self, tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> Sequence[Place]:
        """The places that cover all blocks in order, for a session of so many tokens.

        ``route`` is empty at first. Later it is where the session was, and ``trouble`` the
        places of it that are of no use any more, or slow, or about to leave; a place that is in
        the answer again keeps what it holds. The session waits for as long as this takes.

        Errors: :class:`NoPeerAvailable` at first and :class:`UpstreamLost` later, which say
        what is missing; they end the answer.
        """
        ...


class SpanHead(Protocol):
    """Tokenizer, embedding, final norm and sampler of a model whose blocks may be elsewhere."""

    @property
    def facts(self) -> SpanFacts: ...

    def link(
        self,
        peer: str,
        channel: DataChannel,
        *,
        replay_rows: int = 1,
        rtt: float = 0.0,
        lone: Mapping[Span, float] | None = None,
    ) -> AbstractAsyncContextManager[int]:
        """A link to a host of this model over a connected socket; its number is for places. The
        host computes up to ``replay_rows`` lone rows in one call as it does one, and takes ``lone``
        seconds for one through each of its units, by its own facts; it is ``rtt`` seconds away. A
        host that takes much longer than that from its first step on is slow.

        The socket is closed when the context is left, or the link is lost; sessions over it then
        ask their routing. Errors: :class:`PeerLost` where the handshake fails.
        """
        ...

    def lost(self, link: int) -> bool:
        """Whether a link has broken, or fallen silent."""
        ...

    def generate(
        self, request: GenerateRequest, routing: Routing
    ) -> AbstractAsyncContextManager[ReceiveChannel[Delta]]:
        """Like :meth:`kwaai_core.Executor.generate`, over the places that ``routing`` names. The
        hops in the report of its last delta have the number of a link as their peer."""
        ...


@runtime_checkable
class SpanExecutor(Protocol):
    """Optional, for an executor: it runs spans of models. One worker serves both of these, and the
    units that it holds are used by its own head over the link :data:`LOCAL`."""

    async def fits(self, card: ModelCard, *, exact: bool) -> bool:
        """Whether the whole model could be run here, so that no spans are needed."""
        ...

    def hold(
        self, card: ModelCard, units: Sequence[Span], *, exact: bool
    ) -> AbstractAsyncContextManager[SpanHost]:
        """Hold these units in memory while the context is open.

        Errors: :class:`ModelFileError` where the model cannot be cut, or not exactly;
        :class:`ModelLoading` where there is no memory for it now.
        """
        ...

    def head(self, card: ModelCard, *, exact: bool) -> AbstractAsyncContextManager[SpanHead]:
        """The head of a model; its errors are those of :meth:`hold`."""
        ...
