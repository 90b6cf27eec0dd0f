"""Signed statements: only ours, in one spelling, for one purpose, under one algorithm."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jwcrypto.common import base64url_decode, base64url_encode
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from kwaai_core import NotVerified, RequestError
from kwaai_lobe_identity.jose import MAX_JWS, opened, sign
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import key_url

ADA, BOB = Key(b"a" * 32), Key(b"b" * 32)
GOOD = sign(ADA, "record", b"payload")
HEADER = {"alg": "EdDSA", "kid": key_url(ADA.did), "typ": "JOSE", "purpose": "kwaai/record/1"}


def forged(header: Any, key: JWK = ADA.jwk, payload: bytes = b"payload") -> str:
    """A sound signature over whatever header."""
    algorithm = jwt.get_algorithm_by_name("EdDSA")
    text = header if isinstance(header, str) else json.dumps(header)
    signing = f"{base64url_encode(text)}.{base64url_encode(payload)}"
    signature = algorithm.sign(signing.encode(), algorithm.from_jwk(key.export()))
    return f"{signing}.{base64url_encode(signature)}"


def test_forging_would_work() -> None:
    assert opened("record", forged(HEADER)) == (ADA.did, b"payload")


def test_another_library_verifies_it() -> None:
    header = jwt.get_unverified_header(GOOD)
    key = jwt.PyJWK.from_json(ADA.jwk.export_public())
    assert jwt.api_jws.decode(GOOD, key, algorithms=["EdDSA"]) == b"payload"
    assert header == HEADER


@given(st.binary(max_size=500), st.from_regex(r"[a-z-]{1,20}", fullmatch=True))
@example(b"", "record")
def test_what_is_signed_is_opened(payload: bytes, purpose: str) -> None:
    assert opened(purpose, sign(ADA, purpose, payload)) == (ADA.did, payload)


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "Ed25519"},
        {"alg": None},
        {"kid": ADA.did},
        {"kid": key_url(BOB.did)},
        {"kid": f"{ADA.did}#other"},
        {"kid": f"{ADA.did}#"},
        {"kid": 7},
        {"kid": "\ud800"},
        {"kid": [key_url(ADA.did)]},
        {"typ": "JWT"},
        {"typ": "jose"},
        {"purpose": "kwaai/record/2"},
        {"purpose": "record"},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": True},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}},
        {"jku": "https://example.com/"},
        {"x5c": []},
        {"cty": "vc"},
    ],
    ids=str,
)
def test_another_header_is_refused_although_the_signature_is_sound(change: Any) -> None:
    with pytest.raises(NotVerified):
        opened("record", forged(HEADER | change))


@pytest.mark.parametrize("key", HEADER)
def test_a_header_without_one_of_its_parts_is_refused(key: str) -> None:
    with pytest.raises(NotVerified):
        opened("record", forged({name: value for name, value in HEADER.items() if name != key}))


@pytest.mark.parametrize("header", ["", "[]", "null", "7", '"x"', "{", "[" * 50_000])
def test_a_header_that_is_none(header: str) -> None:
    with pytest.raises(NotVerified):
        opened("record", forged(header))


def test_a_secret_shared_key_is_no_key() -> None:
    secret = JWK(kty="oct", k=base64url_encode(ADA.public))
    statement = JWS(b"payload")
    statement.add_signature(secret, protected=json.dumps(HEADER | {"alg": "HS256"}))
    with pytest.raises(NotVerified):
        opened("record", statement.serialize(compact=True))


def test_the_json_serialisation_is_refused() -> None:
    statement = JWS(b"payload")
    statement.add_signature(ADA.jwk, protected=json.dumps(HEADER))
    with pytest.raises(NotVerified):
        opened("record", statement.serialize())


def test_bits_left_over_in_base64url_are_refused() -> None:
    head, _, signature = GOOD.rpartition(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = signature[:-1] + alphabet[alphabet.index(signature[-1]) + 1]
    assert base64url_decode(twin) == base64url_decode(signature)
    with pytest.raises(NotVerified, match="not canonical"):
        opened("record", f"{head}.{twin}")


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="utf-8"))
def test_any_other_character_is_refused(at: int, character: str) -> None:
    altered = GOOD[:at] + character + GOOD[at + 1 :]
    if altered != GOOD:
        with pytest.raises(NotVerified):
            opened("record", altered)


@given(st.text(max_size=300) | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
def test_junk_is_refused(text: str) -> None:
    with pytest.raises(NotVerified):
        opened("record", text)


def test_sizes() -> None:
    most = MAX_JWS * 3 // 4 - 400
    assert opened("record", sign(ADA, "record", bytes(most)))[1] == bytes(most)
    with pytest.raises(RequestError, match="over the limit"):
        sign(ADA, "record", bytes(MAX_JWS))
    with pytest.raises(NotVerified, match="more than"):
        opened("record", "A" * (MAX_JWS + 1))
