"""What peers sign for the directory, and which of it is believed.

A statement is a JWS of its subject, made for the purpose ``record``. Three kinds exist: a *record*
is what a peer says under a name, a *provider* statement says that it has what a key names, and a
*contact* gives the addresses of the peer itself. What travels is ``sealed``: the subject's DID, a
space, the JWS. Its payload is one line of JSON and then the body.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import base58

from kwaai_core import Identity, NotVerified

Kind = Literal["record", "provider", "contact"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MAX_BODY = 16 << 10
MAX_NAME = 256
MAX_SEALED = 32 << 10
"""The longest sealed statement: the longest body and name, in base64, and what is around them."""

MAX_LIFE = 7 * 24 * 3600.0
"""How many seconds ahead a statement may expire; a longer one could not be taken back in time."""

SKEW = 300.0
"""By how many seconds the clocks of two honest peers may differ."""

MAX_ADDRESSES = 16
MAX_ADDRESS = 256

_PURPOSE = "record"
_MAX_SEQUENCE = 1 << 62


@dataclass(frozen=True, slots=True)
class Statement:
    """A verified statement; ``subject`` is the DID that signed it, ``peer`` its peer id."""

    kind: Kind
    subject: str
    peer: str
    name: str
    body: bytes
    sequence: int
    expires: float
    sealed: str

    @property
    def key(self) -> bytes:
        """Where in the directory it is kept."""
        return key_of(self.kind, self.peer, self.name)

    def replaces(self, other: Statement | None) -> bool:
        """Whether this is newer than ``other``, or there is none."""
        return other is None or self.sequence > other.sequence


def key_of(kind: Kind, peer: str, name: str) -> bytes:
    """The 32 bytes under which a statement is kept. All providers of one name share a key."""
    if kind == "contact":
        return position_of(peer)
    owner = peer if kind == "record" else ""
    return hashlib.sha256(f"{kind}\n{owner}\n{name}".encode()).digest()


def position_of(peer: str) -> bytes:
    """Where a peer is in the directory: SHA-256 of the multihash that its id is, as in libp2p.

    Errors: :class:`NotVerified` for what is no peer id.
    """
    try:
        return hashlib.sha256(base58.b58decode(peer)).digest()
    except ValueError as error:
        raise NotVerified(f"{peer!r} is no peer id: {error}") from None


def distance(one: bytes, other: bytes) -> int:
    """The XOR metric of Kademlia (Maymounkov and Mazières, 2002)."""
    return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")


def seal(
    identity: Identity, kind: Kind, name: str, body: bytes, *, sequence: int, expires: float
) -> Statement:
    """Sign a statement of this node. Its sizes are the caller's to check."""
    head = {"expires": expires, "kind": kind, "name": name, "sequence": sequence}
    payload = json.dumps(head, separators=(",", ":")).encode() + b"\n" + body
    sealed = f"{identity.did} {identity.sign(_PURPOSE, payload)}"
    return Statement(kind, identity.did, identity.peer_id, name, body, sequence, expires, sealed)


def unseal(identity: Identity, sealed: object, now: float) -> Statement:
    """The statement in what a peer sent, verified. ``now`` is in seconds since 1970.

    Errors: :class:`NotVerified` where it is malformed, oversize, of another key than it says,
    expired, or good for longer than any may be.
    """
    if not isinstance(sealed, str) or len(sealed) > MAX_SEALED:
        raise NotVerified("a statement is no text of the allowed length")
    subject, _, jws = sealed.partition(" ")
    peer = identity.peer_of(subject)
    head, newline, body = identity.verify(_PURPOSE, subject, jws).partition(b"\n")
    if not newline or len(body) > MAX_BODY:
        raise NotVerified(f"a statement of {peer} has no head, or more than {MAX_BODY} bytes")
    kind, name, sequence, expires = _read(head, peer)
    if not now < expires <= now + MAX_LIFE + SKEW:
        raise NotVerified(f"a statement of {peer} has expired, or is good for too long")
    return Statement(kind, subject, peer, name, body, sequence, float(expires), sealed)


def fit_name(name: str) -> bool:
    """Whether this can be the name of a record or the key of a provider."""
    return len(name) <= MAX_NAME and name.isprintable()


def _read(head: bytes, peer: str) -> tuple[Kind, str, int, float]:
    try:
        facts = json.loads(head)
        kind, name = facts["kind"], facts["name"]
        sequence, expires = facts["sequence"], facts["expires"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NotVerified(f"a statement of {peer} is malformed") from None
    sound = (
        kind in KINDS
        and isinstance(name, str)
        and fit_name(name)
        and isinstance(sequence, int)
        and not isinstance(sequence, bool)
        and 0 <= sequence < _MAX_SEQUENCE
        and isinstance(expires, int | float)
        and not isinstance(expires, bool)
    )
    if not sound:
        raise NotVerified(f"a statement of {peer} is malformed")
    return cast(Kind, kind), name, sequence, expires


def addresses_in(contact: Statement) -> tuple[str, ...]:
    """The addresses that a contact gives, none where it gives none that could be right."""
    try:
        found = json.loads(contact.body)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(found, list):
        return ()
    return plausible(contact.peer, found)


def plausible(peer: str, addresses: list[object]) -> tuple[str, ...]:
    """Those that have the form of an address of ``peer``, each once, of a bounded number."""
    suffix = f"/p2p/{peer}"
    good = (
        address
        for address in addresses[: 4 * MAX_ADDRESSES]
        if isinstance(address, str)
        and len(address) <= MAX_ADDRESS
        and address.startswith("/")
        and address.endswith(suffix)
        and address.isascii()
        and address.isprintable()
    )
    return tuple(dict.fromkeys(good))[:MAX_ADDRESSES]
