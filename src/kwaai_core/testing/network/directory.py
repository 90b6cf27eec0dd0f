"""The directory of a simulated network: signed records and provider records, held near their key.

As in Kademlia they are kept by the nodes that are nearest to the key in the XOR metric. The rounds
of a lookup are one here: a node knows everybody whom those that let it ask know.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from kwaai_core.errors import FrameError, NotVerified
from kwaai_core.peering import Identity, Record
from kwaai_core.testing.ed25519 import key_of_peer

if TYPE_CHECKING:
    from kwaai_core.testing.network.transport import MemoryTransport

PROTOCOL = "/kwaai/kad/1"
"""What a door is asked for when a node wants to use another's part of the directory."""

HOLDERS = 20
MAX_BODY = 16 << 10


def position(data: bytes) -> int:
    """Where in the space of the directory a key is, or the bytes of a peer id."""
    return int.from_bytes(hashlib.sha256(data).digest(), "big")


def position_of(peer: str) -> int:
    """As libp2p has it: of the peer id's multihash."""
    return position(bytes.fromhex("002408011220") + key_of_peer(peer))


def signed(identity: Identity, record: Record) -> str:
    """The statement that travels. It is of the subject only if that is who signs it."""
    body = base64.b64encode(record.body).decode()
    facts = [record.subject, record.name, body, record.sequence, record.expires]
    return identity.sign("record", json.dumps(facts).encode())


def opened(identity: Identity, statement: str, subject: str, name: str, now: float) -> Record:
    """The record, verified. Errors: :class:`NotVerified` also where it is of another, or over."""
    facts = identity.verify("record", identity.did_of(subject), statement)
    try:
        told, called, body, sequence, expires = json.loads(facts)
        record = Record(told, called, base64.b64decode(body), int(sequence), float(expires))
    except (ValueError, TypeError, RecursionError) as error:
        raise NotVerified(f"{subject} has signed what is no record: {error}") from None
    if (record.subject, record.name) != (subject, name) or record.expires <= now:
        raise NotVerified(f"the record is not {name} of {subject}, or not any more")
    return record


class Directory:
    """One node's part of the directory, and its own entries."""

    def __init__(self, node: MemoryTransport) -> None:
        self._node = node
        self.held_records: dict[tuple[str, str], str] = {}
        self.held_providers: dict[str, dict[str, float]] = {}
        self._kept: dict[tuple[str, str], trio.CancelScope] = {}
        self._tells: dict[tuple[str, str], Callable[[], None]] = {}

    async def publish(self, name: str, body: bytes, seconds: float) -> None:
        if len(body) > MAX_BODY:
            raise FrameError(f"the record {name} has {len(body)} bytes: {MAX_BODY} are allowed")
        node, key = self._node, f"{self._node.peer} {name}"

        def tell() -> None:
            number, expires = node.network.next_number(node.peer), node.network.now() + seconds
            record = Record(node.peer, name, body, number, expires)
            statement = signed(node.identity, record)
            for holder in self._holders(key):
                holder.directory.hold(node.peer, name, statement)

        await self._keep(("record", name), key, tell, seconds)

    async def provide(self, key: str, seconds: float) -> None:
        def tell() -> None:
            expires = self._node.network.now() + seconds
            for holder in self._holders(key):
                holder.directory.held_providers.setdefault(key, {})[self._node.peer] = expires

        await self._keep(("provider", key), key, tell, seconds)

    async def lookup(self, subject: str, name: str) -> Record | None:
        asked = self._holders(f"{subject} {name}")
        await self._node.round_trip(asked)
        told = [one.directory.held_records.get((subject, name), "") for one in asked]
        records = [self._believed(statement, subject, name) for statement in told]
        found = [record for record in records if record is not None]
        return max(found, key=lambda record: record.sequence, default=None)

    async def providers(self, key: str) -> Sequence[str]:
        asked, now = self._holders(key), self._node.network.now()
        await self._node.round_trip(asked)
        told = [one.directory.held_providers.get(key, {}) for one in asked]
        found = {peer: expires for one in told for peer, expires in one.items() if expires > now}
        return [peer for peer in found if peer != self._node.peer]

    async def nearest(self, key: str, k: int) -> Sequence[str]:
        others = self._nearest(key, k, self._node.reach())
        await self._node.round_trip(others)
        return [one.peer for one in others]

    def hold(self, subject: str, name: str, statement: str) -> None:
        """Keep a record of somebody, if it holds and is newer than what there is."""
        new = self._believed(statement, subject, name)
        old = self._believed(self.held_records.get((subject, name), ""), subject, name)
        if new is not None and (old is None or old.sequence < new.sequence):
            self.held_records[subject, name] = statement

    def lie(self, subject: str, name: str, statement: str) -> None:
        """Answer whoever asks with this statement, whatever it is."""
        self.held_records[subject, name] = statement

    def tell(self) -> None:
        """Tell the nearest nodes, who may be others now, all that this one has announced."""
        for tell in list(self._tells.values()):
            tell()

    def forget(self) -> None:
        """Lose what is held for others, as by a restart."""
        self.held_records.clear()
        self.held_providers.clear()

    def _believed(self, statement: str, subject: str, name: str) -> Record | None:
        try:
            return opened(self._node.identity, statement, subject, name, self._node.network.now())
        except NotVerified:
            return None

    def _holders(self, key: str) -> list[MemoryTransport]:
        return self._nearest(key, HOLDERS, [self._node, *self._node.reach()])

    def _nearest(self, key: str, k: int, nodes: Sequence[MemoryTransport]) -> list[MemoryTransport]:
        at = position(key.encode())
        return sorted(nodes, key=lambda node: node.position ^ at)[:k]

    async def _keep(
        self, what: tuple[str, str], key: str, tell: Callable[[], None], seconds: float
    ) -> None:
        """Tell now, and again in good time, until it is replaced or the node closes."""
        if old := self._kept.pop(what, None):
            old.cancel()
        scope = self._kept[what] = trio.CancelScope()
        self._tells[what] = tell

        async def again() -> None:
            with scope:
                while True:
                    await trio.sleep(seconds / 2)
                    tell()

        self._node.nursery.start_soon(again)
        tell()
        await self._node.round_trip(self._holders(key))
