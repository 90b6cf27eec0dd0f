"""What is sent on a connection, and whether its peer is still there."""

from __future__ import annotations

from collections import deque

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux

from kwaai_lobe_libp2p.remedies.outbox import HEADER
from kwaai_lobe_libp2p.remedies.parts import give_up, hear, parts_of

PING_EVERY, PONG_WITHIN = 1.5, 3.0
"""A peer from which nothing comes that long after a ping is frozen, or cut off."""

STALL = 0.2
"""Where a pause took longer by as much, this process was held up, and blames no peer for it."""

WRITE_WITHIN = 15.0
"""How many seconds the kernel may take to accept one batch of frames."""

_UNANSWERED = 64


async def watch(self: Yamux) -> None:
    """Send what is to be sent, and see whether the peer is still there.

    Stock measures the round-trip time twice a minute, and draws no conclusion from silence. Pings
    do not wait for the answers to earlier ones: on a slow line those stand behind whatever is being
    sent, and so they are what the peer hears meanwhile.
    """
    parts, pings = parts_of(self), _Pings(self)
    self._ping_event = pings  # type: ignore[assignment]  # of which the library sees `set` alone
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send, self)
        asked = trio.current_time()
        while True:
            now = trio.current_time()
            if parts.heard >= asked:
                asked = now
            elif now - asked >= PONG_WITHIN:
                give_up(self, f"nothing has come from it for {PONG_WITHIN} s")
            await pings.send()
            await trio.sleep(PING_EVERY)
            if trio.current_time() > now + PING_EVERY + STALL:
                asked = parts.heard


class _Pings:
    """The pings of a connection, and the round-trip time, which their answers tell in order."""

    def __init__(self, conn: Yamux) -> None:
        self._conn = conn
        self._sent: deque[float] = deque(maxlen=_UNANSWERED)
        self._rtt = 0.0

    async def send(self) -> None:
        conn = self._conn
        conn._ping_id = (conn._ping_id + 1) & 0xFFFFFFFF  # noqa: SLF001
        frame = HEADER.pack(0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, conn._ping_id)  # noqa: SLF001
        self._sent.append(trio.current_time())
        try:
            await conn._write_frame(frame)  # noqa: SLF001
        except ConnectionClosedError as error:
            give_up(conn, str(error))

    def set(self) -> None:
        """An answer has come: the library calls this, and takes it for that to the last ping."""
        if self._sent:
            took = trio.current_time() - self._sent.popleft()
            self._rtt = (self._rtt + took) / 2 if self._rtt else took
        self._conn._rtt = self._rtt  # noqa: SLF001
        hear(self._conn)


async def _send(self: Yamux) -> None:
    outbox = parts_of(self).outbox
    try:
        while True:
            batch = await outbox.take()
            with trio.fail_after(WRITE_WITHIN):
                await self.secured_conn.write(batch)
    except Exception as error:  # noqa: BLE001 - whatever the layers below raise, it is over
        give_up(self, f"nothing can be sent to it: {error!r}")
