"""A host and a chain on the bench, one frame at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar

from kwaai_core.span.chain import Chain, Settings
from kwaai_core.span.frames import FaultCode, Flags, Frame, FrameReader, Kind, Opening, encode
from kwaai_core.span.hop import Hop, Place
from kwaai_core.span.host import Host, Limits
from kwaai_core.span.journal import Budget
from kwaai_core.span.tags import PrefixTags
from kwaai_core.testing.toy import WIDTH, ToyCache, chosen, embed
from kwaai_core.types import Span

CHUNK = 16
LIMITS = Limits(streams=4, cells=256, chunk=CHUNK, per_peer=3)


def travelled(frame: Frame) -> Frame:
    """A frame as the other side reads it."""
    (read,) = FrameReader(WIDTH, 64).feed(encode(frame))
    assert read == frame
    return read


class HostRig:
    """A host of blocks 4 to 8, with links of two peers: ``ann`` and ``bob``."""

    def __init__(self, limits: Limits = LIMITS, cache: ToyCache | None = None) -> None:
        self.cache = cache or ToyCache()
        self.sent: list[tuple[Hashable, Frame]] = []
        self.now = 0.0
        self.host = Host(
            [Span(4, 6), Span(6, 8)],
            self.cache,
            limits,
            lambda link, frame: self.sent.append((link, travelled(frame))),
        )
        self.host.attach("ann", "ann")
        self.host.attach("bob", "bob")
        self.tags = PrefixTags(b"secret")
        self.tags.extend(range(200))

    def give(self, frame: Frame, link: str = "ann") -> list[Frame]:
        """What it says at once, over any link."""
        self.sent.clear()
        self.host.receive(link, frame, self.now)
        return [frame for _, frame in self.sent]

    def open(self, session: int = 1, epoch: int = 1, link: str = "ann", room: int = 100) -> None:
        opening = Opening(Span(4, 8), room).encode()
        (opened,) = self.give(Frame(Kind.OPEN, session, epoch, payload=opening), link)
        assert opened.kind is Kind.OPENED

    def step(
        self, number: int, position: int, rows: int, *, session: int = 1, epoch: int = 1
    ) -> Frame:
        """A STEP of an honest owner, whose tokens are their positions."""
        payload = self.tags.of(position, rows) + embed(range(position, position + rows))
        return Frame(
            Kind.STEP, session, epoch, number, position, rows, Flags.FLOAT32, payload=payload
        )

    def compute(self) -> list[Frame]:
        """Everything that can be computed is; what it says then."""
        self.sent.clear()
        while self.host.ready():
            session, _ = self.host.ready()[0]
            if self.host.start(session):
                self.host.finish(session, self.cache.run(session), waited=0.001, computed=0.002)
        return [frame for _, frame in self.sent]

    def fence(self, epoch: int, link: str = "ann") -> list[Frame]:
        return self.give(Frame(Kind.FENCE, 1, epoch), link)


def code(frames: Sequence[Frame]) -> FaultCode:
    """Of the one FAULT in an answer."""
    (fault,) = frames
    assert fault.kind is Kind.FAULT and fault.payload
    return FaultCode(fault.rows)


class ChainRig:
    """A chain over hosts of the toy model. Nothing moves until a test says so.

    ``to_owner`` are the frames that the hosts have sent, as (link, frame); a test may change them.
    """

    def __init__(self, hosts: str = "abc", *, budget: int = 1 << 20, replay_rows: int = 1) -> None:
        self.now = 0.0
        self.to_owner: deque[tuple[Hashable, Frame]] = deque()
        self.told: list[tuple[Hashable, Frame]] = []
        self.hosts: dict[Hashable, tuple[Host, ToyCache]] = {}
        self.budget = Budget(budget)
        self.text: list[int] = []
        for name in hosts:
            self.add_host(name)
        settings = Settings(WIDTH, 200, CHUNK)
        self.replay_rows: dict[Hashable, int] = {}
        self.chain = Chain(
            settings,
            embed,
            self._send,
            self.budget,
            replay_rows=lambda place: self.replay_rows.get(place.link, replay_rows),
        )

    UNITS: ClassVar[dict[str, list[Span]]] = {
        "a": [Span(0, 4)],
        "b": [Span(4, 8)],
        "c": [Span(8, 12)],
        "A": [Span(0, 4)],
        "B": [Span(4, 8)],
        "C": [Span(8, 12)],
        "d": [Span(4, 6)],
        "e": [Span(6, 8)],
        "f": [Span(4, 8), Span(8, 12)],
        "w": [Span(0, 4), Span(4, 8), Span(8, 12)],
    }

    def add_host(self, name: str, limits: Limits = LIMITS) -> None:
        cache = ToyCache()
        host = Host(
            self.UNITS[name], cache, limits, lambda link, f: self.to_owner.append((name, f))
        )
        host.attach("owner", "owner")
        self.hosts[name] = host, cache

    def _send(self, link: Hashable, frame: Frame) -> None:
        self.told.append((link, frame))
        if link in self.hosts:
            self.hosts[link][0].receive("owner", travelled(frame), self.now)

    def place(self, name: str) -> Place:
        units = self.UNITS[name]
        return Place(name, Span(units[0].lo, units[-1].hi))

    def route(self, names: str) -> None:
        self.chain.route([self.place(name) for name in names], self.now)

    def hop(self, name: str) -> Hop:
        (hop,) = [hop for hop in self.chain.hops if hop.place.link == name]
        return hop

    def compute(self, *names: Hashable) -> None:
        """One step at each host, or at those that are named."""
        for name in names or tuple(self.hosts):
            host, cache = self.hosts[name]
            for session, _ in host.ready():
                if host.start(session):
                    host.finish(session, cache.run(session), waited=0.001, computed=0.002)

    def deliver(self, change: Callable[[Frame], Frame] = lambda frame: frame) -> None:
        """What the hosts have said reaches the chain."""
        while self.to_owner:
            _, frame = self.to_owner.popleft()
            self.chain.receive(frame.session, change(frame), self.now)

    def turn(self) -> None:
        """Let everything go on a bit."""
        self.now += 0.01
        self.compute()
        self.deliver()
        while self.chain.outputs:
            token = chosen(self.chain.outputs.popleft())
            self.text.append(token)
            self.chain.add([token], self.now)

    def run(self, length: int) -> None:
        """Until the text is so long."""
        for _ in range(1000):
            if len(self.text) >= length:
                return
            self.turn()
        raise AssertionError(f"nothing moves: {self.chain.trouble}")

    def kill(self, *names: str) -> None:
        for name in names:
            del self.hosts[name]
            self.to_owner = deque(pair for pair in self.to_owner if pair[0] != name)
            self.chain.lose(name, "it was killed")
