"""What lies between the nodes of a simulated network: lines, and the connections over them.

Nothing here has a task of its own. Whatever is sent is due at the other end at a time that is
known at once, and whoever waits there sleeps until then, or until something changes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import trio

from kwaai_core.errors import PeerLost

if TYPE_CHECKING:
    from kwaai_core.testing.network.streams import Wire

SILENCE = 5.0
"""After as many seconds without a sign of life both ends take a connection for lost."""

RESENT = 1.0
"""How many seconds later bytes come that had to be sent again."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a line between two nodes does to the bytes that cross it, both ways alike.

    ``latency`` is in seconds, one way, and up to ``jitter`` seconds are added to it by chance;
    ``bandwidth`` is in bytes a second. Streams are reliable: what is lost on the way comes late
    (the chance for each frame is ``stall``) or breaks the connection (``loss``). Where the line is
    not ``direct`` there can be no data channel.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float = inf
    stall: float = 0.0
    loss: float = 0.0
    direct: bool = True


class Way:
    """One direction of a line. Draws by a seed of its own, so that no other can disturb it."""

    def __init__(self, line: Line, seed: str) -> None:
        self.line = line
        self._random = random.Random(seed)
        self._free = self._last = -inf

    def delay(self) -> float:
        """How many seconds a small message takes."""
        line, seconds = self.line, self.line.latency
        if line.jitter:
            seconds += self._random.random() * line.jitter
        if line.stall and self._random.random() < line.stall:
            seconds += RESENT
        return seconds

    def arrival(self, size: int) -> float:
        """When as many bytes that are sent now are there, behind all that went before them."""
        self._free = max(trio.current_time(), self._free) + size / self.line.bandwidth
        self._last = max(self._last, self._free + self.delay())
        return self._last

    def breaks(self) -> bool:
        """Whether what is sent now breaks the connection."""
        return self.line.loss > 0 and self._random.random() < self.line.loss


class Pair:
    """Two nodes and the line between them, whether they are connected or not."""

    def __init__(self, one: str, other: str, line: Line, seed: int) -> None:
        self.ways = {
            one: Way(line, f"{seed} {one} {other}"),
            other: Way(line, f"{seed} {other} {one}"),
        }
        self.stopped: float | None = None
        self.connections: list[Connection] = []

    @property
    def direct(self) -> bool:
        return all(way.line.direct for way in self.ways.values())

    def lay(self, line: Line) -> None:
        for way in self.ways.values():
            way.line = line

    def carry(self, carries: bool) -> None:
        """Let the line carry anything, or nothing at all, from now on."""
        if carries == (self.stopped is None):
            return
        self.stopped = None if carries else trio.current_time()
        for connection in self.connections:
            connection.changed(carries)


class Connection:
    """A connection between two nodes, whose ends are numbered: the dialler's is 0.

    ``lost`` is for each end the time at which it knows that the connection is lost; ``ready`` is
    set once the dialler has greeted the other.
    """

    def __init__(self, pair: Pair, dialler: str, other: str) -> None:
        self.peers = dialler, other
        self.pair = pair
        self.ways = pair.ways[dialler], pair.ways[other]
        self.lost = [inf, inf]
        self.opened = [0, 0]
        self.rtt: float | None = None
        self.ready = trio.Event()
        self.wires: dict[Wire, None] = {}
        self._broken = False
        self._lot = trio.lowlevel.ParkingLot()
        now = trio.current_time()
        pair.connections = [one for one in pair.connections if max(one.lost) > now]
        pair.connections.append(self)

    def end_of(self, peer: str) -> int:
        return self.peers.index(peer)

    def up(self, end: int) -> bool:
        return trio.current_time() < self.lost[end]

    def there(self, end: int, now: float) -> float:
        """Whatever was due at this end by this time has arrived, and nothing else."""
        stopped = self.pair.stopped
        return min(self.lost[end], now if stopped is None else stopped)

    def error(self, end: int, now: float) -> PeerLost | None:
        if now < self.lost[end]:
            return None
        return PeerLost(f"the connection to {self.peers[1 - end]} is lost")

    async def wait(
        self, end: int, due: float, deadline: float, now: float, lot: trio.lowlevel.ParkingLot
    ) -> None:
        """Sleep until what is due may be there, until the deadline, or until something changes."""
        if due <= now or self.pair.stopped is not None:
            due = inf
        with trio.move_on_at(min(due, self.lost[end], deadline)):
            await lot.park()

    async def cross(self, sender: int, waiter: int) -> None:
        """Wait at one end until a small message has gone from ``sender`` to the other end.

        Errors: :class:`PeerLost`, as soon as the waiting end knows.
        """
        due = self.ways[sender].arrival(0)
        while due > self.there(1 - sender, now := trio.current_time()):
            if error := self.error(waiter, now):
                raise error
            await self.wait(waiter, due, inf, now, self._lot)
        await trio.lowlevel.checkpoint()

    async def room(self, end: int, streams: int) -> None:
        """Wait until this end has fewer streams open than that. Errors: :class:`PeerLost`."""
        while self.opened[end] >= streams:
            if error := self.error(end, now := trio.current_time()):
                raise error
            await self.wait(end, inf, inf, now, self._lot)

    def closed_one(self, end: int) -> None:
        """A stream that this end had opened is closed."""
        self.opened[end] -= 1
        self._lot.unpark_all()

    def lose(self, end: int) -> None:
        """This end gives the connection up, or dies; the other is told if the line carries it."""
        now = trio.current_time()
        self.lost[end] = min(self.lost[end], now)
        self._broken = True
        if self.pair.stopped is None:
            self.lost[1 - end] = min(self.lost[1 - end], now + self.ways[end].delay())
        self.stir()

    def changed(self, carries: bool) -> None:
        """The line stopped carrying, or carries again."""
        now = trio.current_time()
        for end in (0, 1):
            if self.lost[end] > now and not carries:
                self.lost[end] = now + SILENCE
            elif self.lost[end] > now:
                self.lost[end] = now + self.ways[1 - end].delay() if self._broken else inf
        self.stir()

    def stir(self) -> None:
        """Let everybody look again."""
        self._lot.unpark_all()
        for wire in self.wires:
            wire.stir()
