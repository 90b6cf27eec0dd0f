"""Who a key's successor is: committed to in advance, told when it is time, and never twice.

A key signs one *succession*: at first with the hash of the key that will follow it (by which
nobody finds that key), later with the key itself. So whoever steals a key, and not its successor,
cannot rotate it for those who know the hash. Two statements of one key that name different
successors or predecessors are a conflict: proof, for everybody, that it is in two hands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, takewhile
from math import inf

from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.jose import opened, sign
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.names import key_of_did

PURPOSE = "succession"
MAX_GENERATIONS = 16
"""How many keys before the one in use are shown and followed."""
_MAX_STATEMENT = 1500  # characters


@dataclass(frozen=True, slots=True)
class Succession:
    """What one key says of those before and after it.

    ``digest`` is the hash of the next key's DID; ``next``, ``previous`` are DIDs or empty;
    ``issued`` is when the key was given up, in seconds since 1970, or 0.
    """

    digest: str
    next: str
    previous: str
    issued: int


@dataclass(frozen=True, slots=True)
class Told:
    """A succession, verified: who said it, and the statement."""

    did: str
    says: Succession
    jws: str


def digest_of(did: str) -> str:
    """The hash by which a key is committed to before it is shown."""
    return hashlib.sha256(b"kwaai/succession/1\0" + did.encode()).hexdigest()


def commit(key: Key, next_did: str, previous: str) -> str:
    """The statement of a key in use; always the same, so that it can be made again."""
    says = Succession(digest_of(next_did), "", previous, 0)
    return sign(key, PURPOSE, written(says))


def rotate(key: Key, next_did: str, previous: str, now: int) -> str:
    """The statement of a key that is given up."""
    says = Succession(digest_of(next_did), next_did, previous, now)
    return sign(key, PURPOSE, written(says))


@lru_cache(maxsize=2048)
def told(jws: str) -> Told:
    """A verified succession. Errors: :class:`NotVerified`."""
    with parsing("a succession"):
        if len(jws) > _MAX_STATEMENT:
            raise ValueError("it is too long")
        did, payload = opened(PURPOSE, jws)
        says = parsed(Succession, loaded(payload))
        for other in filter(None, (says.next, says.previous)):
            key_of_did(other)
        if says.next and (digest_of(says.next) != says.digest or not says.issued):
            raise ValueError("it does not say one thing")
        if did in (says.next, says.previous):
            raise ValueError("it is its own neighbour")
    return Told(did, says, jws)


def in_conflict(one: Told, other: Told) -> bool:
    """Whether the same key says two things that cannot both hold."""
    what = [(told.says.digest, told.says.previous) for told in (one, other)]
    return one.did == other.did and what[0] != what[1]


class Lineage:
    """Successions by key, out of which the chain of one identity can be followed.

    ``frozen`` are the keys that are in two hands: those given, and those whose statements here
    are in conflict. What they sign counts for nothing.
    """

    def __init__(self, statements: Iterable[Told], frozen: Iterable[str] = ()) -> None:
        self._of: dict[str, Told] = {}
        self.frozen = set(frozen)
        for statement in statements:
            known = self._of.setdefault(statement.did, statement)
            if in_conflict(known, statement):
                self.frozen.add(statement.did)
            elif not known.says.next:
                self._of[statement.did] = statement

    def until(self, did: str) -> float:
        """Until when a key could sign, in seconds since 1970."""
        if did in self.frozen:
            return -inf
        own = self._of.get(did)
        return float(own.says.issued) if own is not None and own.says.next else inf

    def names(self, did: str) -> tuple[str, ...]:
        """A DID and those that it had before, each of which has named its successor."""
        links = pairwise([did, *self._claimed(did)])
        before = takewhile(lambda link: self._of[link[1]].says.next == link[0], links)
        return (did, *(older for _, older in before))

    def touches_frozen(self, did: str) -> bool:
        """Whether an identity, or one that it says to have been before, is in two hands."""
        return not self.frozen.isdisjoint([did, *self._claimed(did)])

    def proof(self, did: str) -> tuple[str, ...]:
        """The statements that prove :meth:`names`; none where there is nothing to prove."""
        names = self.names(did)
        return tuple(self._of[name].jws for name in names) if len(names) > 1 else ()

    def _claimed(self, did: str) -> Iterator[str]:
        for _ in range(MAX_GENERATIONS):
            own = self._of.get(did)
            if own is None or own.says.previous not in self._of:
                return
            did = own.says.previous
            yield did
