"""Invitations: a line that holds a secret, and what the inviter keeps, which does not.

The secret is the seed of a key. The inviter keeps only that key's DID, so whoever reads its files
cannot take the invitation; whoever holds the line signs its own DID with the key, so the secret
is not shown, and what was overheard serves nobody else.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from jwcrypto.common import base64url_decode, base64url_encode

from kwaai_core import Group, Invitation, NotVerified, RequestError
from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.jose import opened, sign
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.memberships import named_group
from kwaai_lobe_identity.names import key_of_did, key_of_peer

_PREFIX = "kwaai-invitation-1."
_MAX_LINE, _MAX_ADDRESSES, _MAX_ADDRESS = 8192, 16, 256
_PURPOSE = "answer"


@dataclass(frozen=True, slots=True)
class _Line:
    peer: str
    addresses: tuple[str, ...]
    founder: str
    group: str
    expires: int
    secret: str


@dataclass(frozen=True, slots=True)
class _Answer:
    joiner: str
    inviter: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What the inviter keeps of one invitation; ``did`` is that of its key."""

    did: str
    founder: str
    group: str
    may_invite: bool
    expires: int


def make(peer: str, addresses: Sequence[str], group: Group, expires: int) -> tuple[Invitation, str]:
    """A fresh invitation, and the DID of its key. Errors: :class:`RequestError`."""
    try:
        _check(addresses)
    except ValueError as error:
        raise RequestError(f"nobody could be invited so: {error}") from None
    secret = base64url_encode(secrets.token_bytes(32))
    says = _Line(peer, tuple(addresses), group.founder, group.name, expires, secret)
    line = _PREFIX + base64url_encode(written(says))
    invitation, key = _read(line)
    return invitation, key.did


def read(line: str, now: float) -> Invitation:
    """What a line says. Errors: :class:`RequestError` where it is none, or has expired."""
    invitation, _ = _read(line)
    if invitation.expires <= now:
        raise RequestError("the invitation has expired: ask for another")
    return invitation


def _read(line: str) -> tuple[Invitation, Key]:
    try:
        with parsing("the invitation"):
            encoded = line.removeprefix(_PREFIX)
            if encoded == line or len(line) > _MAX_LINE:
                raise ValueError("it is not one line that begins with " + _PREFIX)
            says = parsed(_Line, loaded(base64url_decode(encoded)))
            if _PREFIX + base64url_encode(written(says)) != line:
                raise ValueError("it is not written as one is")
            group = named_group(says.founder, says.group)
            key_of_peer(says.peer)
            _check(says.addresses)
            seed = base64url_decode(says.secret)
            if len(seed) != 32:
                raise ValueError("its secret is not 32 bytes")
            found = Invitation(line, says.peer, says.addresses, group, float(says.expires))
            return found, Key(seed)
    except NotVerified as error:
        raise RequestError(f"{error.message}: copy the whole line, as it was printed") from None


def _check(addresses: Sequence[str]) -> None:
    if len(addresses) > _MAX_ADDRESSES:
        raise ValueError(f"it has {len(addresses)} addresses, and may have {_MAX_ADDRESSES}")
    for address in addresses:
        if not (address.startswith("/") and address.isascii() and address.isprintable()):
            raise ValueError(f"{address!r:.80} is no multiaddress")
        if len(address) > _MAX_ADDRESS:
            raise ValueError("an address is too long")


def answer(invitation: Invitation, did: str) -> bytes:
    """What shows the inviter that ``did`` holds the invitation. Errors: :class:`RequestError`."""
    _, key = _read(invitation.line)
    return sign(key, _PURPOSE, written(_Answer(did, invitation.peer))).encode()


def answered(answer: bytes, joiner: str, inviter: str) -> str:
    """The DID of the invitation that ``joiner`` answered. Errors: :class:`NotVerified`."""
    with parsing("the answer to an invitation"):
        did, payload = opened(_PURPOSE, answer.decode("ascii"))
        says = parsed(_Answer, loaded(payload))
    if says != _Answer(joiner, inviter):
        raise NotVerified("the answer to an invitation is somebody else's")
    key_of_did(did)
    return did
