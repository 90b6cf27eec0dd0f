"""A private network: everything on a connection under a key that all its members have.

As libp2p's specification of private networks says: XSalsa20, with a nonce of 24 bytes sent first
by each side. (py-libp2p 0.8.1 uses a nonce of 8, and so talks to no other implementation.)
"""

from __future__ import annotations

import secrets
import struct

import trio
from Crypto.Cipher import Salsa20

_NONCE = 24
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_ROUNDS = (  # the quarter rounds of a column round, then those of a row round
    (0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11),
    (0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14),
)  # fmt: skip


def hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """The key that XSalsa20 derives from its own and the first 16 bytes of its nonce."""
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", nonce)
    x = [_SIGMA[0], *k[:4], _SIGMA[1], *n, _SIGMA[2], *k[4:], _SIGMA[3]]
    for _ in range(10):
        for a, b, c, d in _ROUNDS:
            x[b] ^= _rotated(x[a] + x[d], 7)
            x[c] ^= _rotated(x[b] + x[a], 9)
            x[d] ^= _rotated(x[c] + x[b], 13)
            x[a] ^= _rotated(x[d] + x[c], 18)
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


def _rotated(word: int, bits: int) -> int:
    word &= 0xFFFFFFFF
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF


def _cipher(key: bytes, nonce: bytes) -> Salsa20.Salsa20Cipher:
    return Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:])


class PrivateStream(trio.abc.Stream):
    """A stream under the key of a private network."""

    def __init__(self, stream: trio.abc.Stream, key: bytes) -> None:
        self._stream = stream
        self._key = key
        self._out: Salsa20.Salsa20Cipher | None = None
        self._in: Salsa20.Salsa20Cipher | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        prefix = b""
        if self._out is None:
            prefix = secrets.token_bytes(_NONCE)
            self._out = _cipher(self._key, prefix)
        await self._stream.send_all(prefix + self._out.encrypt(bytes(data)))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._in is None:
            nonce = b""
            while len(nonce) < _NONCE:
                part = await self._stream.receive_some(_NONCE - len(nonce))
                if not part:
                    return b""
                nonce += part
            self._in = _cipher(self._key, nonce)
        return self._in.decrypt(bytes(await self._stream.receive_some(max_bytes)))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
