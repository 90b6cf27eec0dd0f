"""Peers: the roles identity and transport, and the values that they and their callers exchange.

A peer is named in two ways, which are one key: its *peer id* (libp2p's, which the transport
authenticates) and its *DID* (which signs). Times are seconds since 1970, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # trio takes a tenth of a second to import; `kwaai --help` has 0.3
    import socket

    from trio.abc import ReceiveChannel

DEADLINE = 30.0
"""How many seconds an operation on a stream may take, where its caller says nothing."""

MAX_FRAME = 1 << 20
"""The longest frame in bytes, where whoever serves or opens a protocol says nothing."""

HELLO = "/kwaai/hello/1"
"""The protocol of first contact: a door lets everybody open it, save those whom it shuts out."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who answers for a node: a person or an organisation, with a key of its own."""

    did: str
    name: str
    kind: Literal["person", "organisation"]


@dataclass(frozen=True, slots=True)
class Group:
    """A circle of nodes that serve one another: its founder's DID, and a name."""

    founder: str
    name: str


@dataclass(frozen=True, slots=True)
class Acquaintance:
    """What a peer has proved of itself. ``groups`` are those that this node belongs to as well.

    ``formerly`` are the DIDs of keys that it has rotated away, newest first: what is known of them
    is known of it. Good until ``expires``; then it has to be proved again.
    """

    peer: str
    did: str
    owner: Owner | None
    groups: tuple[Group, ...]
    expires: float
    formerly: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Invitation:
    """What an invitation tells whoever takes it. ``line`` is the whole of it, its secret too."""

    line: str
    peer: str
    addresses: tuple[str, ...]
    group: Group
    expires: float


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to a peer; ``address`` is a multiaddress, ``rtt`` None until it is measured.

    ``why_relayed`` says why there is no direct one, where that was tried for in vain.
    """

    peer: str
    address: str
    inbound: bool
    relayed: bool = False
    rtt: float | None = None
    why_relayed: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What a peer has signed about itself under a name, verified.

    Of two with one subject and name the higher ``sequence`` is the newer.
    """

    subject: str
    name: str
    body: bytes
    sequence: int
    expires: float


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A message on a topic; ``peer`` is its author, authenticated whoever passed it on."""

    peer: str
    body: bytes


@dataclass(frozen=True, slots=True)
class DataChannel:
    """A connected socket between two peers, and what TLS 1.3 over it needs, for one use.

    The handshake is still to be done, by whoever gets it: ``certificate`` and ``key`` are this
    side's, ``trusted`` is the only certificate that the other side may show; all PEM. ``server``
    says which end of the handshake this is. The receiver closes ``socket``.
    """

    socket: socket.socket
    certificate: bytes
    key: bytes
    trusted: bytes
    server: bool


class Identity(Protocol):
    """Who this node is: its key, its owner, its groups; and verification, which is pure.

    The key's seed leaves the lobe only through :meth:`handshake_key`. Every signature is made for
    a *purpose*, a short name such as ``record``: ``kwaai/<purpose>/1`` is part of what is signed,
    so that no signature made for one thing is good for another.
    """

    @property
    def did(self) -> str:
        """This node's ``did:key``."""
        ...

    @property
    def peer_id(self) -> str:
        """The libp2p peer id of the same key, in base58: ``12D3KooW…``."""
        ...

    @property
    def owner(self) -> Owner | None:
        """Who answers for this node, None until an owner has been attached."""
        ...

    @property
    def groups(self) -> Sequence[Group]:
        """The groups that this node is a member of now."""
        ...

    def did_of(self, peer: str) -> str:
        """The DID of a peer id. Errors: :class:`NotVerified` for no Ed25519 peer id."""
        ...

    def peer_of(self, did: str) -> str:
        """The peer id of a ``did:key``. Errors: :class:`NotVerified` for another kind of DID."""
        ...

    def resolve(self, did: str) -> Mapping[str, Any]:
        """The DID document of a ``did:key``. Errors: :class:`NotVerified`."""
        ...

    def sign(self, purpose: str, payload: bytes, *, typ: str = "JOSE") -> str:
        """A compact JWS (RFC 7515) by this node's key, EdDSA (RFC 8037)."""
        ...

    def verify(self, purpose: str, did: str, jws: str, *, typ: str = "JOSE") -> bytes:
        """The payload of a JWS that ``did`` signed for this purpose.

        Errors: :class:`NotVerified` for anything else, however malformed.
        """
        ...

    def derive(self, label: str, n: int) -> bytes:
        """``n`` secret bytes of this node's own, the same at every call: HKDF-SHA256 of the key."""
        ...

    def agree(self, did: str, label: str) -> bytes:
        """32 secret bytes that this node and ``did`` both get, and nobody else: X25519, HKDF."""
        ...

    def handshake_key(self) -> bytes:
        """The seed of the key, 32 bytes, for the transport's handshake and nothing else."""
        ...

    def introduce(self) -> bytes:
        """What a peer is shown on first contact: memberships, owner, rotations. Not secret."""
        ...

    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        """Verify what ``peer``, as the transport has authenticated it, shows of itself.

        Statements that are expired or revoked, or belong to somebody else, count for nothing.

        Errors: :class:`NotVerified` where it is malformed, or shows a rotation in conflict.
        """
        ...

    async def invite(
        self, group: str, addresses: Sequence[str], *, seconds: float, may_invite: bool = False
    ) -> Invitation:
        """A fresh invitation into a group of this name, founded by this node where it has none.

        It is good once, for as many seconds; ``may_invite`` lets who takes it invite others.

        Errors: :class:`RequestError` where this node may not invite into the group.
        """
        ...

    def invitation(self, line: str) -> Invitation:
        """What a line says. Errors: :class:`RequestError` where it is none, or has expired."""
        ...

    def answer_to(self, invitation: Invitation) -> bytes:
        """What shows the inviter that this node holds the invitation, without its secret."""
        ...

    async def admit(self, peer: str, answer: bytes) -> bytes:
        """The membership for ``peer``, who answered an invitation of this node; it is used up.

        Errors: :class:`NotVerified` where there is none such, or it was used, or has expired.
        """
        ...

    async def join(self, invitation: Invitation, membership: bytes) -> Group:
        """Verify and keep what :meth:`admit` gave on the other side.

        Errors: :class:`NotVerified`.
        """
        ...


class Stream(Protocol):
    """Frames to and from one authenticated peer, each of 0 to the limit of its protocol bytes.

    Each operation has a deadline in seconds and may be cancelled. A cancelled or late ``receive``
    loses nothing; a ``send`` that did not finish leaves the stream of no use.

    Errors of ``send``, ``receive`` and ``end``:
      PeerLost: the connection broke, the peer died or reset the stream.
      DeadlinePassed: the peer did not answer, or did not read, in time.
      FrameError: what came, or should be sent, is over the limit; the stream is of no use then.
      StreamEnded, of ``receive``: the peer said that it sends no more.
    """

    @property
    def peer(self) -> str:
        """The peer id at the other end, authenticated by the transport."""
        ...

    @property
    def protocol(self) -> str: ...

    async def send(
        self, frame: bytes | bytearray | memoryview, *, seconds: float = DEADLINE
    ) -> None:
        """Send one frame; returns once the transport has taken it. One sender at a time."""
        ...

    async def receive(self, *, seconds: float = DEADLINE) -> bytes:
        """The next frame. One receiver at a time."""
        ...

    async def end(self, *, seconds: float = DEADLINE) -> None:
        """Say that nothing more will be sent; the other direction stays open."""
        ...

    async def aclose(self) -> None:
        """Give the stream up at once; a peer not told by :meth:`end` sees :class:`PeerLost`."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Door(Protocol):
    """Who may come in, asked by a transport; core gives it one."""

    def allows(self, peer: str, protocol: str) -> bool:
        """Whether ``peer`` may open a stream of ``protocol`` here: asked for every one, cheap."""
        ...

    async def greet(self, peer: str) -> None:
        """Called after each connection that this node dialled, before anything else uses it.

        Errors: :class:`PeerDenied`; the connection is then closed.
        """
        ...


class Transport(Protocol):
    """Streams, records and messages between peers.

    Errors of whatever reaches for a peer: :class:`PeerUnreachable`, :class:`PeerDenied`,
    :class:`DeadlinePassed`.
    """

    @property
    def addresses(self) -> Sequence[str]:
        """Multiaddresses under which this node can be dialled, each with its peer id."""
        ...

    def guard(self, door: Door) -> None:
        """Ask ``door`` from now on. Until then a transport lets nobody in."""
        ...

    async def connect(self, addresses: Sequence[str], *, seconds: float = DEADLINE) -> str:
        """Connect to the peer that these addresses name, all of one; returns its peer id."""
        ...

    async def disconnect(self, peer: str) -> None:
        """Close every connection to a peer; its streams are lost."""
        ...

    def links(self) -> Sequence[Link]:
        """The connections that are open now, the best of each peer."""
        ...

    async def ping(self, peer: str, *, seconds: float = DEADLINE) -> float:
        """The time in seconds of one round trip to a peer, which is connected to if need be."""
        ...

    def open(
        self, peer: str, protocol: str, *, max_frame: int = MAX_FRAME, seconds: float = DEADLINE
    ) -> AbstractAsyncContextManager[Stream]:
        """A stream to a peer, which is connected to if need be; leaving the context closes it.

        Errors, besides those of the class: :class:`ProtocolRefused` where it does not serve it.
        """
        ...

    def serve(
        self, protocol: str, handler: StreamHandler, *, max_frame: int = MAX_FRAME
    ) -> AbstractAsyncContextManager[None]:
        """Serve a protocol while the context is open; leaving it ends the handlers that still run.

        Each stream has a task of its own and is closed when ``handler`` returns. What a handler
        raises ends its own stream only.
        """
        ...

    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        """Publish a record of this node's own, signed, good for ``seconds``; replaces the last.

        It is kept alive until the node closes. ``body`` has at most 16 KiB; errors:
        :class:`FrameError` for a longer one.
        """
        ...

    async def lookup(self, peer: str, name: str, *, seconds: float = DEADLINE) -> Record | None:
        """The newest record of a peer under this name, asked of the network, not from memory."""
        ...

    async def provide(self, key: str, *, seconds: float) -> None:
        """Say that this node has what ``key`` names; kept alive until the node closes."""
        ...

    async def providers(self, key: str, *, seconds: float = DEADLINE) -> Sequence[str]:
        """Peer ids of those who say that they have it, without this node; nothing is proved yet."""
        ...

    async def nearest(self, key: str, k: int, *, seconds: float = DEADLINE) -> Sequence[str]:
        """The ``k`` peers nearest to a key in the directory's metric, nearest first."""
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[ReceiveChannel[Broadcast]]:
        """Messages on a topic while the context is open; a slow reader loses the oldest.

        None are of an author whom the door does not let say :data:`HELLO`, whoever passed them on.
        """
        ...

    async def broadcast(self, topic: str, body: bytes) -> None:
        """Send a message, of at most 32 KiB, to everyone who subscribes to the topic.

        Errors: :class:`FrameError` for a longer one.
        """
        ...

    async def data_channel(
        self, stream: Stream, *, seconds: float = DEADLINE
    ) -> DataChannel | None:
        """A TCP connection of its own beside ``stream``, on which both ends call this.

        The end that opened the stream is the client of TLS. None, on both ends, where there is no
        direct path between the two: the stream then has to serve. It goes on being usable.
        """
        ...
