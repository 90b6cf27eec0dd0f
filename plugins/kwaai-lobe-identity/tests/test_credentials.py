"""The controller credential: made by the book, verified by others, and strict with theirs.

No maintained library on PyPI for Python 3.11 verifies version 2.0 of the data model secured as
``vc+jwt``: openvc-core takes it as Data Integrity and as SD-JWT, its VC-JWT is that of version 1.1.
So the bytes of our token are verified by PyJWT with the key to which openvc resolves its ``kid``,
and the document in it by openvc, under our key as an SD-JWT without disclosures.
"""

from __future__ import annotations

import json
import time
from copy import deepcopy
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jwcrypto.common import base64url_decode, base64url_encode
from openvc import verify_credential
from openvc.did.did_key import DidKeyResolver
from openvc.errors import OpenvcError

from kwaai_core import ConfigError, NotVerified, Owner, RequestError
from kwaai_lobe_identity.credentials import certify, control
from kwaai_lobe_identity.jose import sign, signed
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import key_url
from kwaai_lobe_identity.owner import OwnerKey

ADA, NODE, EVE = (Key(bytes([n]) * 32) for n in range(1, 4))
OWNER = Owner(ADA.did, "Ada Lovelace", "person")
NOW = time.time()
HEADER = {"alg": "EdDSA", "kid": key_url(ADA.did), "typ": "vc+jwt", "cty": "vc"}
GOOD = certify(ADA, OWNER, NODE.did, begins=NOW - 60, expires=NOW + 3600)
DOCUMENT: dict[str, Any] = json.loads(base64url_decode(GOOD.split(".")[1]))


def sealed(document: Any, header: Any = None, key: Key = ADA) -> str:
    return signed(key, header or HEADER, json.dumps(document).encode())


def changed(**changes: Any) -> dict[str, Any]:
    """The document with values changed, by path; None removes one."""
    result = deepcopy(DOCUMENT)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = result
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return result


def test_what_it_says() -> None:
    found = control(GOOD)
    assert (found.owner, found.node) == (OWNER, NODE.did)
    assert found.holds([NODE.did], NOW)
    assert not found.holds([EVE.did], NOW)
    assert not found.holds([NODE.did], NOW + 3600)
    assert not found.holds([NODE.did], NOW - 120)
    assert DOCUMENT["@context"][0] == "https://www.w3.org/ns/credentials/v2"
    assert "vc" not in DOCUMENT
    assert jwt.get_unverified_header(GOOD) == HEADER


def sd_jwt(document: Any) -> str:
    return sealed(document, {"alg": "EdDSA", "kid": key_url(ADA.did), "typ": "vc+sd-jwt"}) + "~"


def test_another_credential_library_accepts_the_document() -> None:
    result = verify_credential(sd_jwt(DOCUMENT))
    assert (result.issuer, result.expired) == (ADA.did, False)
    assert result.credential["credentialSubject"] == DOCUMENT["credentialSubject"]


@pytest.mark.parametrize(
    "changes",
    [
        {"@context": ["https://www.w3.org/2018/other"]},
        {"type": ["ControllerCredential"]},
        {"validUntil": "2020-01-01T00:00:00Z"},
        {"validFrom": "yesterday"},
        {"issuer": NODE.did},
    ],
    ids=str,
)
def test_it_would_refuse_another_and_so_do_we(changes: dict[str, Any]) -> None:
    document = DOCUMENT | changes
    with pytest.raises(OpenvcError):
        verify_credential(sd_jwt(document))
    try:
        assert not control(sealed(document)).holds([NODE.did], NOW)
    except NotVerified:
        pass


def test_others_verify_the_token() -> None:
    method = DidKeyResolver().resolve(ADA.did).key_by_kid(HEADER["kid"])
    assert method is not None
    key = jwt.PyJWK(method.public_key_jwk, "EdDSA")
    decoded = jwt.api_jws.decode(GOOD, key, algorithms=["EdDSA"])
    assert json.loads(decoded) == DOCUMENT


def test_we_verify_the_token_of_others() -> None:
    algorithm = jwt.get_algorithm_by_name("EdDSA")
    key = algorithm.from_jwk(ADA.jwk.export())
    headers = {"typ": "vc+jwt", "kid": key_url(ADA.did)}
    token = jwt.encode(DOCUMENT, key, algorithm="EdDSA", headers=headers)
    assert control(token).owner == OWNER
    with_issuer = changed(issuer={"id": ADA.did, "name": "somebody"})
    assert (
        control(jwt.encode(with_issuer, key, algorithm="EdDSA", headers=headers)).node == NODE.did
    )


@given(st.sampled_from(["person", "organisation"]), st.sampled_from(["Ada", "Æther 東京 & Söhne"]))
def test_any_owner(kind: Any, name: str) -> None:
    owner = Owner(ADA.did, name, kind)
    jwt_ = certify(ADA, owner, NODE.did, begins=NOW, expires=NOW + 1)
    assert control(jwt_).owner == owner


@pytest.mark.parametrize(
    "changes",
    [
        {"@context": None},
        {"@context": []},
        {"@context": ["https://www.w3.org/2018/credentials/v1"]},
        {"@context": {"0": "https://www.w3.org/ns/credentials/v2"}},
        {"type": ["VerifiableCredential"]},
        {"type": "ControllerCredential"},
        {"type": [["VerifiableCredential"]]},
        {"issuer": None},
        {"issuer": NODE.did},
        {"issuer": {}},
        {"vc": {}},
        {"validFrom": None},
        {"validFrom": "2026-01-01T00:00:00"},
        {"validFrom": "9999-99-99T00:00:00Z"},
        {"validUntil": None},
        {"validUntil": 7},
        {"validUntil": "0001-01-01T00:00:00+23:59"},
        {"credentialSubject": []},
        {"credentialSubject": "x"},
        {"credentialSubject__id": None},
        {"credentialSubject__id": "did:web:example.com"},
        {"credentialSubject__id": 7},
        {"credentialSubject__controller": ADA.did},
        {"credentialSubject__controller__id": NODE.did},
        {"credentialSubject__controller__type": "Robot"},
        {"credentialSubject__controller__type": ["Person"]},
        {"credentialSubject__controller__name": None},
        {"credentialSubject__controller__name": ""},
        {"credentialSubject__controller__name": " Ada"},
        {"credentialSubject__controller__name": "Ada\x1b[2J"},
        {"credentialSubject__controller__name": "Ada\u202e"},
        {"credentialSubject__controller__name": "\ud800"},
        {"credentialSubject__controller__name": "A" * 101},
        {"credentialSubject__controller__name": 7},
        {"credentialStatus": {"type": "BitstringStatusListEntry"}},
    ],
    ids=str,
)
def test_a_signed_document_that_says_something_else(changes: dict[str, Any]) -> None:
    try:
        found = control(sealed(changed(**changes)))
    except NotVerified as error:
        assert "malformed" in error.message or "no did:key" in error.message
    else:
        assert changes == {"validUntil": "0001-01-01T00:00:00+23:59"}
        assert not found.holds([NODE.did], NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"typ": "JWT"},
        {"typ": "vp+jwt"},
        {"typ": None},
        {"kid": key_url(NODE.did)},
        {"kid": ADA.did},
        {"crit": ["x"]},
        {"purpose": "kwaai/record/1"},
        {"jwk": {}},
    ],
    ids=str,
)
def test_another_header(changes: dict[str, Any]) -> None:
    header = {key: value for key, value in (HEADER | changes).items() if value is not None}
    algorithm = jwt.get_algorithm_by_name("EdDSA")
    parts = [base64url_encode(json.dumps(part)) for part in (header, DOCUMENT)]
    signature = algorithm.sign(".".join(parts).encode(), algorithm.from_jwk(ADA.jwk.export()))
    with pytest.raises(NotVerified):
        control(".".join([*parts, base64url_encode(signature)]))


def test_a_node_s_own_signature_is_no_credential() -> None:
    payload = json.dumps(DOCUMENT).encode()
    with pytest.raises(NotVerified, match="nobody here understands"):
        control(sign(ADA, "record", payload, typ="vc+jwt"))


@given(st.text(max_size=200) | st.text(max_size=50).map(sealed))
def test_junk(text: str) -> None:
    with pytest.raises(NotVerified):
        control(text)


def test_an_owner_on_a_machine_of_its_own(town: Any) -> None:
    owners, (node,) = town.state("owner"), town("node")
    made = OwnerKey.create(owners, "Kwaai Foundation", "organisation", lambda: b"words")
    assert OwnerKey.find(owners) == made
    assert node.owner is None
    jwt_ = made.sign(node.did, b"words", begins=town.now, days=30)
    with pytest.raises(ConfigError, match="cannot be opened: the passphrase is wrong"):
        made.sign(node.did, b"other", begins=town.now, days=30)
    node._attached.attach(jwt_, [node.did], town.now)
    assert node.owner == made.owner
    assert town.open("node").owner == made.owner
    met = town.meets("peer", "node")
    assert met.owner == made.owner
    thief = town("thief")[0]
    assert town("peer")[0].meet(thief.peer_id, node.introduce()).owner is None
    assert town.rotate("node").owner == made.owner
    assert town.meets("peer", "node").owner == made.owner
    town.now += 30 * 86_400
    assert town("node")[0].owner is None
    assert town.meets("peer", "node").owner is None


def test_a_meeting_ends_with_the_credential(town: Any) -> None:
    made = OwnerKey.create(town.state("owner"), "Ada", "person", lambda: b"words")
    (node,) = town("node")
    jwt_ = made.sign(node.did, b"words", begins=town.now, days=1)
    node._attached.attach(jwt_, [node.did], town.now)
    town.now += 86_400 - 5
    assert town.meets("peer", "node").expires == town.now + 5


def test_what_cannot_be_attached(town: Any) -> None:
    node, other = town("node", "other")
    made = OwnerKey.create(town.state("owner"), "Ada", "person", lambda: b"words")
    jwt_ = made.sign(node.did, b"words", begins=town.now, days=1)
    with pytest.raises(RequestError, match="not for this node"):
        other._attached.attach(jwt_, [other.did], town.now)
    with pytest.raises(RequestError, match="has expired"):
        node._attached.attach(jwt_, [node.did], town.now + 86_400)
    with pytest.raises(RequestError, match="cannot be taken"):
        node._attached.attach(jwt_[:-3], [node.did], town.now)
    assert node.owner is None


def test_a_damaged_credential_is_said(town: Any) -> None:
    town("node")
    town.state("node").replace("owner.jwt", b"\xff")
    with pytest.raises(ConfigError, match=r"owner.jwt cannot be used: .*attach again"):
        town.open("node")


@pytest.mark.parametrize("name", ["", " ", "a" * 101, "Ada\n", "\x1b[2J"])
def test_names_that_cannot_be_shown(town: Any, name: str) -> None:
    with pytest.raises(RequestError, match="cannot be a name"):
        OwnerKey.create(town.state("owner"), name, "person", lambda: b"words")
    with pytest.raises(RequestError, match="owner create"):
        OwnerKey.find(town.state("owner"))


@pytest.mark.parametrize("damage", [b"{}", b"[]", b'{"name": "Ada", "kind": "robot"}', b"\xff"])
def test_a_damaged_owner(town: Any, damage: bytes) -> None:
    owners = town.state("owner")
    OwnerKey.create(owners, "Ada", "person", lambda: b"words")
    with pytest.raises(RequestError, match="never overwritten"):
        OwnerKey.create(owners, "Eve", "person", lambda: b"words")
    owners.replace("owner.json", damage)
    with pytest.raises(ConfigError, match=r"owner.json cannot be used"):
        OwnerKey.find(owners)
