"""The two names of an Ed25519 key, its ``did:key`` and its libp2p peer id, and its document.

Both are base58btc: https://w3c-ccg.github.io/did-key-spec/ and
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kwaai_core import NotVerified

METHOD = "did:key:"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_ED25519, _X25519 = b"\xed\x01", b"\xec\x01"  # multicodec ed25519-pub and x25519-pub
_PEER = bytes.fromhex("002408011220")  # identity multihash of the protobuf {type: Ed25519, data}
_LONGEST = 56  # characters; a peer id has 52, and decoding is quadratic in the length
_P = 2**255 - 19


def did_of_key(public: bytes) -> str:
    """The ``did:key`` of a public key of 32 bytes."""
    return METHOD + _multibase(_ED25519 + public)


def peer_of_key(public: bytes) -> str:
    """The peer id of a public key of 32 bytes."""
    return _base58(_PEER + public)


def key_of_did(did: str) -> bytes:
    """The public key that a ``did:key`` names. Errors: :class:`NotVerified`."""
    if not did.startswith(METHOD + "z"):
        raise NotVerified(f"{did[:100]!r} is no did:key")
    return _key(did.removeprefix(METHOD + "z"), _ED25519, did)


def key_of_peer(peer: str) -> bytes:
    """The public key that a peer id names. Errors: :class:`NotVerified`."""
    return _key(peer, _PEER, peer)


def key_url(did: str) -> str:
    """The URL of a ``did:key``'s signing key: its ``kid``, and ``id`` in its document."""
    return f"{did}#{did.removeprefix(METHOD)}"


def montgomery(public: bytes) -> bytes:
    """The X25519 public key that goes with an Ed25519 one: u = (1 + y) / (1 - y), RFC 7748.

    Errors: :class:`NotVerified` where there is none.
    """
    y = int.from_bytes(public, "little") & (1 << 255) - 1
    if y >= _P or y == 1:
        raise NotVerified(f"{did_of_key(public)} is no point of the curve to agree with")
    return ((1 + y) * pow(1 - y, -1, _P) % _P).to_bytes(32, "little")


def document(did: str) -> Mapping[str, Any]:
    """The DID document of a ``did:key``. Errors: :class:`NotVerified`."""
    public = key_of_did(did)
    signing, agreeing = key_url(did), _multibase(_X25519 + montgomery(public))
    return {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": did,
        "verificationMethod": [_method(did, did.removeprefix(METHOD))],
        "authentication": [signing],
        "assertionMethod": [signing],
        "capabilityInvocation": [signing],
        "capabilityDelegation": [signing],
        "keyAgreement": [_method(did, agreeing)],
    }


def _method(did: str, key: str) -> Mapping[str, str]:
    facts = {"id": f"{did}#{key}", "type": "Multikey", "controller": did}
    return facts | {"publicKeyMultibase": key}


def _multibase(data: bytes) -> str:
    return "z" + _base58(data)


def _base58(data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _key(text: str, prefix: bytes, name: str) -> bytes:
    number = 0
    for character in text[:_LONGEST]:
        number = number * 58 + _VALUES.get(character, 0)
    data = number.to_bytes(_LONGEST, "big")[-len(prefix) - 32 :]
    if not data.startswith(prefix) or _base58(data) != text:  # which junk never is
        raise NotVerified(f"{name[:100]!r} is not the name of an Ed25519 key")
    return data.removeprefix(prefix)
