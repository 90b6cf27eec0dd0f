"""The directory: what this node says of itself there, and what it finds of others."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from kwaai_core import (
    DeadlinePassed,
    FrameError,
    Identity,
    KwaaiError,
    PeerUnreachable,
    Record,
    RequestError,
)
from kwaai_lobe_libp2p.kademlia import Kademlia, Lookup, Streams
from kwaai_lobe_libp2p.statements import (
    MAX_ADDRESSES,
    MAX_BODY,
    MAX_LIFE,
    MAX_NAME,
    Kind,
    Statement,
    fit_name,
    key_of,
    seal,
)
from kwaai_lobe_libp2p.table import BUCKET, Contact
from kwaai_lobe_libp2p.tasks import background

ENOUGH = 4
"""From as many holders the newest record is taken; one of them may be behind, or lie by silence."""

CARD_LIFE = 6 * 3600.0
REFRESH = 300.0
"""After how many seconds the routing table is renewed."""

LOOK = 0.5
"""How many seconds pass between two looks at who is connected."""

WELCOME = 0.1, 1.0
"""After how many seconds, at least and at most, a newcomer is told what it may hold."""

AGAIN = 600.0
"""After at most as many seconds a statement is renewed, for nodes that came since."""

RETRY = 1.0, 60.0
"""The first and the longest pause in seconds after a statement that reached nobody."""

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


class Directory:
    """Records, providers and nearest peers; made by :func:`open_directory`."""

    def __init__(
        self,
        identity: Identity,
        streams: Streams,
        number: Callable[[int], Awaitable[int]],
        nursery: trio.Nursery,
        *,
        learn: Callable[[str, Sequence[str]], None],
        allows: Callable[[str, str], bool],
        now: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._streams = streams
        self._number = number
        self._nursery = nursery
        self._now = now
        self._owns: dict[tuple[Kind, str], _Own] = {}
        self._card: Statement | None = None
        self._signing = trio.Lock()
        self._announcing = trio.CapacityLimiter(4)
        self._newcomer = trio.Event()
        self.kademlia = Kademlia(
            identity,
            streams,
            card=self._contact,
            own=self._own_at,
            learn=learn,
            met=self._met,
            allows=allows,
            now=now,
        )

    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.publish`; where nobody takes it, it is tried again.

        Errors: :class:`FrameError` for a body, :class:`RequestError` for a name or a time that is
        not allowed.
        """
        if len(body) > MAX_BODY:
            raise FrameError(f"the record {name} has {len(body)} bytes: {MAX_BODY} are allowed")
        await self._say("record", name, body, seconds)

    async def provide(self, key: str, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.provide`. Errors: as of :meth:`publish`."""
        await self._say("provider", key, b"", seconds)

    async def lookup(self, peer: str, name: str, *, seconds: float) -> Record | None:
        """See :meth:`kwaai_core.Transport.lookup`."""
        found = await self._search(key_of("record", peer, name), seconds, enough=ENOUGH)
        newest = found.statements.get((peer, "record"))
        if newest is None:
            return None
        return Record(peer, name, newest.body, newest.sequence, newest.expires)

    async def providers(self, key: str, *, seconds: float) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.providers`; who said it last comes first."""
        found = await self._search(key_of("provider", "", key), seconds, enough=2 * ENOUGH)
        newest = sorted(found.statements.values(), key=lambda one: -one.sequence)
        return [one.peer for one in newest if one.peer != self._identity.peer_id]

    async def nearest(self, key: str, k: int, *, seconds: float) -> Sequence[str]:
        """See :meth:`kwaai_core.Transport.nearest`: peers that answer, without this node."""
        position = hashlib.sha256(key.encode()).digest()
        found = await self._search(position, seconds, width=max(k, BUCKET))
        return [contact.peer for contact in found.holding()[:k]]

    def facts(self) -> dict[str, object]:
        """What there is to see of it."""
        kademlia = self.kademlia
        return {
            "contacts": len(kademlia.table),
            "held": len(kademlia.shelf),
            "held_bytes": kademlia.shelf.size,
            "published": {
                f"{own.kind} {own.name}": len(own.holders) for own in self._owns.values()
            },
        }

    async def _search(
        self, key: bytes, seconds: float, *, enough: int = 0, width: int = BUCKET
    ) -> Lookup:
        """Errors: where nothing was found, :class:`DeadlinePassed`, :class:`PeerUnreachable`."""
        found = await self.kademlia.search(key, seconds=seconds, enough=enough, width=width)
        if not found.statements:
            if found.cut_short:
                raise DeadlinePassed(f"the directory was not searched through in {seconds} s")
            if found.known and not found.answered:
                peers = len(found.known)
                raise PeerUnreachable(f"none of the {peers} peers of the directory answers")
        return found

    async def _say(self, kind: Kind, name: str, body: bytes, seconds: float) -> None:
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

    async def _keep(self, own: _Own) -> None:
        """Announce a statement, and again in good time before it expires."""
        first, longest = RETRY
        pause = first
        with own.scope:
            while True:
                newcomer = self._newcomer
                try:
                    async with self._announcing:
                        own.holders = await self._announce(own)
                except OSError as error:  # of the file of sequence numbers
                    own.holders = set()
                    _log.warning("%s could not be published: %s", own.name, error)
                own.tried.set()
                if own.holders:
                    pause = first
                    await trio.sleep(min(own.seconds / 2, AGAIN) * random.uniform(0.7, 1.0))
                else:
                    _log.info("nobody holds %s yet; trying again", own.name)
                    with trio.move_on_after(pause * random.uniform(0.5, 1.5)):
                        await newcomer.wait()
                    pause = min(2 * pause, longest)

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
                async with self._announcing:
                    await self._store(contact, own.statement, own.holders)

    async def _announce(self, own: _Own) -> set[str]:
        """Sign a statement anew and have the nearest peers hold it; returns which of them do.

        Errors: OSError.
        """
        above = 0
        while True:
            statement = own.statement = await self._signed(
                own.kind, own.name, own.body, own.seconds, above=above
            )
            found = await self.kademlia.search(statement.key, seconds=10.0)
            holders: set[str] = set()
            newer: list[int] = []
            async with trio.open_nursery() as nursery:
                for contact in found.holding():
                    nursery.start_soon(self._store, contact, statement, holders, newer)
            if not newer:
                return holders
            above = max(newer)  # this node's own, from before it lost its state

    async def _store(
        self,
        contact: Contact,
        statement: Statement,
        holders: set[str],
        newer: list[int] | None = None,
    ) -> None:
        try:
            kept = await self.kademlia.store(contact, statement)
        except KwaaiError as error:
            _log.debug("%s does not hold %s: %s", contact.peer, statement.name, error)
            return
        if kept is None or (kept.key, kept.peer) != (statement.key, statement.peer):
            return
        if kept.sequence <= statement.sequence:
            holders.add(contact.peer)
        elif newer is not None:
            newer.append(kept.sequence)

    async def _signed(
        self, kind: Kind, name: str, body: bytes, seconds: float, *, above: int = 0
    ) -> Statement:
        number = await self._number(above)
        expires = round(self._now() + seconds, 3)
        return seal(self._identity, kind, name, body, sequence=number, expires=expires)

    def _own_at(self, key: bytes) -> Sequence[Statement]:
        """This node's own statements under a key: it is a holder of them itself."""
        now, mine = self._now(), (own.statement for own in self._owns.values())
        return [one for one in mine if one is not None and one.key == key and one.expires > now]

    async def _contact(self) -> Statement | None:
        """This node's contact, signed anew where its addresses changed or half its life is over."""
        async with self._signing:
            body = json.dumps(list(self._streams.addresses)[:MAX_ADDRESSES]).encode()
            card = self._card
            if card is None or card.body != body or card.expires < self._now() + CARD_LIFE / 2:
                try:
                    self._card = await self._signed("contact", "", body, CARD_LIFE)
                except OSError as error:  # of the file of sequence numbers; the old one may do
                    _log.warning("the contact of this node could not be signed: %s", error)
            return self._card

    async def _renew(self) -> None:
        """Keep the routing table alive.

        Peers that are connected anew are asked for this node's own place, and so hear of it; now
        and then that is done again, and for a place chosen by chance.
        """
        known: set[str] = set()
        due = 0.0
        while True:
            linked = {link.peer for link in self._streams.links()}
            late = trio.current_time() >= due
            if linked - known or (late and (linked or len(self.kademlia.table))):
                await self.kademlia.search(self.kademlia.position, seconds=10.0)
            if late:
                await self.kademlia.search(random.randbytes(32), seconds=10.0)
                due = trio.current_time() + REFRESH * random.uniform(0.75, 1.25)
            known = linked
            await trio.sleep(LOOK * random.uniform(0.75, 1.25))


@asynccontextmanager
async def open_directory(
    identity: Identity,
    streams: Streams,
    number: Callable[[int], Awaitable[int]],
    *,
    learn: Callable[[str, Sequence[str]], None] = lambda peer, addresses: None,
    allows: Callable[[str, str], bool] = lambda peer, protocol: True,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Directory]:
    """Serve the directory and keep what is published alive, while the context is open.

    ``number`` gives the next sequence number, above the one it is given; ``learn`` is told what
    addresses peers say that they have; ``allows`` says whom the door lets use a protocol.
    """
    async with background() as nursery:
        directory = Directory(
            identity, streams, number, nursery, learn=learn, allows=allows, now=now
        )
        async with directory.kademlia.serving():
            nursery.start_soon(directory._renew)  # noqa: SLF001
            yield directory
