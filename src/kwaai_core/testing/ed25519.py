"""The names of Ed25519 keys in plain Python: public keys, ``did:key`` and libp2p's peer ids.

Slow, and not meant to keep secrets: for fakes, and to check what a real library says.
"""

from __future__ import annotations

import hashlib
from functools import cache, lru_cache

from kwaai_core.errors import NotVerified

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DID, _DID_PREFIX = "did:key:z", b"\xed\x01"  # multicodec ed25519-pub
_PEER_PREFIX = bytes.fromhex("002408011220")  # identity multihash of a protobuf {Ed25519, key}
_NAMES = 4096  # how many of each are remembered: a simulation asks for few, very often
_LONGEST = 64  # decoding takes time that grows with the square of the length

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_Y = 4 * pow(5, -1, _P) % _P
_Point = tuple[int, int, int, int]


@cache
def public_key(seed: bytes) -> bytes:
    """The public key of a 32-byte seed: RFC 8032, section 5.1.5."""
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    scalar = (scalar & ~7 & (1 << 254) - 1) | 1 << 254
    total, power = (0, 1, 1, 0), (_X, _Y, 1, _X * _Y % _P)
    while scalar:
        if scalar & 1:
            total = _add(total, power)
        power = _add(power, power)
        scalar >>= 1
    inverse = pow(total[2], -1, _P)
    x, y = total[0] * inverse % _P, total[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _add(p: _Point, q: _Point) -> _Point:
    """RFC 8032, section 5.1.4."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


@lru_cache(_NAMES)
def did_key(public: bytes) -> str:
    """The ``did:key`` of a public key."""
    return _DID + _encode(_DID_PREFIX + public)


@lru_cache(_NAMES)
def peer_id(public: bytes) -> str:
    """The libp2p peer id of a public key, in base58."""
    return _encode(_PEER_PREFIX + public)


@lru_cache(_NAMES)
def key_of_did(did: str) -> bytes:
    """The public key that a ``did:key`` names. Errors: :class:`NotVerified`."""
    if not did.startswith(_DID):
        raise NotVerified(f"{did[:80]!r} is no did:key")
    return _decode(did.removeprefix(_DID), _DID_PREFIX, did)


@lru_cache(_NAMES)
def key_of_peer(peer: str) -> bytes:
    """The public key that a peer id names. Errors: :class:`NotVerified`."""
    return _decode(peer, _PEER_PREFIX, peer)


def _encode(data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _decode(text: str, prefix: bytes, whole: str) -> bytes:
    number = 0
    for character in text[:_LONGEST]:
        number = number * 58 + max(0, _ALPHABET.find(character))
    data = number.to_bytes(_LONGEST, "big")[-len(prefix) - 32 :]
    if _encode(data) != text or not data.startswith(prefix):
        raise NotVerified(f"{whole[:80]!r} names no Ed25519 key")
    return data.removeprefix(prefix)
