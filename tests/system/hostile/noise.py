"""Noise_XX_25519_ChaChaPoly_SHA256, the dialling side; https://noiseprotocol.org/noise.html."""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from hostile.protobuf import field

_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
MAX_PLAIN = 65535 - 16


class Cipher:
    """One direction of a session."""

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._n = 0

    def _nonce(self) -> bytes:
        self._n += 1
        return bytes(4) + (self._n - 1).to_bytes(8, "little")

    def seal(self, plain: bytes, about: bytes = b"") -> bytes:
        return self._aead.encrypt(self._nonce(), plain, about)

    def open(self, sealed: bytes, about: bytes = b"") -> bytes:
        return self._aead.decrypt(self._nonce(), sealed, about)


def public_key(key: Ed25519PrivateKey) -> bytes:
    """libp2p's form of a public key, which its peer id is made of."""
    return field(1, 1) + field(2, key.public_key().public_bytes_raw())


def claim(key: Ed25519PrivateKey, static: X25519PrivateKey) -> bytes:
    """libp2p's handshake payload: who says that this static key is theirs, and the signature."""
    signed = b"noise-libp2p-static-key:" + static.public_key().public_bytes_raw()
    return field(1, public_key(key)) + field(2, key.sign(signed))


class Handshake:
    """Three messages: :meth:`first`, :meth:`second` takes the reply, :meth:`third`."""

    def __init__(self) -> None:
        self._hash = self._chain = _NAME
        self._cipher: Cipher | None = None
        self._ephemeral = X25519PrivateKey.generate()
        self.static = X25519PrivateKey.generate()
        self._mix_hash(b"")

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, shared: bytes) -> None:
        self._chain, key = _derive(self._chain, shared)
        self._cipher = Cipher(key)

    def _seal(self, plain: bytes) -> bytes:
        sealed = self._cipher.seal(plain, self._hash) if self._cipher else plain
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes) -> bytes:
        plain = self._cipher.open(sealed, self._hash) if self._cipher else sealed
        self._mix_hash(sealed)
        return plain

    def first(self) -> bytes:
        mine = self._ephemeral.public_key().public_bytes_raw()
        self._mix_hash(mine)
        return mine + self._seal(b"")

    def second(self, reply: bytes) -> bytes:
        """What the other side claims about itself."""
        self._theirs = X25519PublicKey.from_public_bytes(reply[:32])
        self._mix_hash(reply[:32])
        self._mix_key(self._ephemeral.exchange(self._theirs))
        static = X25519PublicKey.from_public_bytes(self._open(reply[32:80]))
        self._mix_key(self._ephemeral.exchange(static))
        return self._open(reply[80:])

    def third(self, payload: bytes) -> bytes:
        sealed = self._seal(self.static.public_key().public_bytes_raw())
        self._mix_key(self.static.exchange(self._theirs))
        return sealed + self._seal(payload)

    def ciphers(self) -> tuple[Cipher, Cipher]:
        """For what this side sends, and for what it receives."""
        sending, receiving = _derive(self._chain, b"")
        return Cipher(sending), Cipher(receiving)


def _derive(chain: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chain, material, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")
