"""A real fake of the role identity: the same rules, and no library for cryptography.

Its DIDs and peer ids are those of real Ed25519 keys, so a real transport can use it too. A
signature is a hash under a key that anybody could compute from the DID: it tells an altered
statement from a sound one, also in another process, and it proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from kwaai_core.errors import NotVerified, RequestError
from kwaai_core.peering import Acquaintance, Group, Invitation, Owner
from kwaai_core.roles import Host
from kwaai_core.testing.ed25519 import did_key, key_of_did, key_of_peer, peer_id, public_key

HOUR, YEAR = 3600.0, 365 * 24 * 3600.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_BYTES, _MAX_LINKS = 1 << 16, 8
_LINE = "kwaai-fake-invitation."


@dataclass(frozen=True, slots=True)
class _Link:
    """One membership: who let whom into a group, and until when."""

    group: Group
    issuer: str
    member: str
    may_invite: bool
    issued: float
    expires: float


@dataclass(frozen=True, slots=True)
class _Open:
    """An invitation as the inviter keeps it."""

    group: Group
    may_invite: bool
    expires: float


class FakeIdentity:
    """A :class:`kwaai_core.Identity`, the same for the same ``seed``.

    ``now`` is its clock: give all identities of a simulation the same one. :func:`befriend` makes
    members of several without an invitation, and :meth:`revoke` ends a membership.
    """

    def __init__(
        self,
        seed: int | str = 0,
        *,
        owner: Owner | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._seed = hashlib.sha256(f"kwaai fake identity {seed}".encode()).digest()
        public = public_key(self._seed)
        self.did = did_key(public)
        self.peer_id = peer_id(public)
        self.owner = owner
        self._now = now
        self._founded: list[Group] = []
        self._chains: dict[Group, tuple[str, ...]] = {}
        self._open: dict[str, _Open] = {}
        self._revoked: dict[Group, tuple[int, str, Mapping[str, float]]] = {}
        self._invited = 0

    def __repr__(self) -> str:
        return f"<FakeIdentity {self.peer_id[-6:]}>"

    @property
    def groups(self) -> Sequence[Group]:
        """See :attr:`kwaai_core.Identity.groups`."""
        mine = [group for group, chain in self._chains.items() if self._good(chain, self.did)]
        return [*self._founded, *mine]

    def did_of(self, peer: str) -> str:
        """See :meth:`kwaai_core.Identity.did_of`."""
        return did_key(key_of_peer(peer))

    def peer_of(self, did: str) -> str:
        """See :meth:`kwaai_core.Identity.peer_of`."""
        return peer_id(key_of_did(did))

    def resolve(self, did: str) -> Mapping[str, Any]:
        """See :meth:`kwaai_core.Identity.resolve`."""
        key_of_did(did)
        method = f"{did}#{did.removeprefix('did:key:')}"
        return {"id": did, "verificationMethod": [{"id": method, "controller": did}]}

    def sign(self, purpose: str, payload: bytes, *, typ: str = "JOSE") -> str:
        """See :meth:`kwaai_core.Identity.sign`."""
        return _sign(self.did, purpose, payload, typ)

    def verify(self, purpose: str, did: str, jws: str, *, typ: str = "JOSE") -> bytes:
        """See :meth:`kwaai_core.Identity.verify`."""
        key_of_did(did)
        with _parsing("a signed statement"):
            payload = _unpack(jws.split(".")[1])
            if hmac.compare_digest(jws.encode(), _sign(did, purpose, payload, typ).encode()):
                return payload
        raise NotVerified(f"the statement was not signed by {did} as {purpose}, {typ}")

    def derive(self, label: str, n: int) -> bytes:
        """See :meth:`kwaai_core.Identity.derive`."""
        return hashlib.shake_256(b"derive" + self._seed + label.encode()).digest(n)

    def agree(self, did: str, label: str) -> bytes:
        """See :meth:`kwaai_core.Identity.agree`; here it is no secret at all."""
        key_of_did(did)
        return hashlib.sha256("\0".join([label, *sorted([did, self.did])]).encode()).digest()

    def handshake_key(self) -> bytes:
        """See :meth:`kwaai_core.Identity.handshake_key`."""
        return self._seed

    def introduce(self) -> bytes:
        """See :meth:`kwaai_core.Identity.introduce`."""
        shown: dict[str, Any] = {
            "founded": [group.name for group in self._founded],
            "chains": list(self._chains.values()),
            "revoked": [statement for _, statement, _ in self._revoked.values()],
        }
        if self.owner is not None:
            facts = {"member": self.did, "name": self.owner.name, "kind": self.owner.kind}
            shown["owner"] = {
                "did": self.owner.did,
                "statement": _sign(self.owner.did, "owner", _packed(facts)),
            }
        return _packed(shown)

    def meet(self, peer: str, introduction: bytes) -> Acquaintance:
        """See :meth:`kwaai_core.Identity.meet`."""
        did = self.did_of(peer)
        expires = self._now() + HOUR
        with _parsing("an introduction"):
            if len(introduction) > _MAX_BYTES:
                raise ValueError("it is too long")
            shown = json.loads(introduction)
            for statement in shown["revoked"]:
                self._learn(statement)
            mine = self.groups
            common: list[Group] = []
            common += [Group(did, name) for name in shown["founded"] if Group(did, name) in mine]
            for chain in shown["chains"]:
                links = self._links(chain)
                if links[-1].group in mine and self._good(chain, did):
                    common.append(links[-1].group)
                    expires = min(expires, *(link.expires for link in links))
            owner = self._owner(shown["owner"], did) if "owner" in shown else None
            return Acquaintance(peer, did, owner, tuple(dict.fromkeys(common)), expires)

    async def invite(
        self, group: str, addresses: Sequence[str], *, seconds: float, may_invite: bool = False
    ) -> Invitation:
        """See :meth:`kwaai_core.Identity.invite`."""
        await trio.lowlevel.checkpoint()
        into = self._invitable(group)
        self._invited += 1
        secret = self.derive(f"invitation {self._invited}", 16).hex()
        expires = self._now() + seconds
        self._open[_hashed(secret)] = _Open(into, may_invite, expires)
        facts = [self.peer_id, list(addresses), into.founder, into.name, expires, secret]
        return self._read(_LINE + _pack(_packed(facts)))

    def found(self, name: str) -> Group:
        """The group of this name that this node has founded; now, if it had not."""
        if not _NAME.fullmatch(name):
            raise RequestError(f"{name!r} cannot be the name of a group")
        group = Group(self.did, name)
        if group not in self._founded:
            self._founded.append(group)
        return group

    def _invitable(self, name: str) -> Group:
        if any(group.name == name for group in self._founded):
            return self.found(name)
        others = [group for group in self.groups if group.name == name]
        for group in others:
            if self._links(self._chains[group])[-1].may_invite:
                return group
        if others:
            raise RequestError(f"this node may not invite into the group {name}")
        return self.found(name)

    def invitation(self, line: str) -> Invitation:
        """See :meth:`kwaai_core.Identity.invitation`."""
        found = self._read(line)
        if found.expires <= self._now():
            raise RequestError("the invitation has expired: ask for another")
        return found

    def _read(self, line: str) -> Invitation:
        try:
            if not line.startswith(_LINE):
                raise ValueError("it does not begin as one")
            facts = json.loads(_unpack(line.removeprefix(_LINE)))
            peer, addresses, founder, name, expires, _ = facts
            group = Group(self.did_of(self.peer_of(founder)), name)
            key_of_peer(peer)
            return Invitation(line, peer, tuple(map(str, addresses)), group, float(expires))
        except (NotVerified, ValueError, TypeError, RecursionError) as error:
            raise RequestError(f"this is no invitation: {error}") from None

    def answer_to(self, invitation: Invitation) -> bytes:
        """See :meth:`kwaai_core.Identity.answer_to`."""
        *_, secret = json.loads(_unpack(invitation.line.removeprefix(_LINE)))
        return _hashed(secret, self.did).encode() + _hashed(secret).encode()

    async def admit(self, peer: str, answer: bytes) -> bytes:
        """See :meth:`kwaai_core.Identity.admit`."""
        await trio.lowlevel.checkpoint()
        did = self.did_of(peer)
        hashed = answer[64:].decode("ascii", "replace")
        found = self._open.get(hashed)
        if found is None or answer[:64] != _hashed_again(hashed, did).encode():
            raise NotVerified("there is no such invitation, or it was used before")
        del self._open[hashed]
        if found.expires <= self._now():
            raise NotVerified("the invitation has expired")
        return _packed(self._let_in(did, found.group, found.may_invite))

    def _let_in(self, did: str, group: Group, may_invite: bool) -> tuple[str, ...]:
        now = self._now()
        facts = [group.founder, group.name, did, may_invite, now, now + YEAR]
        link = _pack(_packed([self.did, _sign(self.did, "membership", _packed(facts))]))
        return (*self._chains.get(group, ()), link)

    async def join(self, invitation: Invitation, membership: bytes) -> Group:
        """See :meth:`kwaai_core.Identity.join`."""
        await trio.lowlevel.checkpoint()
        with _parsing("a membership"):
            chain = tuple(json.loads(membership))
            last = self._links(chain)[-1]
            if last.group != invitation.group or self.peer_of(last.issuer) != invitation.peer:
                raise ValueError("it is not what the invitation says")
            if not self._good(chain, self.did):
                raise ValueError("it does not hold")
        self._chains[last.group] = chain
        return last.group

    def revoke(self, group: Group, did: str) -> None:
        """End every membership of ``did`` so far, and of those that it invited; founders only."""
        number, _, before = self._revoked.get(group, (0, "", {}))
        facts = [group.founder, group.name, number + 1, {**before, did: self._now()}]
        self._learn(_pack(_packed([self.did, _sign(self.did, "revocations", _packed(facts))])))

    def _learn(self, statement: str) -> None:
        """Keep a founder's list of revocations, if it is newer than what there is."""
        signer, facts = self._opened(statement, "revocations")
        founder, name, number, revoked = facts
        group = Group(founder, name)
        if signer == founder and number > self._revoked.get(group, (0,))[0]:
            self._revoked[group] = number, statement, dict(revoked)

    def _opened(self, statement: str, purpose: str) -> tuple[str, Any]:
        signer, jws = json.loads(_unpack(statement))
        return signer, json.loads(self.verify(purpose, signer, jws))

    def _links(self, chain: Sequence[str]) -> list[_Link]:
        if not 0 < len(chain) <= _MAX_LINKS:
            raise ValueError(f"a chain of {len(chain)} memberships")
        links = []
        for statement in chain:
            issuer, (founder, name, *rest) = self._opened(statement, "membership")
            links.append(_Link(Group(founder, name), issuer, *rest))
        return links

    def _good(self, chain: Sequence[str], did: str) -> bool:
        """Whether the chain leads from the founder to ``did``, now and without a gap."""
        links = self._links(chain)
        *_, revoked = self._revoked.get(links[0].group, (0, "", {}))
        issuer, may_invite = links[0].group.founder, True
        for link in links:
            late = link.issued <= revoked.get(link.member, 0.0) or link.expires <= self._now()
            if late or not may_invite or (link.issuer, link.group) != (issuer, links[0].group):
                return False
            issuer, may_invite = link.member, link.may_invite
        return issuer == did

    def _owner(self, shown: Any, did: str) -> Owner | None:
        facts = json.loads(self.verify("owner", shown["did"], shown["statement"]))
        found = Owner(shown["did"], facts["name"], facts["kind"])
        return found if facts["member"] == did else None


def befriend(founder: FakeIdentity, *others: FakeIdentity, group: str = "home") -> Group:
    """Make ``others`` members of a group of ``founder``, without invitations."""
    founded = founder.found(group)
    for other in others:
        other._chains[founded] = founder._let_in(other.did, founded, False)  # noqa: SLF001
    return founded


class FakeIdentities:
    """Fake identities by state folder: what is opened again there is who it was.

    ``open`` is for an offer: ``Offer("identity", FakeIdentities().open)``.
    """

    def __init__(self) -> None:
        self.by_folder: dict[Path, FakeIdentity] = {}

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[FakeIdentity]:
        """The identity of the host's folder."""
        yield self.by_folder.setdefault(host.state, FakeIdentity(str(host.state)))


def fake_owner(name: str) -> Owner:
    """A person of this name, with a DID of the name's own."""
    return Owner(FakeIdentity(f"owner {name}").did, name, "person")


def _sign(did: str, purpose: str, payload: bytes, typ: str = "JOSE") -> str:
    header = _pack(_packed({"alg": "fake", "kid": did, "typ": typ, "purpose": purpose}))
    body = _pack(payload)
    return f"{header}.{body}.{_pack(hashlib.sha256(f'{header}.{body}'.encode()).digest())}"


def _hashed(secret: str, did: str | None = None) -> str:
    hashed = hashlib.sha256(secret.encode()).hexdigest()
    return hashed if did is None else _hashed_again(hashed, did)


def _hashed_again(hashed: str, did: str) -> str:
    return hashlib.sha256(f"{hashed} {did}".encode()).hexdigest()


def _packed(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _pack(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpack(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


@contextmanager
def _parsing(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise NotVerified(f"{what} does not hold: {error!r}") from None
