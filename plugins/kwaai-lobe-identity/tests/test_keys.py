"""What a key does, pinned by vectors: a change of these bytes would orphan what rests on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import NotVerified, RequestError
from kwaai_core.testing import ed25519
from kwaai_lobe_identity.keys import MAX_DERIVED, Key
from kwaai_lobe_identity.names import did_of_key

ADA, BOB = Key(bytes(range(32))), Key(bytes(range(32, 64)))
seeds = st.binary(min_size=32, max_size=32)


@given(seeds)
def test_the_public_key_is_that_of_rfc_8032(seed: bytes) -> None:
    assert Key(seed).public == ed25519.public_key(seed)


def test_vectors() -> None:
    assert ADA.derive("label", 16).hex() == "b92fb905886dfadae13fa847cb7ece56"
    assert (
        ADA.agree(BOB.did, "label").hex()
        == "5d9fd81bd40d4c63cafae81f69d03e3f9660c3d9279be815b9fc66ad4bc56ce0"
    )


@given(seeds, seeds, st.text(max_size=20))
def test_both_ends_agree(one: bytes, other: bytes, label: str) -> None:
    a, b = Key(one), Key(other)
    assert a.agree(b.did, label) == b.agree(a.did, label)


@pytest.mark.parametrize("n", [-1, 0, MAX_DERIVED + 1])
def test_more_than_can_be_derived(n: int) -> None:
    with pytest.raises(RequestError, match="1 to 8160 can"):
        ADA.derive("label", n)


def test_a_key_of_small_order_agrees_with_nobody() -> None:
    # y = 0 is a point of order 4, whose X25519 shared secret is zero for everybody
    weak = did_of_key(bytes(32))
    with pytest.raises(NotVerified, match="everybody would agree"):
        ADA.agree(weak, "label")


def test_the_seed_is_not_in_its_representation() -> None:
    assert ADA.seed.hex() not in repr(ADA)
    assert repr(ADA) == f"<Key of {ADA.did}>"
