"""What is for a link arrives while the main thread of a worker computes."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kwaai_core.span.frames import Flags, Frame, FrameReader, Kind
from kwaai_lobe_llama.worker.links import Link
from kwaai_lobe_llama.worker.outbox import Outbox
from kwaai_lobe_llama.worker.waiting import Waiting
from kwaai_lobe_llama.worker.wires import Wires

CHUNK = Frame(Kind.RESULT, 7, 1, rows=128, flags=Flags.FLOAT32, payload=bytes(128 * 4 * 1024))


@contextmanager
def wired() -> Iterator[tuple[Wires, Link, socket.socket]]:
    """A link whose socket takes little at once."""
    (node, worker), (ours, theirs) = socket.socketpair(), socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    wires = Wires(Outbox(worker), Waiting(lambda: None, 1), lambda link: None, lambda link: None)
    link = wires.links[1] = Link(1, "peer", ours, FrameReader(1024, 128), hosting=True, now=0.0)
    wires._selector.register(link, selectors.EVENT_READ, link)
    with node, worker, theirs, wires._bell, wires._ringer, wires._selector:
        yield wires, link, theirs
        wires.lose(link, "it is over")


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_socket_did_not_take_follows_by_itself(kept: bool) -> None:
    with wired() as (wires, link, peer):
        if kept:
            link.keep(CHUNK)
            wires.flush()
        else:
            link.send(CHUNK)
            wires.follow(link)
        assert link.full
        peer.settimeout(5)
        frames = list[Frame]()
        reader = FrameReader(1024, 128)
        while not frames:
            frames += reader.feed(peer.recv(1 << 14))
        assert frames == [CHUNK]
        until(lambda: not link.blocked and not link.full)


def test_a_link_that_breaks_is_not_followed() -> None:
    with wired() as (wires, link, peer):
        link.send(CHUNK)
        wires.follow(link)
        peer.close()
        until(lambda: bool(link.broken))
        assert not link.full
        began = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - began < 0.1  # nothing is tried again and again
