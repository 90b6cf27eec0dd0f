"""An identity among its groups: which they are, and what is remembered of others in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from kwaai_core import Group
from kwaai_lobe_identity.circle import Circle, State
from kwaai_lobe_identity.generations import SHOWN, Generations
from kwaai_lobe_identity.memberships import (
    Standing,
    group_of,
    newest,
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
        own = map(told, self.history)
        return Lineage([*state.met.values(), *own, *state.needed, *more], state.frozen)

    def standings(self, state: State) -> list[tuple[Standing, tuple[str, ...]]]:
        """The memberships that hold now, each with its chain."""
        lineage = self.lineage(state)
        lists = newest(state.revocations, map(group_of, state.memberships), lineage)
        found = []
        for chain in state.memberships:
            held = standing(chain, lists, lineage, self.now())
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
        statements = tuple(one.jws for one in found.values())
        if set(statements) == set(state.revocations):
            return state
        proofs = [jws for one in found.values() for jws in lineage.proof(one.signer)]
        return replace(state, revocations=statements, history=(*state.history, *proofs))
