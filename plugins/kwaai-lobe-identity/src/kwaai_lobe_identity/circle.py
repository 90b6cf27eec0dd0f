"""What an identity remembers of others: groups, invitations, revocations, and whose key is whose.

One file, replaced as a whole under a lock, so that a command and a running node may both write;
each reads it again when it has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

from kwaai_core import ConfigError, Group, NotVerified
from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.invitations import Kept
from kwaai_lobe_identity.memberships import (
    MAX_SECONDS,
    Revocations,
    group_of,
    membership,
    revocations,
)
from kwaai_lobe_identity.succession import Told, in_conflict, told

FILE = "circle.json"
MAX_KNOWN = 512
"""Of how many peers in common groups the successions are remembered, the latest met."""
MAX_CONFLICTS = 256
MAX_HISTORY = 32
"""How many successions are kept for the sake of memberships and lists."""


@dataclass(frozen=True)
class State:
    """``memberships`` are chains, ``history`` the successions that they need, ``known`` the
    succession of each key that was met, ``conflicts`` pairs of them that contradict each other."""

    founded: tuple[Group, ...] = ()
    memberships: tuple[tuple[str, ...], ...] = ()
    history: tuple[str, ...] = ()
    revocations: tuple[str, ...] = ()
    invitations: tuple[Kept, ...] = ()
    known: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def frozen(self) -> frozenset[str]:
        """The keys that are proved to be in two hands."""
        return frozenset(map(conflict, self.conflicts))

    @cached_property
    def met(self) -> Mapping[str, Told]:
        """What keys had said of themselves when they were met."""
        return {did: told(jws) for did, jws in self.known.items()}

    @cached_property
    def needed(self) -> tuple[Told, ...]:
        """The successions that its memberships and lists need."""
        return tuple(map(told, self.history))


@dataclass
class Changing:
    """A change that is under way: ``state`` is put in the place of what was there."""

    state: State


def tidied(state: State, now: float) -> State:
    """Without what has expired, or is more than anybody keeps."""
    return replace(
        state,
        memberships=tuple(chain for chain in state.memberships if _ends(chain) > now),
        history=tuple(dict.fromkeys(state.history))[-MAX_HISTORY:],
        revocations=tuple(dict.fromkeys(state.revocations)),
        invitations=tuple(kept for kept in state.invitations if kept.expires > now),
        known=dict(list(state.known.items())[-MAX_KNOWN:]),
        conflicts=state.conflicts[-MAX_CONFLICTS:],
    )


def _ends(chain: tuple[str, ...]) -> int:
    return min(membership(jws)[1].expires for jws in chain)


def still_needed(revoked: Mapping[str, int], now: float) -> dict[str, int]:
    """The revocations of memberships that could be good yet."""
    return {did: issued for did, issued in revoked.items() if issued + MAX_SECONDS > now}


def remembering(state: State, statements: Iterable[Told]) -> State:
    """With the successions of keys that were met."""
    known = dict(state.known)
    for statement in statements:
        before = state.met.get(statement.did)
        if before is None or (statement.says.next and not before.says.next):
            known.pop(statement.did, None)  # so that it comes last, and is forgotten last
            known[statement.did] = statement.jws
    return replace(state, known=known)


def accusing(state: State, pairs: Iterable[tuple[str, ...]]) -> State:
    """With these conflicts, as far as they are new. Errors: :class:`NotVerified`."""
    new = {did: pair for pair in pairs if (did := conflict(pair)) not in state.frozen}
    return replace(state, conflicts=(*state.conflicts, *new.values()))


def contradicting(state: State, statements: Iterable[Told]) -> list[tuple[str, ...]]:
    """Pairs of what was known and of what is shown now that cannot both hold."""
    known = ((state.met.get(statement.did), statement) for statement in statements)
    return [(one.jws, other.jws) for one, other in known if one and in_conflict(one, other)]


def conflict(pair: tuple[str, ...]) -> str:
    """Whose conflict a pair of successions proves. Errors: :class:`NotVerified`."""
    with parsing("the proof of a conflict"):
        one, other = map(told, pair)
        if not in_conflict(one, other):
            raise ValueError("the two statements do not contradict each other")
        return one.did


class Circle:
    """The state in a folder."""

    def __init__(self, folder: Folder, now: Callable[[], float]) -> None:
        self._folder = folder
        self._now = now
        self._lock = threading.Lock()  # of the cache: a call may come from another thread
        self._cached: tuple[tuple[int, ...] | None, State] = (None, State())

    def state(self) -> State:
        """What is there now. Errors: :class:`ConfigError`."""
        stamp = self._folder.stamp(FILE)
        with self._lock:
            if stamp is None or stamp != self._cached[0]:
                self._cached = stamp, self._read()
            return self._cached[1]

    def _read(self) -> State:
        content = self._folder.read(FILE)
        if content is None:
            return State()
        try:
            with parsing("it"):
                state = parsed(State, loaded(content))
                _check(state)
                return state
        except NotVerified as error:
            raise ConfigError(
                f"{self._folder.path / FILE} cannot be used: {error.message}: put back the file "
                "of your backup, or move it away to forget groups and invitations"
            ) from None

    @contextmanager
    def changing(self) -> Iterator[Changing]:
        """Change the state, alone; left without an error, it is on disk when this is over."""
        with self._folder.locked():
            before = self._read()
            changing = Changing(tidied(before, self._now()))
            yield changing
            after = tidied(changing.state, self._now())
            if after != before:
                self._folder.replace(FILE, written(after))
                with self._lock:  # a file system's clock may be too coarse to show the change
                    self._cached = (None, State())


def _check(state: State) -> None:
    """Errors: :class:`NotVerified`, so that nothing raises it later where nobody expects it."""
    for chain in state.memberships:
        group_of(chain)
        for jws in chain:
            membership(jws)
    if any(did != statement.did for did, statement in state.met.items()):
        raise NotVerified("a succession is kept under another key's name")
    _ = state.needed, state.frozen
    for jws in state.revocations:
        revocations(jws)


def next_list(
    group: Group, before: Revocations | None, more: Mapping[str, int], now: float
) -> Revocations:
    """The list that comes after another, with what that has revoked and ``more``."""
    number = 1 + (before.number if before else 0)
    revoked = still_needed(before.revoked if before else {}, now)
    return Revocations(group.founder, group.name, number, revoked | dict(more))
