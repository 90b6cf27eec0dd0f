"""What this node has published: told to those who are to hold it, and kept alive."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from kwaai_core import KwaaiError, RequestError
from kwaai_lobe_libp2p.kademlia import Kademlia
from kwaai_lobe_libp2p.signing import Signer
from kwaai_lobe_libp2p.statements import MAX_LIFE, MAX_NAME, Kind, Statement, fit_name
from kwaai_lobe_libp2p.table import BUCKET, Contact

AGAIN = 600.0
"""After at most as many seconds a statement is renewed, for nodes that came since."""

RETRY = 1.0, 60.0
"""The first and the longest pause in seconds after a statement that reached nobody."""

WELCOME = 0.1, 1.0
"""After how many seconds, at least and at most, a newcomer is told what it may hold."""

PACE = 0.03
"""How many seconds pass between two statements that a newcomer is told."""

SEARCH = 10.0
AT_ONCE = 4
MAX_OWN = 512

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Own:
    """A statement that this node keeps alive; ``holders`` are the peers that hold it."""

    kind: Kind
    name: str
    body: bytes
    seconds: float
    statement: Statement | None = None
    holders: set[str] = field(default_factory=set)
    tried: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Announcements:
    """This node's statements, each with a task in ``nursery`` that keeps it alive."""

    def __init__(
        self,
        kademlia: Kademlia,
        signer: Signer,
        nursery: trio.Nursery,
        now: Callable[[], float],
    ) -> None:
        self._kademlia = kademlia
        self._signer = signer
        self._nursery = nursery
        self._now = now
        self._owns: dict[tuple[Kind, str], _Own] = {}
        self._room = trio.CapacityLimiter(AT_ONCE)
        self._newcomer = trio.Event()
        kademlia.own = self._at
        kademlia.met = self._met

    async def say(self, kind: Kind, name: str, body: bytes, seconds: float) -> None:
        """Publish in place of what has the same kind and name; returns after the first try.

        Where nobody took it, that is noticed, and it is tried again. Errors: :class:`RequestError`.
        """
        if not name or not fit_name(name):
            raise RequestError(f"{name!r} cannot be a name: 1 to {MAX_NAME} printable characters")
        if not 0 < seconds <= MAX_LIFE:
            raise RequestError(f"{name} cannot be good for {seconds} s: at most {MAX_LIFE}")
        if old := self._owns.pop((kind, name), None):
            old.scope.cancel()
        elif len(self._owns) >= MAX_OWN:
            raise RequestError(f"{MAX_OWN} records are published: too many for one more")
        own = self._owns[kind, name] = _Own(kind, name, body, seconds)
        self._nursery.start_soon(self._keep, own)
        await own.tried.wait()

    def holders(self) -> Mapping[str, int]:
        """How many peers hold each statement."""
        return {f"{own.kind} {own.name}": len(own.holders) for own in self._owns.values()}

    def _at(self, key: bytes) -> Sequence[Statement]:
        """This node's own statements under a key: it is a holder of them itself."""
        now, mine = self._now(), (own.statement for own in self._owns.values())
        return [one for one in mine if one is not None and one.key == key and one.expires > now]

    def _met(self, contact: Contact) -> None:
        """A peer has come into the routing table."""
        self._newcomer.set()
        self._newcomer = trio.Event()
        self._nursery.start_soon(self._welcome, contact)

    async def _welcome(self, contact: Contact) -> None:
        """Have a newcomer hold what is held by fewer than may hold it."""
        await trio.sleep(random.uniform(*WELCOME))
        for own in list(self._owns.values()):
            few = 0 < len(own.holders) < BUCKET and contact.peer not in own.holders
            if few and own.statement is not None:
                await self._store(contact, own.statement, own.holders, [])
                await trio.sleep(PACE)

    async def _keep(self, own: _Own) -> None:
        """Announce a statement, and again in good time before it expires."""
        first, longest = RETRY
        pause = first
        with own.scope:
            while True:
                newcomer = self._newcomer
                try:
                    async with self._room:
                        own.holders = await self._announce(own)
                except (KwaaiError, OSError) as error:  # of the identity, or the file of numbers
                    own.holders = set()
                    _log.warning("%s could not be published: %s", own.name, error)
                own.tried.set()
                if own.holders:
                    pause = first
                    await trio.sleep(min(own.seconds / 2, AGAIN) * random.uniform(0.7, 1.0))
                else:
                    _log.debug("nobody holds %s yet; trying again", own.name)
                    with trio.move_on_after(pause * random.uniform(0.5, 1.5)):
                        await newcomer.wait()
                    pause = min(2 * pause, longest)
        own.tried.set()  # replaced before it was tried: who published it need not wait

    async def _announce(self, own: _Own) -> set[str]:
        """Sign a statement anew and have the nearest peers hold it; returns which of them do.

        Errors: OSError.
        """
        above = 0
        while True:
            statement = own.statement = await self._signer.sign(
                own.kind, own.name, own.body, own.seconds, above=above
            )
            found = await self._kademlia.search(statement.key, seconds=SEARCH)
            holders: set[str] = set()
            newer: list[int] = []
            async with trio.open_nursery() as nursery:
                for contact in found.holding():
                    nursery.start_soon(self._store, contact, statement, holders, newer)
            if not newer:
                return holders
            above = max(newer)  # this node's own, from before it lost its state

    async def _store(
        self, contact: Contact, statement: Statement, holders: set[str], newer: list[int]
    ) -> None:
        """Have a peer hold a statement; adds it to the holders, or the number it has to newer."""
        try:
            kept = await self._kademlia.store(contact, statement)
        except KwaaiError as error:
            _log.debug("%s does not hold %s: %s", contact.peer, statement.name, error)
            return
        if kept is None or (kept.key, kept.peer) != (statement.key, statement.peer):
            return
        if kept.sequence <= statement.sequence:
            holders.add(contact.peer)
        else:
            newer.append(kept.sequence)
