"""What the remedies keep beside each connection of the library, and how they end one."""

from __future__ import annotations

import logging
import weakref

import trio
from libp2p.stream_muxer.yamux.yamux import Yamux

from kwaai_lobe_libp2p.remedies.outbox import Outbox

UNREAD = 256 << 20
"""How many unread bytes all connections may hold; beyond, who holds most is closed."""

_LOOK = 1 << 20
"""After how many bytes of one connection all that lies about is counted again."""

_log = logging.getLogger(__name__)


class Parts:
    """What is kept of one connection; ``heard`` is when its peer last gave a sign of life."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.heard = trio.current_time()
        self.unread = 0
        self.unchecked = 0


_live: weakref.WeakSet[Yamux] = weakref.WeakSet()
_parts: weakref.WeakKeyDictionary[Yamux, Parts] = weakref.WeakKeyDictionary()


def begin(conn: Yamux) -> None:
    _parts[conn] = Parts()
    _live.add(conn)


def parts_of(conn: Yamux) -> Parts:
    return _parts[conn]


def hear(conn: Yamux) -> None:
    """Note a sign of life, be it a single byte."""
    _parts[conn].heard = trio.current_time()


def count(conn: Yamux, size: int) -> None:
    """Note what a stream has received, and now and then see that not too much lies about unread."""
    hear(conn)
    parts = _parts[conn]
    parts.unchecked += size
    if parts.unchecked < _LOOK:
        return
    parts.unchecked = 0
    parts.unread = sum(map(len, conn.stream_buffers.values()))
    if sum(_parts[one].unread for one in _live) > UNREAD:
        give_up(max(_live, key=lambda one: _parts[one].unread), "it holds most of what is unread")


def give_up(conn: Yamux, why: str) -> None:
    _log.info("the connection to %s is closed: %s", conn.peer_id, why)
    abandon(conn)


def abandon(conn: Yamux) -> None:
    """End a connection at once, from any task: what runs it cleans up."""
    _live.discard(conn)
    conn.event_shutting_down.set()
    if conn._nursery is not None:  # noqa: SLF001
        conn._nursery.cancel_scope.cancel()  # noqa: SLF001


def end(conn: Yamux) -> None:
    """Nothing is sent any more."""
    _live.discard(conn)
    _parts[conn].outbox.close()
