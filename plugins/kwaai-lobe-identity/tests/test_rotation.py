"""Rotation: what an identity had goes with it, and a key in two hands is frozen, with proof."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import NotVerified
from kwaai_lobe_identity.circle import conflict
from kwaai_lobe_identity.documents import written
from kwaai_lobe_identity.jose import sign
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.memberships import Revocations, revoke
from kwaai_lobe_identity.succession import (
    Lineage,
    Succession,
    commit,
    digest_of,
    in_conflict,
    rotate,
    told,
)

ONE, TWO, THREE, THIEF = (Key(bytes([n]) * 32) for n in range(1, 5))
HISTORY = [
    told(rotate(ONE, TWO.did, "", 100)),
    told(rotate(TWO, THREE.did, ONE.did, 200)),
    told(commit(THREE, THIEF.did, TWO.did)),
]


def test_a_lineage() -> None:
    lineage = Lineage(HISTORY)
    assert lineage.names(THREE.did) == (THREE.did, TWO.did, ONE.did)
    assert lineage.names(TWO.did) == (TWO.did, ONE.did)
    assert lineage.names(THIEF.did) == (THIEF.did,)
    assert [lineage.until(key.did) for key in (ONE, TWO, THREE)] == [100, 200, float("inf")]
    assert lineage.frozen == set()


def test_a_commitment_is_the_same_each_time_and_is_not_against_the_rotation() -> None:
    first = commit(ONE, TWO.did, "")
    assert first == commit(ONE, TWO.did, "")
    assert not in_conflict(told(first), HISTORY[0])
    assert Lineage([told(first), HISTORY[0]]).until(ONE.did) == 100
    assert Lineage([HISTORY[0], told(first)]).until(ONE.did) == 100


@pytest.mark.parametrize("without", range(3))
def test_both_keys_have_to_say_it(without: int) -> None:
    lineage = Lineage([one for number, one in enumerate(HISTORY) if number != without])
    assert lineage.names(THREE.did) != (THREE.did, TWO.did, ONE.did)


def test_nobody_becomes_another_s_successor_without_its_word() -> None:
    usurped = Lineage([*HISTORY, told(commit(THIEF, ONE.did, TWO.did))])
    assert usurped.names(THIEF.did) == (THIEF.did,)
    pushed = Lineage([told(rotate(THIEF, ONE.did, "", 1)), HISTORY[0]])
    assert pushed.names(ONE.did) == (ONE.did,)


def test_a_ring_of_keys_ends() -> None:
    ring = [told(rotate(ONE, TWO.did, TWO.did, 1)), told(rotate(TWO, ONE.did, ONE.did, 1))]
    assert set(Lineage(ring).names(ONE.did)) == {ONE.did, TWO.did}
    assert not Lineage(ring).touches_frozen(ONE.did)


GOOD = Succession(digest_of(TWO.did), TWO.did, "", 100)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": digest_of(THREE.did)},
        {"digest": 7},
        {"next": ONE.did, "digest": digest_of(ONE.did)},
        {"next": "did:web:example.com"},
        {"previous": ONE.did},
        {"previous": "x"},
        {"issued": 0},
        {"issued": -1},
        {"more": ""},
    ],
    ids=str,
)
def test_a_signed_succession_that_says_nonsense(changes: dict[str, Any]) -> None:
    facts = json.loads(written(GOOD)) | changes
    with pytest.raises(NotVerified):
        told(sign(ONE, "succession", json.dumps(facts).encode()))
    assert told(sign(ONE, "succession", written(GOOD))).says == GOOD


@given(st.binary(max_size=200))
def test_a_signed_succession_that_is_junk(payload: bytes) -> None:
    with pytest.raises(NotVerified):
        told(sign(ONE, "succession", payload))


def test_the_proof_of_a_conflict() -> None:
    pair = commit(ONE, TWO.did, ""), rotate(ONE, THIEF.did, "", 100)
    assert conflict(pair) == ONE.did
    for bad in (pair[:1], (), (*pair, pair[0]), (pair[0], pair[0]), (pair[0], HISTORY[1].jws)):
        with pytest.raises(NotVerified):
            conflict(bad)


def test_groups_and_their_founding_go_with_the_identity(town: Any) -> None:
    group = town.let_in("founder", "ada", may_invite=True)
    town.let_in("ada", "bob")
    before = town("founder")[0].did, town("ada")[0].did
    founder, ada = town.rotate("founder"), town.rotate("ada")
    assert {founder.did, ada.did}.isdisjoint(before)
    assert founder.groups == ada.groups == (group,)
    assert town.meets("bob", "ada").formerly == (before[1],)
    assert town.meets("stranger", "founder").formerly == (before[0],)
    for one, other in (("founder", "ada"), ("ada", "founder"), ("bob", "ada"), ("ada", "bob")):
        assert town.common(one, other) == (group,)
    town.let_in("founder", "carol")
    town.let_in("ada", "dora")
    for one in ("founder", "ada", "bob", "carol", "dora"):
        for other in ("founder", "ada", "bob", "carol", "dora"):
            assert town.common(one, other) == (group,), (one, other)
    town.now += 1
    founder.members.revoke("home", before[1])
    town.meets("bob", "founder")
    assert town.common("bob", "ada") == (), "another key does not help who was revoked"
    assert town.common("bob", "dora") == ()
    town.meets("carol", "bob")
    assert town.common("carol", "ada") == (), "the list holds although its signer's key is new"


def test_a_key_that_was_given_up_is_refused(town: Any) -> None:
    town.let_in("founder", "ada")
    town.meets("founder", "ada")
    (old,) = town("ada")
    introduction = old.introduce()
    town.rotate("ada")
    town.meets("founder", "ada")
    town.now += 1
    with pytest.raises(NotVerified, match="given up for another key"):
        town("founder")[0].meet(old.peer_id, introduction)
    town.let_in("founder", "bob")
    assert town("bob")[0].meet(old.peer_id, introduction).groups != (), "bob knows nothing of it"
    town.meets("bob", "ada")
    with pytest.raises(NotVerified, match="given up"):
        town("bob")[0].meet(old.peer_id, introduction)


def test_a_founder_s_old_key_lets_nobody_in_any_more(town: Any) -> None:
    town.let_in("founder", "ada")
    town.copy("founder", "thief")
    (founder,) = town("founder")
    town.open("thief")
    town.rotate("founder")
    town.meets("ada", "founder")
    town.now += 1
    town.let_in("thief", "accomplice")
    assert founder.did == town("thief")[0].did
    assert town.common("ada", "accomplice") == ()


def test_a_founder_s_old_key_revokes_nobody_any_more(town: Any) -> None:
    group = town.let_in("founder", "ada")
    town.let_in("founder", "eve")
    town.let_in("founder", "bob")
    founder, ada, eve = town("founder", "ada", "eve")
    town.now += 1
    founder.members.revoke("home", eve.did)
    says = Revocations(group.founder, "home", 1 << 50, {ada.did: int(town.now)})
    forged = revoke(founder._key, says)
    town.rotate("founder")
    town.meets("bob", "founder")
    shown = json.loads(ada.introduce()) | {"revocations": [forged]}
    assert town("bob")[0].meet(ada.peer_id, json.dumps(shown).encode()).groups == (group,)
    assert town.common("bob", "eve") == (), "what it had revoked before stays revoked"
    assert town.open("founder").members.circle.state() == town("founder")[0].members.circle.state()


def test_a_thief_s_successor_lets_nobody_in(town: Any) -> None:
    stolen(town)
    town.rotate("thief")
    town.let_in("thief", "accomplice")
    town.let_in("founder", "bob")
    assert town.common("bob", "thief") != (), "bob never met ada"
    assert town.common("bob", "accomplice") != ()
    with pytest.raises(NotVerified, match="is frozen"):
        town.meets("founder", "thief")
    assert town.common("founder", "accomplice") == ()
    town.meets("bob", "founder")
    assert town.common("bob", "accomplice") == ()


def stolen(town: Any, name: str = "ada") -> None:
    """A thief has the key of somebody, not the next one, so it commits to one of its own."""
    town.let_in("founder", name, may_invite=True)
    town.copy(name, "thief")
    for file in ("history.json", "key-1.jwk"):
        (town.state("thief").path / file).unlink()
    assert town("thief")[0].did == town(name)[0].did
    assert town.common("founder", name) != ()


def test_two_rotations_freeze_both(town: Any, caplog: pytest.LogCaptureFixture) -> None:
    stolen(town)
    ada, thief = town.rotate("ada"), town.rotate("thief")
    assert town.meets("founder", "ada").groups != ()
    with pytest.raises(NotVerified, match="is frozen"):
        town.meets("founder", "thief")
    assert "two successors" in caplog.text
    with pytest.raises(NotVerified, match="is frozen"):
        town.meets("founder", "ada")
    town.open("founder")
    for name in ("ada", "thief"):
        with pytest.raises(NotVerified, match="is frozen"):
            town.meets("founder", name)
    assert ada.did != thief.did


def test_the_thief_first_freezes_both_too(town: Any) -> None:
    stolen(town)
    town.rotate("ada")
    town.rotate("thief")
    for name in ("thief", "ada", "thief"):
        with pytest.raises(NotVerified, match="is frozen"):
            assert town.meets("founder", name).groups != ()
            town.meets("founder", "ada")


def test_a_commitment_of_a_thief_is_enough(town: Any) -> None:
    stolen(town)
    with pytest.raises(NotVerified, match="is frozen"):
        town.meets("founder", "thief")
    with pytest.raises(NotVerified, match="is frozen"):
        town.meets("founder", "ada")


def test_the_proof_is_carried_to_members_and_by_members(town: Any) -> None:
    stolen(town)
    for name in ("bob", "carol"):
        town.let_in("founder", name)
    with pytest.raises(NotVerified):
        town.meets("founder", "thief")
    town.meets("bob", "founder")
    town.meets("carol", "bob")
    (carol,) = town("carol")
    (pair,) = carol.members.circle.state().conflicts
    assert conflict(pair) == town("ada")[0].did
    for name in ("ada", "thief"):
        with pytest.raises(NotVerified, match="is frozen"):
            town.meets("carol", name)


def test_a_stranger_s_proofs_are_not_kept(town: Any) -> None:
    pair = [commit(ONE, TWO.did, ""), commit(ONE, THREE.did, "")]
    (one,) = town("one")
    stranger = town("stranger")[0]
    shown = json.loads(stranger.introduce()) | {"conflicts": [pair]}
    assert one.meet(stranger.peer_id, json.dumps(shown).encode()).groups == ()
    assert one.members.circle.state().conflicts == ()
    shown["history"] += pair
    one.meet(stranger.peer_id, json.dumps(shown).encode())
    assert one.members.circle.state() == type(one.members.circle.state())()


def test_a_proof_that_proves_nothing_is_refused(town: Any) -> None:
    town.let_in("one", "other")
    one, other = town("one", "other")
    shown = json.loads(other.introduce())
    shown["conflicts"] = [[commit(ONE, TWO.did, "")] * 2]
    with pytest.raises(NotVerified, match="do not contradict"):
        one.meet(other.peer_id, json.dumps(shown).encode())


def test_a_frozen_member_s_guests_are_out_with_it(town: Any) -> None:
    stolen(town)
    town.let_in("ada", "bob")
    assert town.common("founder", "bob") != ()
    with pytest.raises(NotVerified):
        town.meets("founder", "thief")
    assert town.common("founder", "bob") == ()
