"""A network of nodes in one process, and what can go wrong on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import trio

from kwaai_core.errors import KwaaiError
from kwaai_core.peering import Identity
from kwaai_core.roles import Host
from kwaai_core.testing.network.lines import Connection, Line, Pair
from kwaai_core.testing.network.tasks import background
from kwaai_core.testing.network.transport import MemoryTransport

EPOCH = 1_800_000_000.0


class Network:
    """Any number of nodes, each a :class:`kwaai_core.Transport`, on lines that a test lays.

    Every delay is on trio's clock: with :class:`trio.testing.MockClock` an hour takes no time. All
    that happens by chance is drawn from ``seed``, and so is the order in which trio runs what may
    run in any order, from here on in this process; so a run repeats. ``line`` is what lies between
    two nodes where nothing else is laid. Nodes are named by their peer ids, and are of
    ``node_type``, where a test may put in some that behave badly.
    """

    node_type: ClassVar[type[MemoryTransport]] = MemoryTransport

    def __init__(self, seed: int = 0, line: Line | None = None) -> None:
        self.seed = seed
        self._line = line or Line()
        self._nodes: dict[str, MemoryTransport] = {}
        self._addresses: dict[str, str] = {}
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._laid: dict[tuple[str, str], Line] = {}
        self._frozen: dict[str, None] = {}
        self._walls: list[frozenset[str]] = []
        self._numbers: dict[str, int] = {}
        _repeat(seed)

    def now(self) -> float:
        """The time on this network in seconds since 1970; it follows trio's clock."""
        return EPOCH + trio.current_time()

    @asynccontextmanager
    async def open(self, host: Host) -> AsyncIterator[MemoryTransport]:
        """A node for an offer: ``Offer("memory", network.open)``."""
        if host.identity is None:
            raise KwaaiError("a node of a network needs an identity: add a lobe that offers it")
        async with self.node(host.identity) as node:
            yield node

    @asynccontextmanager
    async def node(self, identity: Identity) -> AsyncIterator[MemoryTransport]:
        """A node, until the context is left; then it is gone, and its peers see it lost."""
        peer = identity.peer_id
        if peer in self._nodes:
            raise KwaaiError(f"{peer} is on this network already")
        async with background() as nursery:
            node = self.node_type(self, identity, self.address(peer), nursery)
            self._nodes[peer] = node
            try:
                yield node
            finally:
                del self._nodes[peer]
                node.die()

    def lay(self, line: Line, one: str, *others: str) -> None:
        """Lay another line from one node to the others, or to all; at once, under connections."""
        for key in [_key(one, other) for other in others] or [_key(one, "")]:
            self._laid[key] = line
        for pair in self._pairs.values():
            pair.lay(self._line_of(*pair.ways))

    def _line_of(self, one: str, other: str) -> Line:
        """The line that was laid between the two, or from one of them to all, or anywhere."""
        keys = _key(one, other), _key(one, ""), _key(other, "")
        return next((self._laid[key] for key in keys if key in self._laid), self._line)

    def partition(self, *peers: str) -> None:
        """Cut these off from all others, but not from one another; comes on top of others."""
        self._walls.append(frozenset(peers))
        self._carry()

    def heal(self) -> None:
        """Take all partitions away. What waited at them arrives, if it is not too late."""
        self._walls.clear()
        self._carry()

    def freeze(self, peer: str) -> None:
        """Stop a node, as SIGSTOP does: nothing leaves it, and what comes in waits.

        Its own tasks run on here, but whatever they send stays with it until it is thawed.
        """
        self._frozen[peer] = None
        self._carry()

    def thaw(self, peer: str) -> None:
        """Let a frozen node go on; its peers may have given it up."""
        self._frozen.pop(peer, None)
        self._carry()

    def kill(self, peer: str) -> None:
        """End a node, as SIGKILL does: handlers, connections, and what it held for others."""
        self._nodes[peer].die()

    def revive(self, peer: str) -> None:
        """Let a killed node come back: it serves what it served, and has no connection."""
        self._nodes[peer].up = True

    def at(self, peer: str) -> MemoryTransport | None:
        """The node of this peer, if it is up."""
        node = self._nodes.get(peer)
        return node if node is not None and node.up else None

    def pair(self, one: str, other: str) -> Pair:
        """Two nodes, whether they are open or not, and the line between them."""
        key = _key(one, other)
        if key not in self._pairs:
            pair = Pair(*key, self._line_of(*key), self.seed)
            self._pairs[key] = pair
            pair.carry(self._carries(*key))
        return self._pairs[key]

    def connections(self, peer: str) -> Sequence[Connection]:
        """All connections of a node, those under way included."""
        pairs = [pair for pair in self._pairs.values() if peer in pair.ways]
        return [connection for pair in pairs for connection in pair.connections]

    def delay(self, sender: str, receiver: str) -> float:
        """How many seconds a small message takes now."""
        return self.pair(sender, receiver).ways[sender].delay()

    def address(self, peer: str) -> str:
        """Where a peer can be dialled; the same whenever it is there."""
        number = len(self._addresses) + 1
        ip = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        return self._addresses.setdefault(peer, f"/ip4/{ip}/tcp/4001/p2p/{peer}")

    def peers_at(self, addresses: Iterable[str]) -> set[str]:
        """Whose these addresses are, as far as they are of this network."""
        known = {address: peer for peer, address in self._addresses.items()}
        return {known[address] for address in addresses if address in known}

    def next_number(self, peer: str) -> int:
        """A sequence number for a record: higher than all before, whatever became of the node."""
        self._numbers[peer] = number = max(self._numbers.get(peer, 0) + 1, int(self.now() * 1000))
        return number

    def _carry(self) -> None:
        for (one, other), pair in self._pairs.items():
            pair.carry(self._carries(one, other))

    def _carries(self, one: str, other: str) -> bool:
        apart = any((one in wall) != (other in wall) for wall in self._walls)
        return not apart and one not in self._frozen and other not in self._frozen


def _key(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


def _repeat(seed: int) -> None:
    """Let trio draw the order of tasks from a seed; it does the same for Hypothesis."""
    run = trio._core._run  # noqa: SLF001 - there is no public way
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc] # noqa: SLF001
    run._r.seed(seed)  # noqa: SLF001
