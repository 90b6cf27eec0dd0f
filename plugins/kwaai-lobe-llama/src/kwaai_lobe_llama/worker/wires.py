"""The sockets that the main thread of a worker of spans waits for: its links, and a bell.

A link begins with a handshake in a thread of its own, so that nobody who is slow at it is waited
for. The bell is how other threads have something done by the main one. Another thread sends what a
socket did not take at once, so that a chunk of a prompt is on its way while the next is computed:
a network takes megabytes more slowly than a socket offers to.
"""

from __future__ import annotations

import queue
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from kwaai_core import DataChannel, PeerLost, Span
from kwaai_core.span.frames import Frame, FrameReader
from kwaai_core.span.secure import secure
from kwaai_lobe_llama.frames import Kind
from kwaai_lobe_llama.span_plan import LinkPlan
from kwaai_lobe_llama.worker.cores import start_thread
from kwaai_lobe_llama.worker.links import Link
from kwaai_lobe_llama.worker.outbox import Outbox
from kwaai_lobe_llama.worker.waiting import Waiting

HANDSHAKE_SECONDS = 10.0

_LOOK_MS = 50
"""After so long links are looked for anew that take nothing: one may have been closed."""

_PAUSE_SECONDS = 0.001


class Wires:
    """``links`` by their numbers; the node is told what becomes of each. ``made`` and ``gone`` hear
    of it in the main thread, which calls all of this but :meth:`run_soon`, :meth:`connect`,
    :meth:`disconnect` and :meth:`send_all`: these are for any."""

    def __init__(
        self,
        outbox: Outbox,
        waiting: Waiting,
        made: Callable[[Link], None],
        gone: Callable[[Link], None],
    ) -> None:
        self.links: dict[int, Link] = {}
        self._outbox = outbox
        self._waiting = waiting
        self._made, self._gone = made, gone
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._wanted: set[int] = set()  # by the node still, in handshakes
        self._behind = threading.Event()
        start_thread(self._catch_up)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)

    def run_soon(self, errand: Callable[[], None]) -> None:
        """From another thread: let the main one do something."""
        self._errands.put(errand)
        with suppress(BlockingIOError):  # it has been rung often enough
            self._ringer.send(b"!")

    def ready(self, seconds: float) -> Iterator[Link]:
        """The links that something has come over, waited for up to so long. Run errands, and let go
        of what could not be sent before."""
        for link in self.links.values():
            if link.blocked != link.watched:
                link.watched = link.blocked
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.blocked else 0)
                self._selector.modify(link, events, link)
        for key, events in self._wait(seconds) if seconds else self._selector.select(0):
            if key.data is None:
                self._run_errands()
                continue
            if events & selectors.EVENT_WRITE:
                key.data.flush()
            if events & selectors.EVENT_READ and key.data.number in self.links:
                yield key.data

    def _wait(self, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        began, ran, slept = time.monotonic(), time.thread_time(), 0.0
        now = began
        events: list[tuple[selectors.SelectorKey, int]] = []
        while not events and now - began < seconds:
            asleep = self._waiting.asleep(seconds)
            slept += asleep
            events = self._selector.select(asleep)
            now = time.monotonic()
        self._waiting.waited(now - began, None if slept else time.thread_time() - ran)
        return events

    def _run_errands(self) -> None:
        self._bell.recv(4096)
        while not self._errands.empty():
            self._errands.get()()

    def flush(self) -> None:
        """Send what was kept for the links."""
        for link in self.links.values():
            if link.blocked:
                link.flush()
                self.follow(link)

    def follow(self, link: Link) -> None:
        """Send the rest of what is for a link as soon as it takes it."""
        if link.full:
            self._behind.set()

    def _catch_up(self) -> None:
        while True:
            self._behind.wait()
            self._behind.clear()
            while full := [link for link in list(self.links.values()) if link.full]:
                poll = select.poll()
                for link in full:
                    with suppress(ValueError):  # it was closed meanwhile
                        poll.register(link, select.POLLOUT)
                poll.poll(_LOOK_MS)
                for link in full:
                    link.flush()
                time.sleep(_PAUSE_SECONDS)  # TLS may want to read first, which is not done here

    # -- links

    def connect(
        self, number: int, plan: LinkPlan, connection: socket.socket, reader: FrameReader
    ) -> None:
        """Make a link over a socket, which is closed in any case."""
        self._wanted.add(number)
        start_thread(lambda: self._handshake(number, plan, connection, reader))

    def _handshake(
        self, number: int, plan: LinkPlan, connection: socket.socket, reader: FrameReader
    ) -> None:
        channel = DataChannel(
            connection,
            plan.certificate.encode(),
            plan.key.encode(),
            plan.trusted.encode(),
            plan.server,
        )
        try:
            secured = secure(channel, seconds=HANDSHAKE_SECONDS)
        except PeerLost as error:
            self._wanted.discard(number)
            self._outbox.send(Kind.LOST, number, error.message.encode())
            return
        self.run_soon(lambda: self._add(number, plan, secured, reader))

    def _add(
        self, number: int, plan: LinkPlan, connection: socket.socket, reader: FrameReader
    ) -> None:
        if number not in self._wanted:  # the node has let go of it during the handshake
            connection.close()
            return
        self._wanted.discard(number)
        now = time.monotonic()
        link = Link(number, plan.peer, connection, reader, hosting=plan.hosting, now=now)
        link.replay_rows, link.rtt = plan.replay_rows, plan.rtt
        link.lone = {Span(lo, hi): seconds for lo, hi, seconds in plan.lone}
        self.links[number] = link
        self._selector.register(link, selectors.EVENT_READ, link)
        self._made(link)
        self._outbox.send(Kind.LINKED, number)

    def disconnect(self, number: int) -> None:
        """The node lets go of a link."""
        self._wanted.discard(number)
        self.run_soon(lambda: self._unlink(number))

    def _unlink(self, number: int) -> None:
        link = self.links.get(number)
        if link is not None:
            self._drop(link)

    def lose(self, link: Link, reason: str) -> None:
        """A link is of no use any more."""
        self._drop(link)
        self._outbox.send(Kind.LOST, link.number, reason.encode())

    def lose_silent(self, now: float) -> None:
        """Lose the links to hosts that have fallen silent, and those that are broken."""
        for link in [link for link in self.links.values() if not link.hosting]:
            if link.silence.lost(now):
                self.lose(link, "it has fallen silent")
        for link in [link for link in self.links.values() if link.broken]:
            self.lose(link, link.broken)  # it may never say anything more

    def _drop(self, link: Link) -> None:
        self._selector.unregister(link)
        del self.links[link.number]
        link.close()
        self._gone(link)

    def send_all(self, frame: Frame) -> None:
        """Send a frame to the owners of all sessions."""
        for link in list(self.links.values()):
            if link.hosting:
                link.send(frame)
