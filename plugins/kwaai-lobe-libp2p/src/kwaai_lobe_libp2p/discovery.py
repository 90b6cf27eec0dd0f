"""Finding peers: those of the settings, those of the last run, and those on the local network."""

from __future__ import annotations

import json
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from kwaai_core import KwaaiError, Link
from kwaai_lobe_libp2p import files
from kwaai_lobe_libp2p.statements import plausible
from kwaai_lobe_libp2p.tasks import background

RETRY = 1.0, 300.0
"""The first and the longest pause in seconds before a peer is tried again."""

LOOK = 15.0
"""After how many seconds it is looked whether a bootstrap peer is still connected."""

WANTED = 8
"""To how many peers a node wants to be connected, as far as it remembers any."""

REMEMBERED = 256
SAVE = 60.0
DIAL = 15.0

_MAX_FILE = 1 << 20
_log = logging.getLogger(__name__)


class Dials(Protocol):
    """What discovery needs of the transport that it is part of."""

    @property
    def addresses(self) -> Sequence[str]: ...

    def links(self) -> Sequence[Link]: ...

    async def connect(self, addresses: Sequence[str], *, seconds: float) -> str: ...


class Memory:
    """Peers that this node was connected to, with where it reached them, over restarts.

    At most :data:`REMEMBERED`; who was connected last is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._changed = False
        self._peers.update(_read(files.read(path, _MAX_FILE)))

    def __len__(self) -> int:
        return len(self._peers)

    def newest_first(self) -> Sequence[tuple[str, tuple[str, ...]]]:
        return list(reversed(self._peers.items()))

    def note(self, peer: str, addresses: Sequence[str]) -> None:
        """Remember that a peer can be reached there."""
        good = plausible(peer, list(addresses))
        if not good:
            return
        self._changed |= self._peers.get(peer) != good
        self._peers[peer] = good
        self._peers.move_to_end(peer)
        if len(self._peers) > REMEMBERED:
            self._peers.popitem(last=False)

    async def save(self) -> None:
        """Write what has changed; where that fails, the log says so."""
        if not self._changed:
            return
        self._changed = False
        data = json.dumps({"peers": self._peers}, indent=1).encode() + b"\n"
        try:
            await trio.to_thread.run_sync(files.replace, self._path, data)
        except OSError as error:
            _log.warning("the peers of this run cannot be kept in %s: %s", self._path, error)


def _read(data: bytes | None) -> list[tuple[str, tuple[str, ...]]]:
    if data is None:
        return []
    try:
        peers = json.loads(data)["peers"].items()
        told = [(peer, plausible(peer, addresses)) for peer, addresses in peers]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        _log.warning("the file of remembered peers is malformed; starting without them")
        return []
    return [(peer, addresses) for peer, addresses in told if addresses][-REMEMBERED:]


class Discovery:
    """Connects to peers for as long as :meth:`run` runs.

    ``addresses_of`` gives the addresses under which a connected peer can be dialled, for the next
    run; ``belongs`` says whether a peer is let in: others do not count, and are not remembered.
    """

    def __init__(
        self,
        dials: Dials,
        memory: Memory,
        bootstrap: Sequence[str],
        *,
        addresses_of: Callable[[str], Sequence[str]],
        belongs: Callable[[str], bool] = lambda peer: True,
    ) -> None:
        self._dials = dials
        self._memory = memory
        self._addresses_of = addresses_of
        self._belongs = belongs
        self._bootstrap: dict[str, list[str]] = {}
        for address in bootstrap:
            self._bootstrap.setdefault(address.rpartition("/p2p/")[2], []).append(address)

    async def run(self) -> None:
        """Keep the bootstrap peers connected, and fill up from memory where there are too few."""
        async with trio.open_nursery() as nursery:
            for peer, addresses in self._bootstrap.items():
                nursery.start_soon(self._hold, peer, addresses)
            nursery.start_soon(self._recall)
            nursery.start_soon(self._remember)

    async def found(self, peer: str, addresses: Sequence[str]) -> None:
        """Connect to a peer that makes itself known, unless there is a connection."""
        if not self._linked(peer):
            await self._try(peer, addresses)

    def _linked(self, peer: str) -> bool:
        return any(link.peer == peer for link in self._dials.links())

    async def _try(self, peer: str, addresses: Sequence[str]) -> bool:
        try:
            await self._dials.connect(addresses, seconds=DIAL)
        except KwaaiError as error:
            named = "" if peer in error.message else f"{peer} is not connected: "
            _log.info("%s%s", named, error.message)
            return False
        return True

    async def _hold(self, peer: str, addresses: Sequence[str]) -> None:
        """Connect to a bootstrap peer, and again whenever the connection is gone."""
        first, longest = RETRY
        pause = first
        while True:
            if self._linked(peer) or await self._try(peer, addresses):
                pause = first
                await trio.sleep(LOOK * random.uniform(0.5, 1.5))
            else:
                await trio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, longest)

    async def _recall(self) -> None:
        """Connect to peers of former runs, the latest first, until there are enough links."""
        first, longest = RETRY
        pause = first
        while True:
            for peer, addresses in self._memory.newest_first():
                if self._has_enough():
                    break
                if not self._linked(peer):
                    await self._try(peer, addresses)
                    await trio.sleep(random.uniform(0, first))
            pause = longest if self._has_enough() else min(2 * pause, longest)
            await trio.sleep(pause * random.uniform(0.5, 1.5))

    def _has_enough(self) -> bool:
        return sum(self._belongs(link.peer) for link in self._dials.links()) >= WANTED

    async def _remember(self) -> None:
        try:
            pause = RETRY[0]
            while True:
                self._note_links()
                await self._memory.save()
                await trio.sleep(pause)
                pause = min(2 * pause, SAVE)
        finally:
            self._note_links()
            with trio.CancelScope(shield=True):  # a small file, and the disk answers
                await self._memory.save()

    def _note_links(self) -> None:
        for link in self._dials.links():
            if not link.relayed and self._belongs(link.peer):
                self._memory.note(link.peer, self._addresses_of(link.peer))


@asynccontextmanager
async def open_discovery(
    dials: Dials,
    peer: str,
    memory: Memory,
    *,
    bootstrap: Sequence[str],
    local_network: bool,
    addresses_of: Callable[[str], Sequence[str]],
    belongs: Callable[[str], bool],
) -> AsyncIterator[Discovery]:
    """Look for peers while the context is open. ``peer`` is this node's own id."""
    async with background() as nursery:
        discovery = Discovery(dials, memory, bootstrap, addresses_of=addresses_of, belongs=belongs)
        nursery.start_soon(discovery.run)
        if local_network:
            nursery.start_soon(_look_around, dials, peer, discovery)
        yield discovery


async def _look_around(dials: Dials, peer: str, discovery: Discovery) -> None:
    from kwaai_lobe_libp2p import mdns  # zeroconf, which most nodes do not need

    try:
        await mdns.run(peer, dials.addresses, discovery.found)
    except OSError as error:
        _log.warning("no peers are found on the local network: multicast fails: %s", error)
