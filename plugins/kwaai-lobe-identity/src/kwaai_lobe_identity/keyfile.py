"""Key files: a JWK of RFC 8037, its private part in a JWE of RFC 7516 where there is a passphrase.

The passphrase becomes a key by scrypt (RFC 7914). The parameters are in the protected header of
the JWE, and so is the public key, so that neither can be exchanged for another's.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass

from jwcrypto.common import JWException, base64url_decode, base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from kwaai_core import ConfigError, NotVerified, RequestError
from kwaai_lobe_identity.documents import loaded, parsed, parsing
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import did_of_key

_N, _R, _P = 1 << 15, 8, 1
_KDF = f"scrypt/{_N}/{_R}/{_P}"
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Plain:
    kty: str
    crv: str
    x: str
    d: str


@dataclass(frozen=True, slots=True)
class _Locked:
    kty: str
    crv: str
    x: str
    jwe: str


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key as it lies on disk; the public part needs no passphrase."""

    content: bytes
    public: bytes
    locked: bool

    @property
    def did(self) -> str:
        return did_of_key(self.public)

    @classmethod
    def of(cls, key: Key, passphrase: bytes | None) -> KeyFile:
        """The file of a key, locked where there is a passphrase."""
        facts = {"kty": "OKP", "crv": "Ed25519", "x": base64url_encode(key.public)}
        if passphrase is None:
            facts["d"] = base64url_encode(key.seed)
        else:
            facts["jwe"] = _locked(key, passphrase)
        content = json.dumps(facts, indent=1).encode() + b"\n"
        return cls(content, key.public, passphrase is not None)

    @classmethod
    def parse(cls, content: bytes) -> KeyFile:
        """What was written by :meth:`of`. Errors: :class:`NotVerified`."""
        with parsing("a key file"):
            if len(content) > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES} bytes")
            document = loaded(content)
            is_locked = isinstance(document, dict) and "jwe" in document
            facts = parsed(_Locked, document) if is_locked else parsed(_Plain, document)
            if (facts.kty, facts.crv) != ("OKP", "Ed25519"):
                raise ValueError("it is of another kind than Ed25519")
            public = base64url_decode(facts.x)
            if base64url_encode(public) != facts.x or len(public) != 32:
                raise ValueError("its public key is not 32 bytes")
            return cls(content, public, is_locked)

    def open(self, passphrase: bytes | None) -> Key:
        """The key. Errors: :class:`NotVerified`, for a wrong or missing passphrase too."""
        with parsing("a key file"):
            document = loaded(self.content)
            if self.locked:
                seed = _unlocked(parsed(_Locked, document), passphrase)
            else:
                seed = base64url_decode(parsed(_Plain, document).d)
            if len(seed) != 32:
                raise ValueError("its private key is not 32 bytes")
            key = Key(seed)
            if key.public != self.public:
                raise ValueError("its private and its public key are not of one pair")
            return key


def read_key_file(folder: Folder, name: str) -> KeyFile | None:
    """A key file of a folder, None where there is none. Errors: :class:`ConfigError`."""
    content = folder.read(name)
    if content is None:
        return None
    path, mode = folder.path / name, folder.mode(name)
    if mode & 0o077:
        raise ConfigError(f"{path} is open to others (mode {mode:o}): chmod 600 {path}")
    try:
        return KeyFile.parse(content)
    except NotVerified as error:
        raise ConfigError(
            f"{path} cannot be used: {error.message}. It is left as it is: put the file of your "
            "backup in its place, or move it away to become somebody else"
        ) from None


def open_key_file(path: object, file: KeyFile, passphrase: bytes | None) -> Key:
    """The key of a file. Errors: :class:`ConfigError`."""
    try:
        return file.open(passphrase)
    except NotVerified as error:
        raise ConfigError(f"{path} cannot be opened: {error.message}") from None


def _derived(passphrase: bytes, salt: bytes) -> JWK:
    memory = 128 * _N * _R * 2  # twice what it needs, which OpenSSL wants to be allowed
    key = hashlib.scrypt(passphrase, salt=salt, n=_N, r=_R, p=_P, maxmem=memory, dklen=32)
    return JWK(kty="oct", k=base64url_encode(key))


def _locked(key: Key, passphrase: bytes) -> str:
    if not passphrase:
        raise RequestError("an empty passphrase locks nothing: give another, or none")
    salt = secrets.token_bytes(16)
    header = {"alg": "dir", "enc": "A256GCM", "kdf": _KDF, "salt": base64url_encode(salt)}
    header["x"] = base64url_encode(key.public)
    sealed = JWE(key.seed, protected=json.dumps(header))
    sealed.add_recipient(_derived(passphrase, salt))
    text: str = sealed.serialize(compact=True)
    return text


def _unlocked(facts: _Locked, passphrase: bytes | None) -> bytes:
    if not passphrase:
        raise NotVerified("it is locked: a passphrase is needed ([identity] passphrase_file)")
    header = loaded(base64url_decode(facts.jwe.partition(".")[0]))
    expected = {"alg": "dir", "enc": "A256GCM", "kdf": _KDF, "salt": header["salt"], "x": facts.x}
    if header != expected:
        raise ValueError("it is locked in an unknown way")
    sealed = JWE()
    try:
        sealed.deserialize(facts.jwe, _derived(passphrase, base64url_decode(header["salt"])))
    except JWException:
        raise NotVerified("the passphrase is wrong, or the file is damaged") from None
    payload: bytes = sealed.payload
    return payload
