"""A private key and all that it does. Verification, which needs none, is in :mod:`.jose`."""

from __future__ import annotations

import hashlib
import secrets

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwcrypto.common import base64url_encode
from jwcrypto.jwk import JWK

from kwaai_core import NotVerified, RequestError
from kwaai_lobe_identity.names import did_of_key, key_of_did, montgomery, peer_of_key

MAX_DERIVED = 255 * 32
"""How many bytes HKDF-SHA256 gives at most: RFC 5869, section 2.3."""


class Key:
    """An Ed25519 key of a 32-byte seed: RFC 8032."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self.public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        self.did = did_of_key(self.public)
        self.peer_id = peer_of_key(self.public)
        self.jwk = JWK(
            kty="OKP", crv="Ed25519", x=base64url_encode(self.public), d=base64url_encode(seed)
        )

    def __repr__(self) -> str:
        return f"<Key of {self.did}>"  # never the seed

    @classmethod
    def generate(cls) -> Key:
        return cls(secrets.token_bytes(32))

    def derive(self, label: str, n: int) -> bytes:
        """See :meth:`kwaai_core.Identity.derive`. Errors: :class:`RequestError` for too many."""
        if not 0 < n <= MAX_DERIVED:
            raise RequestError(f"{n} bytes cannot be derived: 1 to {MAX_DERIVED} can")
        return _expanded(self.seed, b"kwaai/derive/1\0" + label.encode(), n)

    def agree(self, did: str, label: str) -> bytes:
        """See :meth:`kwaai_core.Identity.agree`; X25519 with the keys that go with both DIDs."""
        theirs = X25519PublicKey.from_public_bytes(montgomery(key_of_did(did)))
        # RFC 8032, section 5.1.5: the secret scalar; X25519 clamps it in the same way
        mine = X25519PrivateKey.from_private_bytes(hashlib.sha512(self.seed).digest()[:32])
        try:
            shared = mine.exchange(theirs)
        except ValueError:  # all zeros: the other key has a small order
            raise NotVerified(f"{did} is a key that everybody would agree with") from None
        pair = "\0".join(sorted([self.did, did])).encode()
        return _expanded(shared, b"kwaai/agree/1\0" + pair + b"\0" + label.encode(), 32)


def _expanded(secret: bytes, info: bytes, n: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=n, salt=None, info=info).derive(secret)
