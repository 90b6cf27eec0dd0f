"""How an identity lets others into its groups, and how it is let in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    group_of,
    issue,
    membership,
    named_group,
    newest,
    revoke,
    standing,
)
from kwaai_lobe_identity.names import did_of_key, key_of_did, key_of_peer, peer_of_key
from kwaai_lobe_identity.succession import told

MAX_INVITATIONS = 256
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
        made: list[Invitation] = []

        def invited(state: State) -> State:
            group = self._invitable(state, name)
            if len(state.invitations) >= MAX_INVITATIONS:
                raise RequestError(f"{MAX_INVITATIONS} invitations are open: let some expire")
            expires = int(self.now() + seconds)
            invitation, did = invitations.make(
                self.key.peer_id, addresses, group.founder, group.name, expires
            )
            made.append(invitation)
            kept = Kept(did, group.founder, group.name, may_invite, expires)
            founded = tuple(dict.fromkeys([*state.founded, group]))
            return replace(
                state,
                founded=founded if group.founder in self.names else state.founded,
                invitations=(*state.invitations, kept),
            )

        self.circle.change(invited)
        return made[-1]

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
        if len(self.groups(state)) >= MAX_GROUPS:
            raise RequestError(
                f"this node is in {MAX_GROUPS} groups already, and cannot be in more"
            )
        return fresh

    def admit(self, peer: str, answer: bytes) -> bytes:
        """See :meth:`kwaai_core.Identity.admit`. The invitation is used up on disk before."""
        did = did_of_key(key_of_peer(peer))
        used = invitations.answered(answer, did, self.key.peer_id)
        found: list[Kept] = []

        def admitted(state: State) -> State:
            found[:] = [kept for kept in state.invitations if kept.did == used]
            return replace(
                state, invitations=tuple(kept for kept in state.invitations if kept.did != used)
            )

        state = self.circle.change(admitted)
        if not found:
            raise NotVerified("there is no such invitation: it was used before, or has expired")
        if found[0].expires <= self.now():
            raise NotVerified("the invitation has expired")
        return written(self._admission(state, did, found[0]))

    def _admission(self, state: State, did: str, kept: Kept) -> _Admission:
        group, now = Group(kept.founder, kept.group), int(self.now())
        chain: tuple[str, ...] = ()
        if group not in state.founded:
            chains = [chain for held, chain in self.standings(state) if held.group == group]
            if not chains:
                raise NotVerified(f"this node is not in the group {group.name} any more")
            chain = chains[0]
        link = issue(
            self.key, group, did, may_invite=kept.may_invite, now=now, seconds=self._seconds
        )
        history = tuple(dict.fromkeys([*state.history, *self.history]))
        lists = self.lists(state, self.lineage(state), [group])
        return _Admission((*chain, link), history, tuple(jws for _, jws in lists.values()))

    def join(self, invitation: Invitation, content: bytes) -> Group:
        """See :meth:`kwaai_core.Identity.join`."""
        with parsing("the membership"):
            if len(content) > _MAX_ADMISSION:
                raise ValueError(f"it has more than {_MAX_ADMISSION} bytes")
            given = parsed(_Admission, loaded(content))
            history = [told(jws) for jws in given.history]
            group, (inviter, _) = group_of(given.chain), membership(given.chain[-1])
        if group != invitation.group or peer_of_key(key_of_did(inviter)) != invitation.peer:
            raise NotVerified("the membership is not what the invitation said")

        def joined(state: State) -> State:
            lineage = self.lineage(state, history)
            lists = newest([*state.revocations, *given.revocations], [group], lineage)
            revoked = lists[group][0].revoked if group in lists else {}
            held = standing(given.chain, revoked, lineage, self.now())
            if held is None or held.member not in self.names:
                raise NotVerified("the membership does not hold: ask for another invitation")
            others = [chain for chain in state.memberships if group_of(chain) != group]
            if len({*map(group_of, others), *state.founded}) >= MAX_GROUPS:
                raise RequestError(f"this node is in {MAX_GROUPS} groups already")
            state = replace(
                state,
                memberships=(*others, given.chain),
                history=(*state.history, *(set(given.history) - set(self.history))),
            )
            return self.with_lists(state, given.revocations, lineage)

        self.circle.change(joined)
        return group

    def revoke(self, name: str, did: str) -> Group:
        """End what ``did`` has in a group that this node founded, and what rests on it.

        Errors: :class:`RequestError` where it has founded none of this name.
        """
        key_of_did(did)
        done: list[Group] = []

        def revoked(state: State) -> State:
            group = next((group for group in state.founded if group.name == name), None)
            if group is None:
                raise RequestError(f"this node has founded no group {name}: only a founder revokes")
            lineage = self.lineage(state)
            before = self.lists(state, lineage, [group]).get(group)
            says = next_list(group, before[0] if before else None, did, self.now())
            if len(says.revoked) > MAX_REVOKED:
                raise RequestError(f"{MAX_REVOKED} members are revoked: found another group")
            done.append(group)
            return self.with_lists(state, [revoke(self.key, says)], lineage)

        self.circle.change(revoked)
        return done[-1]
