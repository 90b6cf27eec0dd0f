"""Hosts and links of the simulation, and what befalls them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kwaai_core.errors import FrameError
from kwaai_core.span.frames import Frame, FrameReader, Kind, encode
from kwaai_core.span.host import Host, Limits
from kwaai_core.span.hosted import Session
from kwaai_core.span.watch import HEARTBEAT_SECONDS, Silence
from kwaai_core.testing.toy import WIDTH, ToyCache
from kwaai_core.types import Span

if TYPE_CHECKING:
    from tests.span.owners import Owner
    from tests.span.simulation import World

CHUNK = 16
ROW_SECONDS = 0.0001
LATENCIES = (0.0005, 0.002, 0.01, 0.03)
ROUND_TRIP = 4 * LATENCIES[-1]
IDLE, ORPHAN = 40.0, 5.0
HARMLESS = {"nap", "owner nap", "slow", "duplicate", "forget", "full", "none"}
"""The faults for which nobody may be blamed."""


class Process:
    """What happens to it while it is stopped, happens when it goes on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.running = True
        self.dead = False
        self._missed: deque[Callable[[], None]] = deque()

    def post(self, call: Callable[[], None]) -> None:
        if self.running and not self.dead:
            call()
        elif not self.dead:
            self._missed.append(call)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        def again() -> None:
            if not self.dead and not self.world.over:
                if self.running:
                    call()
                self.world.after(seconds, again)

        self.world.after(self.world.random.random() * seconds, again)

    def stop(self, seconds: float | None = None) -> None:
        self.running = False
        if seconds is not None:
            self.world.after(seconds, self.go_on)

    def go_on(self) -> None:
        self.running = True
        while self._missed and self.running and not self.dead:
            self._missed.popleft()()


class Pipe:
    """One direction of a link: bytes in order, late, and as its faults have it."""

    def __init__(self, world: World, latency: float, deliver: Callable[[bytes], None]) -> None:
        self._world = world
        self._latency = latency
        self._deliver = deliver
        self._due = 0.0
        self._held = b""
        self.hole: Callable[[], bool] = lambda: False
        self.damages = self.copies = self.swaps = 0

    def send(self, data: bytes) -> None:
        random = self._world.random
        if self.damages:
            self.damages -= 1
            at = random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        if self.copies:
            self.copies -= 1
            data += data
        if self.swaps:
            self.swaps -= 1
            self.release()
            self._held = data
            self._world.after(0.05, self.release)
            return
        self._carry(data)
        self.release()

    def release(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._carry(held)

    def close(self) -> None:
        self._carry(b"")

    def _carry(self, data: bytes) -> None:
        if self.hole():
            return
        cut = self._world.random.randrange(len(data) + 1) if data else 0
        for piece in [data[:cut], data[cut:]] if 0 < cut < len(data) else [data]:
            delay = self._latency * (1 + self._world.random.random())
            self._due = max(self._due, self._world.now + delay)
            self._world.at(self._due, partial(self._deliver, piece))


class Link:
    """Between one owner and one machine."""

    def __init__(self, world: World, number: int, owner: Owner, machine: Machine) -> None:
        self.number, self.owner, self.machine = number, owner, machine
        self.latency = world.random.choice(LATENCIES)
        self.silence = Silence(world.now)
        self.to_host = Pipe(world, self.latency, self._at_host)
        self.to_owner = Pipe(world, self.latency, self._at_owner)
        self.to_host.hole = lambda: machine.deaf
        self.to_owner.hole = lambda: machine.mute
        self.readers = FrameReader(WIDTH, 64), FrameReader(WIDTH, 64)

    def _at_host(self, data: bytes) -> None:
        self.machine.post(lambda: self.machine.read(self, data))

    def _at_owner(self, data: bytes) -> None:
        self.owner.post(lambda: self.owner.read(self, data))


class Machine(Process):
    """A host of spans. It computes one step at a time, and reads meanwhile."""

    def __init__(self, world: World, name: str, units: Sequence[Span], streams: int) -> None:
        super().__init__(world)
        self.name, self.units = name, units
        self.links: dict[int, Link] = {}
        self.deaf = self.mute = self.blamable = self.failing = False
        self.pace = 1.0
        self._streams = streams
        self.renew()
        self.every(HEARTBEAT_SECONDS, self._beat)
        self.every(0.5, lambda: self.host.tick(self.world.now))

    def renew(self) -> None:
        """As a process that has just begun."""
        limits = Limits(self._streams, 256, CHUNK, self._streams, idle=IDLE, orphan=ORPHAN)
        self.cache = ToyCache()
        self.host = Host(self.units, self.cache, limits, self._send)
        self.computing: Session | None = None
        self.calls, self.since = 0, 0.0

    @property
    def reachable(self) -> bool:
        return self.running and not (self.dead or self.deaf or self.mute)

    def _send(self, link: Hashable, frame: Frame) -> None:
        if link in self.links:
            self.links[link].to_owner.send(encode(frame))

    def _beat(self) -> None:
        took = int((self.world.now - self.since) * 1e6) + 1 if self.computing else 0
        for link in self.links:
            self._send(link, Frame(Kind.HEARTBEAT, step=self.calls, computed=took))

    def attach(self, link: Link) -> None:
        self.links[link.number] = link
        self.host.attach(link.number, link.owner.name)

    def read(self, link: Link, data: bytes) -> None:
        if link.number not in self.links:
            return
        try:
            frames = link.readers[0].feed(data)
        except FrameError:
            frames, data = [], b""
        if not data:
            link.to_owner.close()
            self.detach(link)
        for frame in frames:
            self.world.point(self, "receive", frame)
            self.post(partial(self._take, link, frame))

    def _take(self, link: Link, frame: Frame) -> None:
        self.host.receive(link.number, frame, self.world.now)
        self.work()

    def detach(self, link: Link) -> None:
        if self.links.pop(link.number, None):
            self.host.detach(link.number, self.world.now)

    def work(self) -> None:
        ready = self.host.ready()
        if self.computing or not ready:
            return None
        session, step = self.world.random.choice(ready)
        if self.host.start(session) is None:
            return self.work()
        self.computing, self.since, host = session, self.world.now, self.host
        seconds = step.rows * (session.span.hi - session.span.lo) * ROW_SECONDS * self.pace
        self.world.after(seconds, lambda: self.post(lambda: self._computed(host, session)))
        return self.world.point(self, "compute", step)

    def _computed(self, host: Host, session: Session) -> None:
        if host is self.host:  # or it has begun anew since
            states = self.cache.run(session)
            step = session.computing
            assert step is not None
            self.world.point(self, "send", step)
            self.post(lambda: self._finish(host, session, states))

    def _finish(self, host: Host, session: Session, states: bytes) -> None:
        if host is not self.host:
            return
        self.computing = None
        self.calls += 1
        if self.failing:
            self.failing = False
            host.fail(session, "out of memory")
        else:
            host.finish(session, states, waited=0.0, computed=self.world.now - self.since)
        self.work()

    # -- what befalls it

    def kill(self) -> None:
        self.dead = self.blamable = True
        for link in self.links.values():
            link.to_owner.close()
        self.links.clear()

    def begin_anew(self) -> None:
        self.dead, self.running = False, True
        self._missed.clear()
        self.renew()
        self.every(HEARTBEAT_SECONDS, self._beat)
        self.every(0.5, lambda: self.host.tick(self.world.now))

    def leave(self) -> None:
        """Drain, and go when nobody is left, or after a while."""
        self.host.drain()
        deadline = self.world.now + 8

        def look() -> None:
            if not self.host.sessions or self.world.now > deadline:
                self.kill()
            elif not self.dead:
                self.world.after(0.2, look)

        self.world.after(0.2, look)

    def strike(self, fault: str) -> None:
        self.blamable |= fault not in HARMLESS and fault != "drain"
        match fault:
            case "kill":
                self.kill()
            case "restart":
                self.kill()
                self.world.after(1.0, self.begin_anew)
            case "stop":
                self.stop()
            case "zombie":
                self.stop(3.0)
            case "nap":
                self.stop(0.6)
            case "blackhole":
                self.deaf = self.mute = True
            case "deaf":
                self.deaf = True
            case "mute":
                self.mute = True
            case "slow":
                self.pace = 10.0
            case "fails":
                self.failing = True
            case "drain":
                self.leave()
            case "forget":
                for seconds in (0.0, 0.01):  # what computes is not forgotten
                    self.world.after(seconds, lambda: self.host.tick(self.world.now + 1e6))
            case _:
                self._spoil(fault)

    def _spoil(self, fault: str) -> None:
        for link in self.links.values():
            if fault == "corrupt":
                self.world.random.choice([link.to_host, link.to_owner]).damages = 1
            for pipe in (link.to_host, link.to_owner):
                if fault == "duplicate":
                    pipe.copies = 8
                elif fault == "reorder":
                    pipe.swaps = 2
