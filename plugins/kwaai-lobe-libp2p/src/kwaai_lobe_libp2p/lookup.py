"""A lookup on its way: whom it knows of, whom it has asked, and what it has found."""

from __future__ import annotations

from dataclasses import dataclass, field

from kwaai_lobe_libp2p.statements import Statement, distance
from kwaai_lobe_libp2p.table import Contact


@dataclass(slots=True)
class Lookup:
    """What a lookup has found: statements under its key, and the peers that answered.

    ``silent`` are those that did not; ``cut_short``: it ended before the nearest of all answered.
    """

    key: bytes
    width: int
    known: dict[str, Contact] = field(default_factory=dict)
    asking: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    statements: dict[tuple[str, str], Statement] = field(default_factory=dict)
    holders: int = 0
    cut_short: bool = False

    def learn(self, contact: Contact) -> None:
        self.known.setdefault(contact.peer, contact)

    def add(self, statement: Statement) -> None:
        place = (statement.peer, statement.kind)
        if statement.key == self.key and statement.replaces(self.statements.get(place)):
            self.statements[place] = statement

    def nearest(self) -> list[Contact]:
        """The nearest that have answered or still may."""
        there = (contact for peer, contact in self.known.items() if peer not in self.silent)
        return sorted(there, key=lambda one: distance(one.position, self.key))[: self.width]

    def next(self) -> Contact | None:
        """Whom to ask next, None for nobody now."""
        tried = self.asking | self.answered
        return next((one for one in self.nearest() if one.peer not in tried), None)

    def holding(self) -> list[Contact]:
        """The nearest that have answered."""
        return [contact for contact in self.nearest() if contact.peer in self.answered]
