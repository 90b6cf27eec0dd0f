"""Signed statements: compact JWS (RFC 7515), EdDSA (RFC 8037) and no other algorithm.

The purpose of a signature stands in its protected header, so it is part of what is signed while
the payload stays what the caller gave.
"""

from __future__ import annotations

import json
from typing import Any

from jwcrypto.common import JWException, base64url_decode, base64url_encode
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from kwaai_core import NotVerified, RequestError
from kwaai_lobe_identity.documents import loaded, parsing
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import key_of_did, key_url

MAX_JWS = 1 << 18
"""The longest statement that is signed or verified, in characters."""


def sign(key: Key, purpose: str, payload: bytes, *, typ: str = "JOSE") -> str:
    """A statement for one purpose. Errors: :class:`RequestError` where it would be too long."""
    return signed(key, _header(key.did, purpose, typ), payload)


def signed(key: Key, header: dict[str, str], payload: bytes) -> str:
    """The compact JWS of a payload under exactly this header."""
    statement = JWS(payload)
    statement.add_signature(key.jwk, protected=json.dumps(header, separators=(",", ":")))
    text: str = statement.serialize(compact=True)
    if len(text) > MAX_JWS:
        raise RequestError(f"a statement of {len(text)} characters is over the limit of {MAX_JWS}")
    return text


def opened(purpose: str, jws: str, *, typ: str = "JOSE") -> tuple[str, bytes]:
    """Who signed a statement for this purpose, and its payload.

    Errors: :class:`NotVerified` for whatever is no such statement.
    """
    header = header_of(jws)
    did = signer_of(header)
    if header != _header(did, purpose, typ):
        raise NotVerified(f"the statement of {did} was not signed as {purpose}, {typ}")
    return did, verified(did, jws)


def header_of(jws: str) -> dict[str, Any]:
    """The header of a compact JWS that is not verified yet. Errors: :class:`NotVerified`."""
    with parsing("a signed statement"):
        if len(jws) > MAX_JWS:
            raise ValueError(f"it has more than {MAX_JWS} characters")
        parts = jws.split(".")
        if len(parts) != 3:
            raise ValueError("it has not three parts")
        decoded = [base64url_decode(part) for part in parts]
        # one statement has one text: no padding, no strange characters, no bits left over
        if [base64url_encode(part) for part in decoded] != parts:
            raise ValueError("its base64url is not canonical")
        header = loaded(decoded[0])
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        return header


def signer_of(header: dict[str, Any]) -> str:
    """The DID whose key a header names, in the only spelling. Errors: :class:`NotVerified`."""
    kid = header.get("kid")
    did = kid.partition("#")[0] if isinstance(kid, str) else ""
    key_of_did(did)
    if kid != key_url(did):
        raise NotVerified(f"{kid!r:.120} is not the URL of the key of {did}")
    return did


def verified(did: str, jws: str) -> bytes:
    """The payload of a JWS that ``did`` signed. The header is the caller's to check."""
    key = JWK(kty="OKP", crv="Ed25519", x=base64url_encode(key_of_did(did)))
    statement = JWS()
    statement.allowed_algs = ["EdDSA"]
    try:
        statement.deserialize(jws, key)
    except (JWException, ValueError, TypeError):
        raise NotVerified(f"the signature is not one of {did}") from None
    payload: bytes = statement.payload
    return payload


def _header(did: str, purpose: str, typ: str) -> dict[str, str]:
    return {"alg": "EdDSA", "kid": key_url(did), "typ": typ, "purpose": f"kwaai/{purpose}/1"}
