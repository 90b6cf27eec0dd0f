"""Memberships: who is in, who may let in, until when, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kwaai_core import Group, NotVerified, RequestError
from kwaai_lobe_identity.documents import written
from kwaai_lobe_identity.jose import sign
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.memberships import (
    DAY,
    MAX_REVOKED,
    Membership,
    Revocations,
    issue,
    newest,
    revoke,
    standing,
)
from kwaai_lobe_identity.succession import Lineage

NOW = 1_800_000_000
FOUNDER, ADA, BOB, EVE = (Key(bytes([n]) * 32) for n in range(4))
HOME = Group(FOUNDER.did, "home")
NOBODY = Lineage([])

Link = tuple[Key, Key, bool, int, int]


def link(signer: Key, member: Key, may_invite: bool = True, **how: Any) -> str:
    return issue(
        signer,
        how.get("group", HOME),
        member.did,
        may_invite=may_invite,
        now=how.get("now", NOW),
        seconds=how.get("seconds", DAY),
    )


def member_of(*chain: str, now: float = NOW + 1.0, lists: Any = None) -> str | None:
    found = standing(chain, lists or {}, NOBODY, now)
    return found.member if found else None


def test_a_chain_from_the_founder_makes_a_member() -> None:
    assert member_of(link(FOUNDER, ADA)) == ADA.did
    chain = link(FOUNDER, ADA), link(ADA, BOB, False, seconds=60)
    found = standing(chain, {}, NOBODY, NOW)
    assert found is not None
    assert (found.group, found.member, found.may_invite) == (HOME, BOB.did, False)
    assert found.expires == NOW + 60


@pytest.mark.parametrize(
    "chain",
    [
        (link(ADA, BOB),),
        (link(FOUNDER, ADA), link(FOUNDER, BOB)),
        (link(FOUNDER, ADA, False), link(ADA, BOB)),
        (link(FOUNDER, ADA), link(EVE, BOB)),
        (link(ADA, BOB), link(FOUNDER, ADA)),
        (link(FOUNDER, ADA), link(ADA, BOB, False), link(BOB, EVE)),
    ],
    ids=["no founder", "no inviter", "may not", "a gap", "the wrong way", "may not further on"],
)
def test_a_chain_with_a_gap_makes_none(chain: tuple[str, ...]) -> None:
    assert member_of(*chain) is None


@pytest.mark.parametrize("late", [0, 1])
def test_each_link_may_expire(late: int) -> None:
    seconds = [DAY, DAY]
    seconds[late] = 60
    chain = link(FOUNDER, ADA, seconds=seconds[0]), link(ADA, BOB, seconds=seconds[1])
    assert member_of(*chain, now=NOW + 59) == BOB.did
    assert member_of(*chain, now=NOW + 60) is None


def test_a_membership_of_tomorrow_would_outrun_a_revocation() -> None:
    assert member_of(link(FOUNDER, ADA, now=NOW + 300), now=NOW) == ADA.did
    assert member_of(link(FOUNDER, ADA, now=NOW + 301), now=NOW) is None


def test_a_chain_of_two_groups_is_refused() -> None:
    other = Group(FOUNDER.did, "other")
    with pytest.raises(NotVerified, match="of two groups"):
        member_of(link(FOUNDER, ADA), link(ADA, BOB, group=other))


@pytest.mark.parametrize("length", [0, 5])
def test_how_long_a_chain_may_be(length: int) -> None:
    with pytest.raises(NotVerified, match="1 to 4"):
        member_of(*[link(FOUNDER, ADA)] * length)


GOOD = Membership(FOUNDER.did, "home", ADA.did, True, NOW, NOW + DAY)


@pytest.mark.parametrize(
    "changes",
    [
        {"founder": "did:key:z6Mk"},
        {"founder": 7},
        {"group": ""},
        {"group": "a b"},
        {"group": "x" * 65},
        {"group": "\u202ehome"},
        {"member": "did:web:example.com"},
        {"may_invite": 1},
        {"may_invite": "yes"},
        {"issued": -1},
        {"issued": 1.5},
        {"issued": True},
        {"issued": NOW + DAY},
        {"expires": NOW},
        {"expires": NOW + 367 * DAY},
        {"expires": 1 << 60},
        {"expires": "9" * 5000},
        {"more": 1},
    ],
    ids=str,
)
def test_a_signed_membership_that_says_nonsense(changes: dict[str, Any]) -> None:
    statement = sign(FOUNDER, "membership", json.dumps(vars_of(GOOD) | changes).encode())
    with pytest.raises(NotVerified, match="malformed|not the name|no did:key"):
        member_of(statement)


def vars_of(value: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(written(value))
    return facts


def test_a_membership_signed_for_another_purpose() -> None:
    with pytest.raises(NotVerified, match="not signed as membership"):
        member_of(sign(FOUNDER, "record", written(GOOD)))
    assert member_of(sign(FOUNDER, "membership", written(GOOD))) == ADA.did


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_a_signed_membership_that_is_junk(payload: bytes | str) -> None:
    data = payload if isinstance(payload, bytes) else payload.encode()
    with pytest.raises(NotVerified):
        member_of(sign(FOUNDER, "membership", data))


PEOPLE = [FOUNDER, ADA, BOB, EVE]
links = st.tuples(
    st.sampled_from(PEOPLE),
    st.sampled_from(PEOPLE),
    st.booleans(),
    st.integers(NOW - DAY, NOW),
    st.sampled_from([60, DAY, 2 * DAY]),
)


@given(
    st.lists(links, min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(PEOPLE), st.integers(NOW - DAY, NOW), max_size=2),
)
def test_only_a_chain_that_holds_makes_a_member(chain: list[Link], revoked: dict[Key, int]) -> None:
    statements = [
        link(signer, member, may, now=now, seconds=seconds)
        for signer, member, may, now, seconds in chain
    ]
    says = Revocations(HOME.founder, HOME.name, 1, {key.did: at for key, at in revoked.items()})
    lists = newest([revoke(FOUNDER, says)], [HOME], NOBODY)
    expected = by_the_rules(chain, revoked)
    assert member_of(*statements, now=NOW, lists=lists) == (expected.did if expected else None)


def by_the_rules(chain: list[Link], revoked: dict[Key, int]) -> Key | None:
    """The rules once more, over keys in place of statements."""
    may_sign: Key | None = FOUNDER
    for signer, member, may_invite, issued, seconds in chain:
        if signer is not may_sign or issued + seconds <= NOW or issued <= revoked.get(member, 0):
            return None
        may_sign, last = (member if may_invite else None), member
    return last


def test_revoking_ends_what_was_and_what_rests_on_it(town: Any) -> None:
    group = town.let_in("founder", "ada", may_invite=True)
    town.let_in("ada", "bob")
    town.let_in("founder", "eve")
    founder, ada, bob = town("founder", "ada", "bob")
    town.now += 1
    founder.members.revoke("home", ada.did)
    assert town.common("founder", "ada") == town.common("founder", "bob") == ()
    assert town.common("founder", "eve") == (group,)
    assert town.common("eve", "ada") == (group,), "eve has not heard of it"
    town.meets("eve", "founder")
    assert town.common("eve", "ada") == town.common("eve", "bob") == ()
    assert town.common("eve", "founder") == (group,)
    town.meets("bob", "eve")
    assert bob.groups == (), "whoever meets a member learns of it, of itself too"
    town.open("eve")
    assert town.common("eve", "ada") == (), "it is not forgotten"
    town.now += 1
    town.let_in("founder", "ada")
    assert town.common("eve", "ada") == (group,), "a later membership is good"


def test_only_the_founder_revokes(town: Any) -> None:
    town.let_in("founder", "ada", may_invite=True)
    ada, eve = town("ada", "eve")
    with pytest.raises(RequestError, match="only a founder revokes"):
        ada.members.revoke("home", eve.did)
    forged = Revocations(town("founder")[0].did, "home", 9, {eve.did: NOW})
    lists = newest([revoke(ada._key, forged)], ada.groups, NOBODY)
    assert lists == {}


def test_an_older_list_changes_nothing() -> None:
    older, newer = (
        revoke(FOUNDER, Revocations(HOME.founder, "home", number, {})) for number in (1, 2)
    )
    for order in ((older, newer), (newer, older)):
        assert newest(order, [HOME], NOBODY)[HOME].jws == newer


def test_how_many_may_be_revoked(town: Any) -> None:
    town.let_in("founder", "ada")
    (founder,) = town("founder")
    dids = [Key(n.to_bytes(32, "big")).did for n in range(1, MAX_REVOKED + 2)]
    for did in dids[:-1]:
        founder.members.revoke("home", did)
    with pytest.raises(RequestError, match="found another group"):
        founder.members.revoke("home", dids[-1])
    assert len(founder.introduce()) < 1 << 18
    town.meets("ada", "founder")
    town.now += 367 * DAY
    founder.members.revoke("home", dids[-1])


def test_a_membership_ends_with_its_time(town: Any) -> None:
    group = town.let_in("founder", "ada")
    (ada,) = town("ada")
    town.now += 365 * DAY - 10
    met = town.meets("founder", "ada")
    assert met.groups == (group,)
    assert met.expires == town.now + 10
    town.now += 10
    assert ada.groups == ()
    assert town.common("founder", "ada") == town.common("ada", "founder") == ()
    town.let_in("founder", "ada")
    assert ada.groups == (group,)


def test_a_meeting_is_good_for_an_hour_at_most(town: Any) -> None:
    assert town.meets("one", "other").expires == town.now + 3600


def test_how_many_groups_and_invitations(town: Any) -> None:
    one, other = town("one", "other")
    for number in range(16):
        town.let_in("one", "other", f"group-{number}")
    assert len(town.common("one", "other")) == len(other.groups) == 16
    for identity in (one, other):
        with pytest.raises(RequestError, match="16 groups"):
            identity.members.invite("one-more", [], 60, may_invite=False)
    with pytest.raises(RequestError, match="16 groups"):
        town.let_in("third", "other")
    for _ in range(64):
        one.members.invite("group-0", [], 60, may_invite=False)
    with pytest.raises(RequestError, match="64 invitations are open"):
        one.members.invite("group-0", [], 60, may_invite=False)
    town.now += 61
    one.members.invite("group-0", [], 60, may_invite=False)


def test_a_chain_has_an_end(town: Any) -> None:
    for inviter, joiner in ("ab", "bc", "cd", "de"):
        town.let_in(inviter, joiner, may_invite=True)
    assert town.common("a", "e") != ()
    with pytest.raises(RequestError, match="may not invite"):
        town.let_in("e", "f")


def test_a_second_membership_takes_the_place_of_the_first(town: Any) -> None:
    town.let_in("founder", "ada")
    town.let_in("founder", "ada", may_invite=True)
    (ada,) = town("ada")
    assert len(ada.members.circle.state().memberships) == 1
    town.let_in("ada", "bob")


def test_a_membership_of_another_group_than_the_invitation_s(town: Any) -> None:
    founder, ada = town("founder", "ada")
    home, other = (
        founder.members.invite(name, [], 60, may_invite=False) for name in ("home", "other")
    )
    admission = founder.members.admit(ada.peer_id, ada.answer_to(home))
    with pytest.raises(NotVerified, match="not what the invitation said"):
        ada.members.join(other, admission)
    with pytest.raises(NotVerified, match="not what the invitation said"):
        ada.members.join(replace(home, peer=ada.peer_id), admission)
    assert ada.members.join(home, admission) == home.group


Change = Callable[[dict[str, Any]], None]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_an_admission_that_was_changed(town: Any, data: st.DataObject) -> None:
    founder, ada = town("founder", "ada")
    invitation = founder.members.invite("home", [], 60, may_invite=False)
    admission = founder.members.admit(ada.peer_id, ada.answer_to(invitation))
    at = data.draw(st.integers(0, len(admission) - 1))
    changed = admission[:at] + data.draw(st.binary(max_size=3)) + admission[at + 1 :]
    try:
        assert ada.members.join(invitation, changed) == invitation.group
    except NotVerified:
        return
    assert json.loads(changed) == json.loads(admission)
