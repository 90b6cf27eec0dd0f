"""What is for a link arrives while the main thread of a worker computes."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kwaai_core import Span
from kwaai_core.span.frames import Flags, Frame, FrameReader, Kind
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.hosting import Hosting
from kwaai_lobe_llama.worker.links import Link
from kwaai_lobe_llama.worker.outbox import Outbox
from kwaai_lobe_llama.worker.span_server import SpanServer
from kwaai_lobe_llama.worker.turns import Turns
from kwaai_lobe_llama.worker.waiting import Waiting
from kwaai_lobe_llama.worker.wires import Wires

CHUNK = Frame(Kind.RESULT, 7, 1, rows=128, flags=Flags.FLOAT32, payload=bytes(128 * 4 * 1024))


@contextmanager
def wired(waiting: Waiting | None = None) -> Iterator[tuple[Wires, Link, socket.socket]]:
    """A link whose socket takes little at once."""
    (node, worker), (ours, theirs) = socket.socketpair(), socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    waiting = waiting or Waiting(lambda: None, 1)
    wires = Wires(Outbox(worker), waiting, lambda link: None, lambda link: None)
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


class Recorded(Waiting):
    """Sleeps or stays awake as it is told, and notes what it is told of that."""

    def __init__(self, sleeps: float) -> None:
        super().__init__(lambda: None, 1)
        self.sleeps = sleeps
        self.told: list[float | None] = []

    def asleep(self, longest: float) -> float:
        return min(longest, self.sleeps)

    def waited(self, seconds: float, ran: float | None = None) -> None:
        self.told.append(ran)


@pytest.mark.parametrize("sleeps", [0.0, 0.01])
def test_who_stays_awake_tells_for_how_long_it_had_a_core(sleeps: float) -> None:
    waiting = Recorded(sleeps)
    with wired(waiting) as (wires, _, _peer):
        assert list(wires.ready(0.05)) == []
    (ran,) = waiting.told
    assert (ran is None) == bool(sleeps)
    assert ran is None or 0 < ran < 0.06


class Turn(Turns):
    """One that is held or not, as it is told."""

    def __init__(self, held: bool) -> None:
        super().__init__(None)
        (self._mine.set if held else self._mine.clear)()


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_only_who_is_near_waits_for_the_end_of_a_turn(near: bool, held: bool) -> None:
    small = Frame(Kind.RESULT, 7, 1, rows=1, flags=Flags.FLOAT32, payload=bytes(4096))
    with wired() as (wires, link, peer):
        ends = socket.socketpair(), socket.socketpair()
        server = SpanServer(ends[0][0], ends[1][0])
        own = server._wires
        with own._bell, own._ringer, own._selector:
            pass  # it has no other use
        server._wires, server._turns, link.near = wires, Turn(held), near
        server._send(1, small)
        peer.setblocking(False)
        waits = near and held
        assert link.blocked == waits
        if waits:
            with pytest.raises(BlockingIOError):
                peer.recv(1)
        wires.flush()
        assert FrameReader(1024, 128).feed(peer.recv(1 << 14)) == [small]
        for end in (*ends[0], *ends[1]):
            end.close()


def test_what_is_there_goes_out_before_a_chunk_is_computed() -> None:
    done: list[object] = []
    hosting = Hosting(
        Plan("model", "digest", context=64, streams=2, threads=1, max_rows=8, chunk=8),
        lambda link, frame: None,
        per_peer=1,
        between=lambda: done.append("sent"),
    )
    works = [(Placed(number), Rows(rows)) for number, rows in ((0, 8), (1, 1), (2, 1))]
    hosting.host = Ready(works)  # type: ignore[assignment]
    hosting._run = lambda group, _: done.append([step.rows for _, step in group])  # type: ignore[method-assign]
    assert hosting.step()
    assert done == [[1, 1], "sent", [8]]
    done.clear()
    del works[0]
    assert hosting.step()
    assert done == [[1, 1]]


@dataclass
class Placed:
    stream: int
    span = Span(0, 1)


@dataclass
class Rows:
    rows: int


@dataclass
class Ready:
    works: list[tuple[Placed, Rows]]

    def ready(self) -> list[tuple[Placed, Rows]]:
        return self.works


@dataclass
class Round:
    """A turn that was waited for, or not, over so many sessions; notes when links are flushed."""

    waited: bool
    sessions: list[int]
    held: bool = False
    flushed: list[bool] = field(default_factory=list)
    since: float = 0.0

    def __enter__(self) -> None:
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False

    @property
    def host(self) -> Round:
        return self

    def ready(self) -> list[object]:
        return []

    def step(self) -> None: ...

    def flush(self) -> None:
        self.flushed.append(self.held)


@pytest.mark.parametrize(
    ("waited", "sessions", "inside"), [(True, 1, True), (False, 1, False), (False, 2, True)]
)
def test_results_go_out_before_a_turn_ends_where_others_may_be_there(
    waited: bool, sessions: int, inside: bool
) -> None:
    ends = socket.socketpair(), socket.socketpair()
    server = SpanServer(ends[0][0], ends[1][0])
    own = server._wires
    with own._bell, own._ringer, own._selector:
        pass  # it has no other use
    turn = Round(waited, [*range(sessions)])
    server._turns = server._hosting = server._wires = turn  # type: ignore[assignment]
    server._read = lambda: None  # type: ignore[method-assign]
    server._compute()
    assert turn.flushed == [True] * inside + [False]
    for end in (*ends[0], *ends[1]):
        end.close()
