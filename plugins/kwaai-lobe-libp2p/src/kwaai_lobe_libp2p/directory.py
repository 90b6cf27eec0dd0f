"""The directory: what this node says of itself there, and what it finds of others."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from kwaai_core import DeadlinePassed, FrameError, Identity, PeerUnreachable, Record
from kwaai_lobe_libp2p.announcements import Announcements
from kwaai_lobe_libp2p.carrier import Streams
from kwaai_lobe_libp2p.kademlia import Kademlia
from kwaai_lobe_libp2p.lookup import Lookup
from kwaai_lobe_libp2p.signing import Signer
from kwaai_lobe_libp2p.statements import MAX_BODY, key_of
from kwaai_lobe_libp2p.table import BUCKET
from kwaai_lobe_libp2p.tasks import background

ENOUGH = 4
"""From as many holders the newest record is taken; one of them may be behind, or lie by silence."""

REFRESH = 300.0
"""After how many seconds the routing table is renewed."""

LOOK = 0.5
"""How many seconds pass between two looks at who is connected."""

SETTLE = 0.2, 1.0
"""How many seconds a node waits, at least and at most, before it looks for those near it."""

SEARCH = 10.0


class Directory:
    """Records, providers and nearest peers; made by :func:`open_directory`."""

    def __init__(
        self, peer: str, streams: Streams, kademlia: Kademlia, announcements: Announcements
    ) -> None:
        self.kademlia = kademlia
        self._peer = peer
        self._streams = streams
        self._announcements = announcements

    async def publish(self, name: str, body: bytes, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.publish`; where nobody takes it, it is tried again.

        Errors: :class:`FrameError` for a body, :class:`RequestError` for a name or a time that is
        not allowed.
        """
        if len(body) > MAX_BODY:
            raise FrameError(f"the record {name} has {len(body)} bytes: {MAX_BODY} are allowed")
        await self._announcements.say("record", name, body, seconds)

    async def provide(self, key: str, *, seconds: float) -> None:
        """See :meth:`kwaai_core.Transport.provide`. Errors: as of :meth:`publish`."""
        await self._announcements.say("provider", key, b"", seconds)

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
        return [one.peer for one in newest if one.peer != self._peer]

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
            "published": self._announcements.holders(),
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

    async def renew(self) -> None:
        """Keep the routing table alive, until it is cancelled.

        A peer that is connected anew and not heard of yet is asked for this node's own place, and
        so hears of it. All that are near it are only looked for once, and then now and then:
        otherwise each new connection would make many more, at everybody. Also when this node is to
        be reached elsewhere, as over a relay that has a place for it now.
        """
        known: set[str] = set()
        told: Sequence[str] = ()
        due = 0.0
        while True:
            if (addresses := tuple(self._streams.addresses)) != told:
                told, due = addresses, 0.0
            links = (link.peer for link in self._streams.links())
            # who is let in later than it was connected, as by joining, is new then
            linked = {peer for peer in links if self.kademlia.deals_with(peer)}
            for peer in linked - known:
                await self.kademlia.introduce(peer)
            if not linked and not len(self.kademlia.table):
                due = 0.0
            elif trio.current_time() >= due:
                await trio.sleep(random.uniform(*SETTLE))
                await self.kademlia.search(self.kademlia.position, seconds=SEARCH)
                await self.kademlia.search(random.randbytes(32), seconds=SEARCH)
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
        signer = Signer(identity, number, lambda: streams.addresses, now)
        kademlia = Kademlia(identity, streams, signer.contact, learn=learn, allows=allows, now=now)
        announcements = Announcements(kademlia, signer, nursery, now)
        directory = Directory(identity.peer_id, streams, kademlia, announcements)
        async with kademlia.serving():
            nursery.start_soon(directory.renew)
            yield directory
