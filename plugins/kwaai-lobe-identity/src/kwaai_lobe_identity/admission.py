"""How an identity lets others into its groups, and how it is let in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from kwaai_core import Group, Invitation, NotVerified, RequestError
from kwaai_lobe_identity import invitations
from kwaai_lobe_identity.circle import State, next_list
from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.generations import Generations
from kwaai_lobe_identity.invitations import Kept
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.members import MAX_GROUPS, Members
from kwaai_lobe_identity.memberships import (
    MAX_LINKS,
    MAX_REVOKED,
    MAX_SECONDS,
    Revocations,
    group_of,
    issue,
    named_group,
    newest,
    revoke,
    signer_of,
    standing,
)
from kwaai_lobe_identity.names import did_of_key, key_of_did, key_of_peer, peer_of_key
from kwaai_lobe_identity.succession import told

MAX_INVITATIONS = 64
"""How many invitations may be open."""
_MAX_ADMISSION = 1 << 16


@dataclass(frozen=True, slots=True)
class _Admission:
    """What a new member is given; everything in it is signed by itself."""

    chain: tuple[str, ...]
    history: tuple[str, ...]
    revocations: tuple[str, ...]


class Admission(Members):
    """The groups of an identity, with its key. ``seconds`` is how long a membership is good.

    What changes something blocks until that is on disk.
    """

    def __init__(
        self, found: Generations, key: Key, seconds: int, now: Callable[[], float]
    ) -> None:
        super().__init__(found, now)
        self.key = key
        self._seconds = seconds

    def invite(
        self, name: str, addresses: Sequence[str], seconds: float, *, may_invite: bool
    ) -> Invitation:
        """See :meth:`kwaai_core.Identity.invite`."""
        if not 0 <= seconds <= MAX_SECONDS:
            raise RequestError(f"an invitation is good for 0 to {MAX_SECONDS} s, not {seconds:g}")
        with self.circle.changing() as changing:
            state = changing.state
            group = self._invitable(state, name)
            if len(state.invitations) >= MAX_INVITATIONS:
                raise RequestError(f"{MAX_INVITATIONS} invitations are open: let some expire")
            expires = int(self.now() + seconds)
            invitation, did = invitations.make(self.key.peer_id, addresses, group, expires)
            kept = Kept(did, group.founder, group.name, may_invite, expires)
            if group.founder in self.names:
                state = replace(state, founded=tuple(dict.fromkeys([*state.founded, group])))
            changing.state = replace(state, invitations=(*state.invitations, kept))
        return invitation

    def _invitable(self, state: State, name: str) -> Group:
        """The group of this name that this node may invite into, founded where it has none."""
        try:
            fresh = named_group(self.key.did, name)
        except ValueError as error:
            raise RequestError(str(error)) from None
        for group in state.founded:
            if group.name == name:
                return group
        joined = [(held, chain) for held, chain in self.standings(state) if held.group.name == name]
        for held, chain in joined:
            if held.may_invite and len(chain) < MAX_LINKS:
                return held.group
        if joined:
            raise RequestError(
                f"this node is in a group {name}, and may not invite into it: ask whoever "
                "founded it, or invite into a group of another name"
            )
        _check_room(self.groups(state))
        return fresh

    def admit(self, peer: str, answer: bytes) -> bytes:
        """See :meth:`kwaai_core.Identity.admit`. The invitation is used up on disk before."""
        did = did_of_key(key_of_peer(peer))
        used = invitations.answered(answer, did, self.key.peer_id)
        with self.circle.changing() as changing:
            state = changing.state
            found = next((kept for kept in state.invitations if kept.did == used), None)
            others = tuple(kept for kept in state.invitations if kept.did != used)
            changing.state = replace(state, invitations=others)
        if found is None:
            raise NotVerified("there is no such invitation: it was used before, or has expired")
        return written(self._admission(state, did, found))

    def _admission(self, state: State, did: str, kept: Kept) -> _Admission:
        group, lineage = Group(kept.founder, kept.group), self.lineage(state)
        chain: tuple[str, ...] = ()
        if group not in state.founded:
            chains = [chain for held, chain in self.standings(state) if held.group == group]
            if not chains:
                raise NotVerified(f"this node is not in the group {group.name} any more")
            chain = chains[0]
        now = int(self.now())
        link = issue(
            self.key, group, did, may_invite=kept.may_invite, now=now, seconds=self._seconds
        )
        lists = newest(state.revocations, [group], lineage).values()
        signers = [self.key.did, *(one.signer for one in lists), *map(signer_of, chain)]
        proofs = dict.fromkeys(jws for signer in signers for jws in lineage.proof(signer))
        return _Admission((*chain, link), tuple(proofs), tuple(one.jws for one in lists))

    def join(self, invitation: Invitation, content: bytes) -> Group:
        """See :meth:`kwaai_core.Identity.join`."""
        with parsing("the membership"):
            if len(content) > _MAX_ADMISSION:
                raise ValueError(f"it has more than {_MAX_ADMISSION} bytes")
            given = parsed(_Admission, loaded(content))
            history = [told(jws) for jws in given.history]
            group, inviter = group_of(given.chain), signer_of(given.chain[-1])
        if group != invitation.group or peer_of_key(key_of_did(inviter)) != invitation.peer:
            raise NotVerified("the membership is not what the invitation said")
        with self.circle.changing() as changing:
            state = changing.state
            lineage = self.lineage(state, history)
            lists = newest([*state.revocations, *given.revocations], [group], lineage)
            held = standing(given.chain, lists, lineage, self.now())
            if held is None or held.member not in self.names:
                raise NotVerified(
                    "the membership does not hold: compare both clocks, and ask for another "
                    "invitation"
                )
            others = [chain for chain in state.memberships if group_of(chain) != group]
            _check_room({*map(group_of, others), *state.founded})
            signers = map(signer_of, given.chain)
            proofs = [jws for signer in signers for jws in lineage.proof(signer)]
            state = replace(
                state,
                memberships=(*others, given.chain),
                history=(*state.history, *proofs),
            )
            changing.state = self.with_lists(state, given.revocations, lineage)
        return group

    def renew(self) -> None:
        """Sign the lists of revocations with the key in use, where that has been rotated.

        From then on nobody listens to what the key before it may yet sign.
        """
        if len(self.names) > 1 and self._outdated(self.circle.state()):
            with self.circle.changing() as changing:
                lineage = self.lineage(changing.state)
                signed = [revoke(self.key, says) for says in self._outdated(changing.state)]
                changing.state = self.with_lists(changing.state, signed, lineage)

    def _outdated(self, state: State) -> list[Revocations]:
        lists = newest(state.revocations, state.founded, self.lineage(state))
        return [
            next_list(group, lists[group].says if group in lists else None, {}, self.now())
            for group in state.founded
            if group not in lists or lists[group].signer != self.key.did
        ]

    def revoke(self, name: str, did: str) -> Group:
        """End what ``did`` has in a group that this node founded, and what rests on it.

        Errors: :class:`RequestError` where it has founded none of this name.
        """
        key_of_did(did)
        with self.circle.changing() as changing:
            state = changing.state
            group = next((group for group in state.founded if group.name == name), None)
            if group is None:
                raise RequestError(f"this node has founded no group {name}: only a founder revokes")
            lineage = self.lineage(state)
            before = newest(state.revocations, [group], lineage).get(group)
            now = self.now()
            says = next_list(group, before.says if before else None, {did: int(now)}, now)
            if len(says.revoked) > MAX_REVOKED:
                raise RequestError(f"{MAX_REVOKED} members are revoked: found another group")
            changing.state = self.with_lists(state, [revoke(self.key, says)], lineage)
        return group


def _check_room(groups: Collection[Group]) -> None:
    if len(groups) >= MAX_GROUPS:
        raise RequestError(f"this node is in {MAX_GROUPS} groups, and cannot be in more")
