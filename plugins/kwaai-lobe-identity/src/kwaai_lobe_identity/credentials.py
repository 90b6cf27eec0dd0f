"""The controller credential: an owner's statement that it answers for a node.

W3C Verifiable Credentials Data Model 2.0, secured with JOSE: the payload of the JWS is the
document itself, ``typ`` is ``vc+jwt`` (https://www.w3.org/TR/vc-jose-cose/).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from kwaai_core import Owner
from kwaai_lobe_identity.documents import loaded, parsing
from kwaai_lobe_identity.jose import header_of, signed, signer_of, verified
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import key_of_did, key_url

TYPE = "ControllerCredential"
_V2 = "https://www.w3.org/ns/credentials/v2"
# what of our document the context of the data model does not define
_TERMS = {
    TYPE: "urn:kwaai:ControllerCredential",
    "controller": {"@id": "urn:kwaai:controller", "@type": "@id"},
    "Person": "https://schema.org/Person",
    "Organization": "https://schema.org/Organization",
}
_KINDS: dict[str, Literal["person", "organisation"]] = {
    "Person": "person",
    "Organization": "organisation",
}
_MAX_CHARACTERS = 8192
_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class Control:
    """A verified controller credential; times are in seconds since 1970."""

    owner: Owner
    node: str
    begins: float
    expires: float
    jwt: str

    def holds(self, names: Collection[str], now: float) -> bool:
        """Whether it is good now, for a node of one of these DIDs."""
        return self.node in names and self.begins <= now < self.expires


def valid_name(name: str) -> str:
    """An owner's name, as it can be shown anywhere. Errors: ValueError."""
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"{name!r:.120} cannot be a name: 1 to {_MAX_NAME} printable characters")
    return name


def certify(key: Key, owner: Owner, node: str, *, begins: float, expires: float) -> str:
    """The credential by which an owner answers for a node. Errors: :class:`NotVerified`."""
    key_of_did(node)
    word = next(word for word, kind in _KINDS.items() if kind == owner.kind)
    controller = {"id": owner.did, "type": word, "name": owner.name}
    document = {
        "@context": [_V2, _TERMS],
        "id": uuid.uuid4().urn,
        "type": ["VerifiableCredential", TYPE],
        "issuer": owner.did,
        "validFrom": _written(begins),
        "validUntil": _written(expires),
        "credentialSubject": {"id": node, "controller": controller},
    }
    header = {"alg": "EdDSA", "kid": key_url(owner.did), "typ": "vc+jwt", "cty": "vc"}
    payload = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return signed(key, header, payload)


def control(jwt: str) -> Control:
    """A controller credential, verified in all but time and node. Errors: :class:`NotVerified`."""
    with parsing("the credential"):
        if len(jwt) > _MAX_CHARACTERS:
            raise ValueError(f"it has more than {_MAX_CHARACTERS} characters")
        header = header_of(jwt)
        issuer = signer_of(header)
        # an issuer may add what the specification allows, and nothing that would change a meaning
        if header.get("alg") != "EdDSA" or header.get("typ") != "vc+jwt":
            raise ValueError("it is not signed as vc+jwt with EdDSA")
        if not header.keys() <= {"alg", "kid", "typ", "cty", "iss", "iat"}:
            raise ValueError("its header has what nobody here understands")
        return _control(loaded(verified(issuer, jwt)), issuer, jwt)


def _control(document: Any, issuer: str, jwt: str) -> Control:
    """Errors: ValueError, TypeError, LookupError."""
    if "vc" in document or document["@context"][0] != _V2:
        raise ValueError("it is not of version 2.0 of the data model")
    if not {"VerifiableCredential", TYPE} <= set(document["type"]):
        raise ValueError(f"it is no {TYPE}")
    said = document["issuer"]
    subject = document["credentialSubject"]
    controller = subject["controller"]
    if (said["id"] if isinstance(said, dict) else said) != issuer or controller["id"] != issuer:
        raise ValueError("its issuer is not the one that signed it, or not the controller")
    if "credentialStatus" in document:
        raise ValueError("it has a status, which cannot be looked up here")
    key_of_did(subject["id"])
    owner = Owner(issuer, valid_name(controller["name"]), _KINDS[controller["type"]])
    begins, expires = _read(document["validFrom"]), _read(document["validUntil"])
    return Control(owner, subject["id"], begins, expires, jwt)


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(text: str) -> float:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.timestamp()
