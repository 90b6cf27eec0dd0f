"""Topics of a simulated network: who hears a message, and when."""

from __future__ import annotations

from bisect import insort
from math import inf
from typing import TYPE_CHECKING

import trio

from kwaai_core.peering import HELLO, Broadcast

if TYPE_CHECKING:
    from kwaai_core.testing.network.transport import MemoryTransport

PROTOCOL = "/meshsub/1.1.0"
"""What a door is asked for when a node passes messages on to another."""

MAX_BODY = 32 << 10
KEPT = 64
"""How many messages wait for a reader; more, and it loses the oldest."""


class Subscription(trio.abc.ReceiveChannel[Broadcast]):
    """The messages on one topic, in the order in which they arrive."""

    def __init__(self) -> None:
        self._messages: list[tuple[float, int, Broadcast]] = []
        self._put = 0
        self._closed = False
        self._lot = trio.lowlevel.ParkingLot()

    def put(self, due: float, message: Broadcast) -> None:
        self._put += 1
        insort(self._messages, (due, self._put, message))
        late = [at for at, _, _ in self._messages if at <= trio.current_time()]
        del self._messages[: max(0, len(late) - KEPT)]
        self._lot.unpark_all()

    async def receive(self) -> Broadcast:
        await trio.lowlevel.checkpoint()
        while not self._closed:
            due = self._messages[0][0] if self._messages else inf
            if due <= trio.current_time():
                return self._messages.pop(0)[-1]
            with trio.move_on_at(due):
                await self._lot.park()
        raise trio.ClosedResourceError

    def close(self) -> None:
        self._closed = True
        self._lot.unpark_all()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


def spread(author: MemoryTransport, topic: str, body: bytes) -> None:
    """Give a message to all whom it reaches: over neighbours that subscribe too, hop by hop."""
    message, hop = Broadcast(author.peer, body), [author]
    heard = {author.peer: trio.current_time()}
    while hop:
        for node in hop:
            for subscription in node.topics.get(topic, ()):
                subscription.put(heard[node.peer], message)
        hop = [reached for node in hop for reached in _pass_on(node, topic, heard, author.peer)]


def _pass_on(
    one: MemoryTransport, topic: str, heard: dict[str, float], author: str
) -> list[MemoryTransport]:
    """Who hears it from this node first; ``heard`` then says when."""
    found = []
    for peer, node in one.neighbours().items():
        lets = node.lets(one.peer, PROTOCOL) and node.lets(author, HELLO)
        if peer not in heard and topic in node.topics and lets:
            heard[peer] = heard[one.peer] + one.network.delay(one.peer, peer)
            found.append(node)
    return found
