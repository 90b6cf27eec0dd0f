"""The fake identity conforms, and each rule of an identity catches what breaks it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import NotVerified, RequestError
from kwaai_core.peering import Acquaintance, Group, Identity, Invitation
from kwaai_core.roles import Host
from kwaai_core.testing import (
    FakeIdentities,
    FakeIdentity,
    Nonconformance,
    befriend,
    check_identity,
    fake_owner,
)
from kwaai_core.testing.ed25519 import did_key, key_of_did, key_of_peer, peer_id, public_key


async def test_the_fake_conforms() -> None:
    await check_identity(FakeIdentities().open)


def test_the_keys_are_real() -> None:
    # RFC 8032, section 7.1, test 1; and the peer id that js-libp2p gives for a seed
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert public_key(seed).hex() == public
    assert peer_id(public_key(bytes(range(32)))) == (
        "12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB"
    )


@given(st.binary(min_size=32, max_size=32))
def test_names_lead_to_their_key(public: bytes) -> None:
    assert key_of_did(did_key(public)) == key_of_peer(peer_id(public)) == public


def test_the_same_seed_is_the_same_identity() -> None:
    assert FakeIdentity(1).did == FakeIdentity(1).did != FakeIdentity(2).did
    assert FakeIdentity(1).derive("x", 8) == FakeIdentity(1).derive("x", 8)


def test_its_clock_is_the_test_s() -> None:
    now = [1_000.0]
    one, other = (FakeIdentity(seed, now=lambda: now[0]) for seed in (1, 2))
    group = befriend(one, other, group="friends")
    met = one.meet(other.peer_id, other.introduce())
    assert met.groups == (group,)
    assert met.expires == now[0] + 3600
    now[0] += 366 * 24 * 3600
    assert other.groups == []
    assert one.meet(other.peer_id, other.introduce()).groups == ()


def test_it_shows_its_owner() -> None:
    one, other = FakeIdentity(1), FakeIdentity(2, owner=fake_owner("Ada"))
    assert one.meet(other.peer_id, other.introduce()).owner == fake_owner("Ada")
    assert one.meet(one.peer_id, other.introduce()).owner is None


def test_a_revocation_spreads() -> None:
    founder, one, other = (FakeIdentity(seed) for seed in (1, 2, 3))
    group = befriend(founder, one, other)
    founder.revoke(group, one.did)
    assert other.meet(one.peer_id, one.introduce()).groups == (group,)
    other.meet(founder.peer_id, founder.introduce())
    assert other.meet(one.peer_id, one.introduce()).groups == ()
    one.meet(other.peer_id, other.introduce())
    assert one.groups == []


class OtherNames(FakeIdentity):
    def peer_of(self, did: str) -> str:
        return super().peer_of(did)[:-1]


class TakesAnyName(FakeIdentity):
    def resolve(self, did: str) -> Mapping[str, Any]:
        return {"id": did}


class Forgetful(FakeIdentity):
    def __init__(self, seed: int | str) -> None:
        super().__init__(f"{seed}{id(self)}")


class OnePurpose(FakeIdentity):
    def sign(self, purpose: str, payload: bytes, *, typ: str = "JOSE") -> str:
        return super().sign(purpose.replace("receipt", "record"), payload, typ=typ)

    def verify(self, purpose: str, did: str, jws: str, *, typ: str = "JOSE") -> bytes:
        return super().verify(purpose.replace("receipt", "record"), did, jws, typ=typ)


class OneType(FakeIdentity):
    def sign(self, purpose: str, payload: bytes, *, typ: str = "JOSE") -> str:
        return super().sign(purpose, payload)

    def verify(self, purpose: str, did: str, jws: str, *, typ: str = "JOSE") -> bytes:
        return super().verify(purpose, did, jws)


class Lenient(FakeIdentity):
    def verify(self, purpose: str, did: str, jws: str, *, typ: str = "JOSE") -> bytes:
        return super().verify(purpose, did, jws.strip().rstrip("="), typ=typ)


class OneSecret(FakeIdentity):
    def derive(self, label: str, n: int) -> bytes:
        return super().derive("", n)


class AgreesWithAll(FakeIdentity):
    def agree(self, did: str, label: str) -> bytes:
        return label.encode().ljust(32)


class HasNoMembers(FakeIdentity):
    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        met = super().meet(peer, introduction)
        return Acquaintance(met.peer, met.did, None, (), met.expires)


class LetsInTwice(FakeIdentity):
    async def admit(self, peer: str, answer: bytes) -> bytes:
        kept = dict(self._open)
        try:
            return await super().admit(peer, answer)
        finally:
            self._open = kept


class AnswersWithTheLine(FakeIdentity):
    def answer_to(self, invitation: Invitation) -> bytes:
        return super().answer_to(invitation) + invitation.line.encode()

    async def admit(self, peer: str, answer: bytes) -> bytes:
        return await super().admit(peer, answer[:128])


class UsesUpWhateverComes(FakeIdentity):
    async def admit(self, peer: str, answer: bytes) -> bytes:
        try:
            return await super().admit(peer, answer)
        finally:
            self._open.pop(answer[64:].decode("latin-1"), None)


class NeverLate(FakeIdentity):
    def invitation(self, line: str) -> Invitation:
        return self._read(line)


class LetsAllInvite(FakeIdentity):
    def _invitable(self, name: str) -> Group:
        return next((group for group in self.groups if group.name == name), self.found(name))


class MindsNoFounder(FakeIdentity):
    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        met = super().meet(peer, introduction)
        names = {group.name for group in self.groups}
        shown = json.loads(introduction)
        common = [Group(self.did, name) for name in shown["founded"] if name in names]
        return Acquaintance(peer, met.did, None, met.groups or tuple(common), met.expires)


class TakesAnyMembership(FakeIdentity):
    async def join(self, invitation: Invitation, membership: bytes) -> Group:
        try:
            return await super().join(invitation, membership)
        except NotVerified:
            return invitation.group


class BelievesTheBearer(FakeIdentity):
    def _good(self, chain: Sequence[str], did: str) -> bool:
        return super()._good(chain, self._links(chain)[-1].member)


class Crashes(FakeIdentity):
    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        json.loads(introduction)
        return super().meet(peer, introduction)


class NamesAnything(FakeIdentity):
    def found(self, name: str) -> Group:
        try:
            return super().found(name)
        except RequestError:
            return Group(self.did, name)


def opening(
    kind: Callable[[str], FakeIdentity],
) -> Callable[[Host], AbstractAsyncContextManager[Identity]]:
    known: dict[str, FakeIdentity] = {}

    @asynccontextmanager
    async def open_identity(host: Host) -> AsyncIterator[Identity]:
        folder = str(host.state)
        if kind is Forgetful:
            known.pop(folder, None)
        yield known.setdefault(folder, kind(folder))

    return open_identity


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (OtherNames, "the names are of one key"),
        (TakesAnyName, "the names are of one key"),
        (Forgetful, "it is the same when opened again"),
        (OnePurpose, "a signature is good for one thing: .* another purpose"),
        (OneType, "a signature is good for one thing: .* another type"),
        (Lenient, "an altered signature is refused"),
        (OneSecret, "secrets are apart"),
        (AgreesWithAll, "secrets are apart"),
        (HasNoMembers, "an invitation makes a member"),
        (LetsInTwice, "an invitation is good once"),
        (AnswersWithTheLine, "an answer is of who gave it"),
        (UsesUpWhateverComes, "an answer is of who gave it"),
        (NeverLate, "an expired invitation is refused"),
        (LetsAllInvite, "only who may invites"),
        (MindsNoFounder, "a name is not a group"),
        (NamesAnything, "a name is not a group"),
        (TakesAnyMembership, "what is another s counts for nothing"),
        (BelievesTheBearer, "what is another s counts for nothing"),
        (Crashes, "malformed input is refused"),
    ],
)
async def test_each_rule_catches_what_breaks_it(
    kind: Callable[[str], FakeIdentity], rule: str
) -> None:
    with pytest.raises(Nonconformance, match=rule):
        await check_identity(opening(kind))
