"""What this node holds of the directory for others: bounded, and fair to each of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kwaai_lobe_libp2p.statements import Statement, distance


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is held, in statements and in bytes as they were sealed."""

    statements: int = 16_384
    size: int = 32 << 20
    statements_of_one: int = 512
    size_of_one: int = 2 << 20
    statements_of_key: int = 64


class Shelf:
    """Statements by key and subject. Of two with both in common only the newer is held.

    Where a subject has used its share up, or a key is full, new ones are refused. Where the whole
    is full, those that are farthest from ``position``, this node's own, make room.
    """

    def __init__(self, position: bytes, limits: Limits = Limits()) -> None:
        self._position = position
        self._limits = limits
        self._held: dict[bytes, dict[tuple[str, str], Statement]] = {}
        self._of_one: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._count = self._size = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """How many bytes the statements have, as they were sealed."""
        return self._size

    def hold(self, statement: Statement, now: float) -> Statement | None:
        """Hold a statement; returns what is held in its place then, None where nothing is."""
        place = (statement.peer, statement.kind)
        there = self._alive(statement.key, now)
        held = there.get(place)
        if not statement.replaces(held):
            return held
        if held is not None:
            self._drop(statement.key, place)
        elif len(there) >= self._limits.statements_of_key:
            return None
        if not self._has_room(statement):
            self._expire(now)
            if not self._has_room(statement):
                return None
        self._add(statement, place)
        self._make_room()
        return self._held.get(statement.key, {}).get(place)

    def at(self, key: bytes, now: float) -> Sequence[Statement]:
        """What is held under a key and has not expired."""
        return list(self._alive(key, now).values())

    def _alive(self, key: bytes, now: float) -> dict[tuple[str, str], Statement]:
        for place, statement in list(self._held.get(key, {}).items()):
            if statement.expires <= now:
                self._drop(key, place)
        return self._held.get(key, {})

    def _has_room(self, statement: Statement) -> bool:
        """Whether the share of its subject is large enough for it."""
        count, size = self._of_one.get(statement.peer, (0, 0))
        limits = self._limits
        return (
            count < limits.statements_of_one and size + len(statement.sealed) <= limits.size_of_one
        )

    def _add(self, statement: Statement, place: tuple[str, str]) -> None:
        self._held.setdefault(statement.key, {})[place] = statement
        self._account(statement, 1)

    def _drop(self, key: bytes, place: tuple[str, str]) -> None:
        self._account(self._held[key].pop(place), -1)
        if not self._held[key]:
            del self._held[key]

    def _account(self, statement: Statement, sign: int) -> None:
        share = self._of_one[statement.peer]
        share[0] += sign
        share[1] += sign * len(statement.sealed)
        self._count += sign
        self._size += sign * len(statement.sealed)
        if not share[0]:
            del self._of_one[statement.peer]

    def _expire(self, now: float) -> None:
        for key in list(self._held):
            self._alive(key, now)

    def _make_room(self) -> None:
        limits = self._limits
        if self._count <= limits.statements and self._size <= limits.size:
            return
        # a sixteenth at a time: to sort for every statement that comes would cost too much
        nearest_last = sorted(self._held, key=lambda key: -distance(key, self._position))
        for key in nearest_last:
            for place in list(self._held[key]):
                if (
                    self._count <= limits.statements * 15 // 16
                    and self._size <= limits.size * 15 // 16
                ):
                    return
                self._drop(key, place)

    def __iter__(self) -> Iterator[Statement]:
        for there in self._held.values():
            yield from there.values()
