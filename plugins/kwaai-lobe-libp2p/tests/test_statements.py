"""Statements and messages of the directory: what is sound comes through, all else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import FrameError, NotVerified
from kwaai_core.testing.identities import FakeIdentity
from kwaai_lobe_libp2p import messages
from kwaai_lobe_libp2p.statements import (
    KINDS,
    MAX_ADDRESSES,
    MAX_BODY,
    MAX_LIFE,
    MAX_NAME,
    MAX_SEALED,
    SKEW,
    Kind,
    addresses_in,
    fit_name,
    key_of,
    plausible,
    position_of,
    seal,
    unseal,
)

NOW = 1_800_000_000.0
ME = FakeIdentity("me")
OTHER = FakeIdentity("other")


def by_me(payload: bytes) -> str:
    return f"{ME.did} {ME.sign('record', payload)}"


names = st.text(max_size=MAX_NAME).filter(str.isprintable)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(
    kind=st.sampled_from(KINDS),
    name=names,
    body=st.binary(max_size=200),
    sequence=st.integers(0, 2**62 - 1),
    life=st.floats(0.001, MAX_LIFE),
)
def test_what_was_sealed_is_unsealed(
    kind: Kind, name: str, body: bytes, sequence: int, life: float
) -> None:
    made = seal(ME, kind, name, body, sequence=sequence, expires=NOW + life)
    assert unseal(OTHER, made.sealed, NOW) == made
    assert made.peer == ME.peer_id and made.subject == ME.did


def test_the_longest_fits() -> None:
    made = seal(ME, "record", "\U0001f600" * MAX_NAME, bytes(MAX_BODY), sequence=1, expires=NOW + 1)
    assert len(made.sealed) <= MAX_SEALED
    assert unseal(OTHER, made.sealed, NOW) == made


@pytest.mark.parametrize("expires", [NOW, NOW - 1, NOW + MAX_LIFE + SKEW + 1])
def test_expired_and_too_far_ahead_are_refused(expires: float) -> None:
    with pytest.raises(NotVerified):
        unseal(OTHER, seal(ME, "record", "x", b"", sequence=1, expires=expires).sealed, NOW)


def test_another_subject_is_refused() -> None:
    made = seal(ME, "record", "x", b"", sequence=1, expires=NOW + 1)
    with pytest.raises(NotVerified):
        unseal(OTHER, made.sealed.replace(ME.did, OTHER.did), NOW)


def test_a_signature_for_another_purpose_is_refused() -> None:
    head = {"kind": "record", "name": "x", "sequence": 1, "expires": NOW + 1}
    payload = json.dumps(head).encode() + b"\n"
    unseal(OTHER, by_me(payload), NOW)
    with pytest.raises(NotVerified):
        unseal(OTHER, f"{ME.did} {ME.sign('invitation', payload)}", NOW)


@given(sealed=anything | st.text().map(lambda text: f"{ME.did} {text}"))
def test_garbage_is_refused(sealed: object) -> None:
    with pytest.raises(NotVerified):
        unseal(OTHER, sealed, NOW)


heads = st.fixed_dictionaries(
    {},
    optional={
        "kind": anything | st.sampled_from(KINDS),
        "name": anything,
        "sequence": anything,
        "expires": anything | st.just(NOW + 1),
    },
)


@given(head=st.binary() | heads.map(lambda head: json.dumps(head).encode()), body=st.binary())
def test_garbage_that_is_signed_is_refused_or_sound(head: bytes, body: bytes) -> None:
    try:
        found = unseal(OTHER, by_me(head + b"\n" + body), NOW)
    except NotVerified:
        return
    assert found.kind in KINDS and fit_name(found.name) and 0 <= found.sequence < 2**62
    assert NOW < found.expires <= NOW + MAX_LIFE + SKEW
    assert len(found.key) == 32


@pytest.mark.parametrize("text", ["1e999", "NaN", "-Infinity", "9" * 5000, "true", '"5"', "[]"])
@pytest.mark.parametrize("key", ["sequence", "expires"])
def test_strange_numbers_are_refused(key: str, text: str) -> None:
    facts = {"kind": '"record"', "name": '"x"', "sequence": "1", "expires": str(NOW + 1), key: text}
    head = "{" + ",".join(f'"{one}":{value}' for one, value in facts.items()) + "}"
    with pytest.raises(NotVerified):
        unseal(OTHER, by_me(head.encode() + b"\n"), NOW)


def test_keys_tell_kinds_subjects_and_names_apart() -> None:
    keys = [
        key_of("record", ME.peer_id, "x"),
        key_of("record", ME.peer_id, "y"),
        key_of("record", OTHER.peer_id, "x"),
        key_of("provider", ME.peer_id, "x"),
        position_of(ME.peer_id),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of("provider", OTHER.peer_id, "x") == key_of("provider", ME.peer_id, "x")
    assert {len(key) for key in keys} == {32}


@given(st.lists(anything | st.text().map(lambda text: f"{text}/p2p/{ME.peer_id}"), max_size=40))
def test_addresses_are_of_the_peer_and_bounded(given_addresses: list[object]) -> None:
    found = plausible(ME.peer_id, given_addresses)
    assert len(found) <= MAX_ADDRESSES
    assert all(one.startswith("/") and one.endswith(ME.peer_id) for one in found)


@given(st.binary(max_size=300))
def test_contacts_with_garbage_have_no_addresses(body: bytes) -> None:
    contact = seal(ME, "contact", "", body, sequence=1, expires=NOW + 1)
    assert all(one.endswith(ME.peer_id) for one in addresses_in(contact))


@pytest.mark.parametrize("read", [messages.question, messages.answer_found, messages.answer_held])
@given(frame=st.binary() | anything.map(lambda value: json.dumps(value).encode()))
def test_messages_of_garbage_are_refused_or_sound(
    read: Callable[[bytes], object], frame: bytes
) -> None:
    try:
        found = read(frame)
    except FrameError:
        return
    if isinstance(found, messages.Find):
        assert len(found.key) == 32


def test_answers_stay_below_the_limit() -> None:
    large = [
        seal(ME, "record", f"{n}", bytes(MAX_BODY), sequence=n, expires=NOW + 1) for n in range(64)
    ]
    contacts = [
        seal(ME, "contact", "", bytes(4400), sequence=n, expires=NOW + 1) for n in range(40)
    ]
    frame = messages.found(large, contacts, contacts[0])
    assert len(frame) <= messages.MAX_MESSAGE
    answer = messages.answer_found(frame)
    assert answer.statements and len(answer.nearer) == messages.MAX_NEARER
