"""The two ends of a topic at this node: its own readers, and the neighbours it speaks to."""

from __future__ import annotations

from collections import deque

import trio

from kwaai_core import Broadcast
from kwaai_lobe_libp2p import gossip

KEPT = 64
"""How many messages wait for a slow reader, or for a slow neighbour; more, and it loses the oldest.
"""


class Subscription(trio.abc.ReceiveChannel[Broadcast]):
    """The messages on one topic, in the order in which they came."""

    def __init__(self) -> None:
        self._messages: deque[Broadcast] = deque(maxlen=KEPT)
        self._closed = False
        self._lot = trio.lowlevel.ParkingLot()

    def put(self, message: Broadcast) -> None:
        self._messages.append(message)
        self._lot.unpark()

    async def receive(self) -> Broadcast:
        """The next message. Errors: trio.ClosedResourceError once the subscription is over."""
        await trio.lowlevel.checkpoint()
        while not self._messages or self._closed:
            if self._closed:
                raise trio.ClosedResourceError("the subscription is over")
            await self._lot.park()
        return self._messages.popleft()

    def close(self) -> None:
        self._closed = True
        self._lot.unpark_all()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class Neighbour:
    """A connected peer that takes part: what it subscribes to, and what is to be sent to it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.topics: frozenset[str] = frozenset()
        self.listening: trio.CancelScope | None = None
        self.speaking: trio.CancelScope | None = None
        self.subscribed: bytes | None = None
        self._frames: deque[bytes] = deque(maxlen=KEPT)
        self._ids: deque[bytes] = deque(maxlen=gossip.MAX_IDS)
        self._changed = trio.Event()

    def push(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._changed.set()

    def tell(self, identity: bytes) -> None:
        self._ids.append(identity)

    def flush(self) -> None:
        """Tell of the messages that were not pushed."""
        if self._ids:
            self.push(gossip.having(list(self._ids)))
            self._ids.clear()

    async def next(self) -> bytes:
        while not self._frames:
            self._changed = trio.Event()
            await self._changed.wait()
        return self._frames.popleft()
