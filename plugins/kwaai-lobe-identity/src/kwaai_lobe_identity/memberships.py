"""Memberships: a chain of statements from a group's founder to the member, and revocations.

Each statement lets one DID into a group, for a time, and says whether it may let others in. Its
signer is the founder, or the member of the statement before it, who may invite. A rotated key
speaks for the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kwaai_core import Group, NotVerified
from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.jose import opened, sign
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import key_of_did
from kwaai_lobe_identity.succession import Lineage

DAY = 86_400
MAX_SECONDS = 366 * DAY
"""How long a membership may be good; so a revocation may be forgotten after that time."""
SKEW = 300
"""How far ahead the clock may be of whoever let somebody in; more would outrun a revocation."""
MAX_LINKS = 4
MAX_REVOKED = 100
_MAX_STATEMENT, _MAX_LIST = 1500, 10_500  # characters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Membership:
    """One DID in one group; ``issued`` and ``expires`` are in seconds since 1970."""

    founder: str
    group: str
    member: str
    may_invite: bool
    issued: int
    expires: int


@dataclass(frozen=True, slots=True)
class Revocations:
    """Whose memberships of a group, of up to which time, are void; the highest number counts."""

    founder: str
    group: str
    number: int
    revoked: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class List:
    """A verified list of revocations: who signed it, and the statement."""

    signer: str
    says: Revocations
    jws: str


Lists = Mapping[Group, List]
"""The newest list of each group that has one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a chain amounts to: who it makes a member of what, until when."""

    group: Group
    member: str
    may_invite: bool
    expires: int


def named_group(founder: str, name: str) -> Group:
    """A group. Errors: ValueError for a name that nobody could type; :class:`NotVerified`."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r:.80} cannot be the name of a group: letters, digits and . _ - can, up to 64"
        )
    key_of_did(founder)
    return Group(founder, name)


def issue(key: Key, group: Group, member: str, *, may_invite: bool, now: int, seconds: int) -> str:
    """The statement that lets ``member`` in."""
    says = Membership(group.founder, group.name, member, may_invite, now, now + seconds)
    return sign(key, "membership", written(says))


def revoke(key: Key, says: Revocations) -> str:
    """The founder's list."""
    return sign(key, "revocations", written(says))


@lru_cache(maxsize=2048)
def membership(jws: str) -> tuple[str, Membership]:
    """Who signed a membership, and what it says. Errors: :class:`NotVerified`."""
    with parsing("a membership"):
        if len(jws) > _MAX_STATEMENT:
            raise ValueError("it is too long")
        signer, payload = opened("membership", jws)
        says = parsed(Membership, loaded(payload))
        named_group(says.founder, says.group)
        key_of_did(says.member)
        if not 0 < says.expires - says.issued <= MAX_SECONDS:
            raise ValueError("it is good for too long, or not at all")
        return signer, says


@lru_cache(maxsize=64)
def revocations(jws: str) -> tuple[str, Revocations]:
    """Who signed a list of revocations, and what it says. Errors: :class:`NotVerified`."""
    with parsing("a list of revocations"):
        if len(jws) > _MAX_LIST:
            raise ValueError("it is too long")
        signer, payload = opened("revocations", jws)
        says = parsed(Revocations, loaded(payload))
        named_group(says.founder, says.group)
        if len(says.revoked) > MAX_REVOKED:
            raise ValueError(f"it has more than {MAX_REVOKED} entries")
        return signer, says


def signer_of(jws: str) -> str:
    """Who signed a membership. Errors: :class:`NotVerified`."""
    return membership(jws)[0]


def group_of(chain: Sequence[str]) -> Group:
    """The group that a chain is about, whatever it is worth. Errors: :class:`NotVerified`."""
    with parsing("a chain of memberships"):
        if not 0 < len(chain) <= MAX_LINKS:
            raise ValueError(f"it has {len(chain)} statements, and may have 1 to {MAX_LINKS}")
        _, says = membership(chain[0])
        return Group(says.founder, says.group)


def standing(chain: Sequence[str], lists: Lists, lineage: Lineage, now: float) -> Standing | None:
    """What a chain amounts to now; None where it is expired, revoked, or has a gap.

    Errors: :class:`NotVerified` where a statement of it is malformed.
    """
    group = group_of(chain)
    revoked = lists[group].says.revoked if group in lists else {}
    may_sign, may_invite, expires = group.founder, True, 1 << 53
    for signer, says in map(membership, chain):
        if Group(says.founder, says.group) != group:
            raise NotVerified("a chain of memberships is of two groups")
        if not may_invite or may_sign not in lineage.names(signer):
            return None
        if lineage.touches_frozen(signer) or says.issued > min(lineage.until(signer), now + SKEW):
            return None
        if says.issued <= revoked.get(says.member, -1) or says.expires <= now:
            return None
        may_sign, may_invite = says.member, says.may_invite
        expires = min(expires, says.expires)
    return Standing(group, may_sign, may_invite, expires)


def newest(statements: Iterable[str], groups: Iterable[Group], lineage: Lineage) -> Lists:
    """For each of these groups its founder's newest list.

    What a later key of the founder says goes before whatever an earlier one says.

    Errors: :class:`NotVerified` where one is malformed.
    """
    wanted = set(groups)
    found: dict[Group, List] = {}
    ranks: dict[Group, tuple[int, int]] = {}
    for jws in statements:
        signer, says = revocations(jws)
        group, names = Group(says.founder, says.group), lineage.names(signer)
        rank = len(names), says.number
        if group in wanted and group.founder in names and rank > ranks.get(group, (0, 0)):
            found[group], ranks[group] = List(signer, says, jws), rank
    return found
