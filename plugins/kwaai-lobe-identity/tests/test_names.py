"""DIDs, peer ids and documents, checked against vectors of others and an independent encoder."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kwaai_core import NotVerified
from kwaai_core.testing import ed25519
from kwaai_lobe_identity import names
from kwaai_lobe_identity.keys import Key

keys = st.binary(min_size=32, max_size=32)


def test_a_peer_id_of_libp2p() -> None:
    # js-libp2p 3.3 gives this id for the same seed
    key = Key(bytes(range(32)))
    assert key.peer_id == "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"


def test_a_did_and_its_document() -> None:
    # from the examples of the did:key specification: Ed25519 with its X25519 key
    did = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"
    document = names.document(did)
    (agreement,) = document["keyAgreement"]
    (signing,) = document["verificationMethod"]
    assert document["id"] == did
    assert document["assertionMethod"] == [signing["id"]] == [names.key_url(did)]
    assert signing["publicKeyMultibase"] == did.removeprefix("did:key:")
    assert agreement["publicKeyMultibase"] == "z6LShs9GGnqk85isEBzzshkuVWrVKsRp24GnDuHk8QWkARMW"


@given(keys)
@example(bytes(32))
@example(b"\xff" * 32)
def test_names_lead_to_their_key(public: bytes) -> None:
    did, peer = names.did_of_key(public), names.peer_of_key(public)
    assert (did, peer) == (ed25519.did_key(public), ed25519.peer_id(public))
    assert names.key_of_did(did) == names.key_of_peer(peer) == public


@given(st.text(max_size=80) | st.from_regex(r"did:key:z6Mk[1-9A-Za-z]{40,46}"))
@example("did:key:z" + "1" * 100_000)
@example("did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp#fragment")
@example("did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme")  # secp256k1
@example("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N")  # RSA
def test_what_names_no_key_is_refused(text: str) -> None:
    for read, write in (
        (names.key_of_did, names.did_of_key),
        (names.key_of_peer, names.peer_of_key),
    ):
        try:
            assert write(read(text)) == text
        except NotVerified:
            continue


def test_a_key_has_one_name() -> None:
    did, peer = names.did_of_key(b"k" * 32), names.peer_of_key(b"k" * 32)
    for other in (did.replace(":z", ":z1"), did.replace(":z", ":z0"), did + "\n", f"{did}1"[1:]):
        with pytest.raises(NotVerified):
            names.key_of_did(other)
    for other in ("1" + peer, "0" + peer[1:], peer[1:], peer + " ", " " + peer):
        with pytest.raises(NotVerified):
            names.key_of_peer(other)


@pytest.mark.parametrize("y", [1, 2**255 - 19, 2**255 - 1])
def test_no_agreement_with_what_is_no_point(y: int) -> None:
    public = y.to_bytes(32, "little")
    with pytest.raises(NotVerified, match="no point"):
        names.document(names.did_of_key(public))
