"""An identity among its groups: which they are, and what is remembered of others in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from kwaai_core import Group
from kwaai_lobe_identity.circle import Circle, State
from kwaai_lobe_identity.generations import SHOWN, Generations
from kwaai_lobe_identity.memberships import (
    Revocations,
    Standing,
    group_of,
    newest,
    revocations,
    standing,
)
from kwaai_lobe_identity.succession import Lineage, Told, told

MAX_GROUPS = 16
"""How many groups an identity may be in; each stands in its introduction."""


class Members:
    """The groups of an identity, for which no private key is needed."""

    def __init__(self, found: Generations, now: Callable[[], float]) -> None:
        self.circle = Circle(found.folder, now)
        self.now = now
        self.history = tuple(one.jws for one in found.history[-SHOWN:])
        self.names = found.names

    def lineage(self, state: State, more: Iterable[Told] = ()) -> Lineage:
        """Whose key is whose, by what is remembered and by ``more``."""
        kept = [told(jws) for jws in (*self.history, *state.history)]
        shown = list(more)
        met = [known for one in shown if (known := state.knows(one)) is not None]
        return Lineage([*met, *kept, *shown], state.frozen)

    def lists(
        self, state: State, lineage: Lineage, groups: Iterable[Group]
    ) -> Mapping[Group, tuple[Revocations, str]]:
        """The newest revocations of these groups."""
        return newest(state.revocations, groups, lineage)

    def standings(self, state: State) -> list[tuple[Standing, tuple[str, ...]]]:
        """The memberships that hold now, each with its chain."""
        lineage = self.lineage(state)
        lists = self.lists(state, lineage, map(group_of, state.memberships))
        found = []
        for chain in state.memberships:
            revoked = lists[group_of(chain)][0].revoked if group_of(chain) in lists else {}
            held = standing(chain, revoked, lineage, self.now())
            if held is not None and held.member in self.names:
                found.append((held, chain))
        return found

    def groups(self, state: State) -> tuple[Group, ...]:
        """Those founded and those joined."""
        joined = (held.group for held, _ in self.standings(state))
        return tuple(dict.fromkeys([*state.founded, *joined]))

    def with_lists(self, state: State, lists: Iterable[str], lineage: Lineage) -> State:
        """A state with what of these lists of revocations is news to this node's groups."""
        groups = {*state.founded, *map(group_of, state.memberships)}
        found = newest([*state.revocations, *lists], groups, lineage)
        statements = tuple(jws for _, jws in found.values())
        if set(statements) == set(state.revocations):
            return state
        signers = {revocations(jws)[0] for jws in statements}
        history = [jws for did in signers for jws in lineage.statements(did)]
        return replace(state, revocations=statements, history=(*state.history, *history))
