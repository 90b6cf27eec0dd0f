"""A swarm on a virtual clock: owners, hosts and links as real as bytes, and all that befalls them.

Frames are encoded, cut into pieces, delayed and read again; hosts run the toy model, whose text
changes with any row that is wrong. One fault strikes at one place of a route in one phase of a
step, drawn from a seed, and afterwards the invariants are looked at: the text is that of the whole
model, a session ends early only where no path was left, no healthy peer is blamed, no host keeps
what nobody uses, and every wait has its limit. To run many and see a table::

    python -m tests.span.simulation --seeds 1000
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count, product
from random import Random

from kwaai_core.errors import FrameError
from kwaai_core.span.chain import ANSWER_SECONDS, Chain, Settings
from kwaai_core.span.frames import Frame, FrameReader, Kind, encode
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.host import Host, Limits
from kwaai_core.span.hosted import Session, Step
from kwaai_core.span.journal import Budget
from kwaai_core.span.watch import HEARTBEAT_SECONDS, SILENCE_SECONDS, Pace, Silence
from kwaai_core.types import Span
from tests.span.toy import BLOCKS, WIDTH, ToyCache, chosen, embed, plain

CHUNK = 16
UNIT = 2
ROW_SECONDS = 0.0001
LATENCIES = (0.0005, 0.002, 0.01, 0.03)
ROUND_TRIP = 4 * LATENCIES[-1]
TICK_SECONDS = 0.1
PATIENCE = 6.0
IDLE, ORPHAN = 40.0, 5.0

DEADLY = {"kill", "restart", "fails", "corrupt", "reorder", "drain"}
SILENT = {"stop", "zombie", "blackhole", "mute"}
DEAF = {"deaf"}
HARMLESS = {"nap", "owner nap", "slow", "duplicate", "forget", "full", "none"}
FAULTS = sorted(DEADLY | SILENT | DEAF | HARMLESS)
PHASES = ("receive", "compute", "send", "prefill", "replay", "fence")
PLACES = ("first", "middle", "last", "adjacent")
MATRIX = list(product(FAULTS, PHASES, PLACES))


@lru_cache(maxsize=256)
def expected(prompt: tuple[int, ...], length: int) -> list[int]:
    return plain(prompt, length)


@dataclass(frozen=True)
class Scenario:
    fault: str
    phase: str
    place: str
    seed: int

    @classmethod
    def of(cls, seed: int) -> Scenario:
        """Consecutive seeds go through the whole matrix."""
        return cls(*MATRIX[seed % len(MATRIX)], seed)


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
            self._world.at(self._due, lambda p=piece: self._deliver(p))


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
            self.post(lambda f=frame: self._take(link, f))

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


class Owner(Process):
    """A node that answers requests over the machines."""

    def __init__(self, world: World, name: str, budget: int) -> None:
        super().__init__(world)
        self.name = name
        self.budget = Budget(budget)
        self.links: dict[int, Link] = {}
        self.talks: list[Talk] = []
        self.paces: dict[Place, Pace] = {}
        self._dials: dict[str, float] = {}
        for machine in world.machines:
            self.dial(machine)
        self.every(TICK_SECONDS, self._tick)

    def dial(self, machine: Machine) -> None:
        link = Link(self.world, next(self.world.numbers), self, machine)
        self.links[link.number] = link
        machine.attach(link)

    def send(self, link: Hashable, frame: Frame) -> None:
        if link in self.links:
            self.links[link].to_host.send(encode(frame))

    def read(self, link: Link, data: bytes) -> None:
        if link.number not in self.links:
            return None
        try:
            frames = link.readers[1].feed(data)
        except FrameError as error:
            return self.lose(link, error.message)
        if not data:
            return self.lose(link, "it closed the connection")
        for frame in frames:
            link.silence.heard(self.world.now)
            self._take(link, frame)
        return None

    def _take(self, link: Link, frame: Frame) -> None:
        now = self.world.now
        for talk in list(self.talks):
            if frame.kind is Kind.HEARTBEAT:
                talk.chain.beat(link.number, frame, now)
            elif frame.kind is Kind.DRAIN:
                places = [h.place for h in talk.chain.hops if h.place.link == link.number]
                talk.report(places, Blame.LEAVING)
            elif any(
                hop.session == frame.session and hop.place.link == link.number
                for hop in talk.chain.hops
            ):
                talk.chain.receive(frame.session, frame, now)
                talk.look()

    def lose(self, link: Link, reason: str) -> None:
        self.world.blamed(link.machine, reason)
        link.to_host.close()
        del self.links[link.number]
        self._dials[link.machine.name] = self.world.now + 0.5
        for talk in list(self.talks):
            talk.chain.lose(link.number, reason)
            talk.look()

    def _tick(self) -> None:
        now = self.world.now
        for link in list(self.links.values()):
            if link.silence.lost(now):
                self.lose(link, "it has fallen silent")
        for talk in list(self.talks):
            talk.chain.tick(now)
            talk.look()
            talk.report(talk.chain.slow(now), Blame.SLOW)
        linked = {link.machine.name for link in self.links.values()}
        for machine in self.world.machines:
            due = now > self._dials.get(machine.name, 0.0)
            if machine.name not in linked and due and machine.reachable:
                self.dial(machine)

    def path_exists(self) -> bool:
        """Whether there is a way through machines that are alive, reachable, and have room."""
        links = [
            link
            for link in self.links.values()
            if link.machine.reachable and link.machine.host.free and not link.machine.host.draining
        ]
        return cover(0, BLOCKS, links, self.world.random) is not None


class Talk:
    """One session of an owner, with a head and a router."""

    def __init__(self, owner: Owner, prompt: tuple[int, ...], length: int, replay: int) -> None:
        self.owner, self.world = owner, owner.world
        self.prompt, self.length, self._replay = prompt, length, replay
        self.text: list[int] = []
        self.end = ""
        self.gap = self.waited = 0.0
        self.moves = 0
        self._last = self.world.now
        self._full: dict[str, float] = {}
        self._asked = False
        self._heading = False
        self._begin()

    def _begin(self) -> None:
        room = len(self.prompt) + self.length
        self.chain = Chain(
            Settings(WIDTH, room, CHUNK, replay_rows=self._replay),
            embed,
            self.owner.send,
            self.owner.budget,
            pace=lambda place: self.owner.paces.setdefault(place, Pace()),
        )
        self._reported: set[Place] = set()
        self._noted: list[Trouble] = []
        self._ask([])

    # -- the head

    def look(self) -> None:
        if self.chain.trouble and not self._asked and not self.end:
            self._ask([])
        if self.chain.outputs and not self._heading:
            self._heading = True
            self.world.after(0.001, lambda: self.owner.post(self._head))

    def _head(self) -> None:
        self._heading = False
        now = self.world.now
        token = chosen(self.chain.outputs.popleft())
        self.text.append(token)
        assert self.text == expected(self.prompt, self.length)[: len(self.text)], "another text"
        self.gap, self._last = max(self.gap, now - self._last - self.waited), now
        self.waited = 0.0
        if len(self.text) == self.length:
            self.finish("equal")
        else:
            self.chain.add([token], now)
            self.world.told(self)
            self.look()

    def finish(self, end: str) -> None:
        self.end = end
        self.chain.close()
        assert not self.chain.outputs, "there is more than was asked for"
        self.owner.talks.remove(self)

    # -- the router

    def report(self, places: Sequence[Place], blame: Blame) -> None:
        fresh = [place for place in places if place not in self._reported]
        if fresh and not self._asked:
            self._reported.update(fresh)
            self._ask([Trouble(place, blame, "it is better to go") for place in fresh])

    def _ask(self, soft: Sequence[Trouble]) -> None:
        self._asked = True
        seconds = self.world.random.choice([0.0, 0.001, 0.02])
        since = self.world.now
        self.world.after(seconds, lambda: self.owner.post(lambda: self._answer(soft, since)))

    def _answer(self, soft: Sequence[Trouble], since: float) -> None:
        if self.end:
            return None
        for trouble in list(self.chain.trouble):
            if trouble not in self._noted:
                self._noted.append(trouble)
                self._note(trouble)
        old = [hop.place for hop in self.chain.hops]
        hard = {trouble.place for trouble in self.chain.trouble}
        places = self._plan(old, hard, {trouble.place for trouble in soft})
        if places is None:
            return self._wait(soft, since)
        self._asked = False
        if places != old or hard:
            self.waited += self.world.now - since
            self.moves += bool(old)
            self._reported.clear()
            self._noted.clear()
            self.chain.route(places, self.world.now)
            if not self.chain.tokens:
                self.chain.add(self.prompt, self.world.now)
        return self.look()

    def _note(self, trouble: Trouble) -> None:
        link = self.owner.links.get(trouble.place.link)  # type: ignore[call-overload]
        assert trouble.blame is not Blame.REFUSED, trouble
        if trouble.blame is Blame.FULL and link:
            self._full[link.machine.name] = self.world.now + trouble.retry_after
        elif trouble.blame is Blame.LOST and link:
            self.owner.lose(link, trouble.reason)

    def _plan(self, old: Sequence[Place], hard: set[Place], soft: set[Place]) -> list[Place] | None:
        links = self.owner.links
        usable = [
            link
            for link in links.values()
            if self._full.get(link.machine.name, 0.0) <= self.world.now
            and not link.machine.host.draining
        ]
        avoided = {place.link for place in soft | hard}
        better = [link for link in usable if link.number not in avoided]
        kept = [place for place in old if place not in hard and place.link in links]
        for stay, among in (
            ([place for place in kept if place not in soft], better),
            (kept, better),
            (kept, usable),
            ([], usable),
        ):
            places = fill(stay, among, self.world.random)
            if places is not None:
                return places
        return None

    def _wait(self, soft: Sequence[Trouble], since: float) -> None:
        waits = self.world.now - since
        full = any(until > self.world.now - 1 for until in self._full.values())
        if waits > (30 * PATIENCE if full else PATIENCE):
            assert not self.owner.path_exists(), "a session was given up while there was a path"
            return self.finish("full" if full else "lost")
        if full and not self.text and self.chain.hops:  # hold nothing that others wait for
            self.chain.close()  # still asked: nothing is done before it begins again
            pause = self.world.random.random() * 2
            self.waited += pause
            self.world.after(pause, lambda: self.owner.post(self._begin))
            return None
        again = lambda: self.owner.post(lambda: self._answer(soft, since))  # noqa: E731
        return self.world.after(0.1, again)


def fill(kept: Sequence[Place], links: Sequence[Link], random: Random) -> list[Place] | None:
    """A route with all of ``kept``, and as few other places as can be."""
    route: list[Place] = []
    at = 0
    for place in [*kept, None]:
        to = place.span.lo if place else BLOCKS
        part = cover(at, to, links, random)
        if part is None:
            return None
        route += part
        if place:
            route.append(place)
            at = place.span.hi
    return route


def cover(lo: int, hi: int, links: Sequence[Link], random: Random) -> list[Place] | None:
    best: dict[int, list[Place]] = {lo: []}
    for at in range(lo, hi):
        if at not in best:
            continue
        for link in random.sample(links, len(links)):
            ends = [unit.hi for unit in link.machine.units if at < unit.hi <= hi]
            for end in ends if any(unit.lo == at for unit in link.machine.units) else []:
                path = [*best[at], Place(link.number, Span(at, end))]
                if end not in best or len(path) < len(best[end]):
                    best[end] = path
    return best.get(hi)


@dataclass
class Outcome:
    """Of one run."""

    scenario: Scenario
    ends: list[str] = field(default_factory=list)
    gap: float = 0.0
    moves: int = 0
    struck: bool = False


class World:
    """One run of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.random = Random(repr(scenario))
        self.now = 0.0
        self.over = False
        self.numbers = count(1)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.struck = self._broke = scenario.fault in ("full", "none")
        self._strike_after = self.random.randrange(1, 7)
        self.machines = self._build()
        self.owners = [
            Owner(self, name, self.random.choice([0, 1500, 1 << 20])) for name in ("us", "them")
        ]
        self.talks: list[Talk] = []
        for owner in [self.owners[0]] * self.random.randrange(1, 5) + [self.owners[1]]:
            self.after(self.random.random() * 0.2, lambda o=owner: self._begin(o))
        self._begin(self.owners[0])
        self._expected = len(self._events)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def at(self, when: float, call: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._order), call))

    def _build(self) -> list[Machine]:
        """Uneven cuts, and for each part another machine, or two, or none."""
        random = self.random
        streams = 2 if self.scenario.fault == "full" else 6
        cuts = sorted(random.sample(range(UNIT, BLOCKS, UNIT), random.randrange(1, 4)))
        parts = [Span(lo, hi) for lo, hi in zip([0, *cuts], [*cuts, BLOCKS], strict=True)]
        spans = list(parts)
        for part in parts:
            middle = part.lo + (part.hi - part.lo) // (2 * UNIT) * UNIT
            if random.random() < 0.5 and part.lo < middle:
                spans += [Span(part.lo, middle), Span(middle, part.hi)]
            elif random.random() < 0.85:
                spans.append(part)
        if random.random() < 0.5:
            spans.append(Span(0, BLOCKS) if random.random() < 0.3 else random.choice(parts))
        return [
            Machine(
                self,
                f"m{number}",
                [Span(lo, lo + UNIT) for lo in range(span.lo, span.hi, UNIT)],
                streams,
            )
            for number, span in enumerate(spans)
        ]

    def _begin(self, owner: Owner) -> None:
        random = self.random
        prompt = tuple(range(100, 100 + random.choice([1, 7, 17, 33, 40])))
        if not self.talks and self.scenario.phase == "prefill":
            prompt = tuple(range(40))
        talk = Talk(owner, prompt, random.randrange(8, 14), random.choice([1, 7]))
        owner.talks.append(talk)
        self.talks.append(talk)

    # -- the fault

    def victims(self) -> list[Machine]:
        """The machines at the place of the first session's route that the scenario names."""
        hops = self.talks[0].chain.hops
        middle = len(hops) // 2
        where = {
            "first": slice(0, 1),
            "middle": slice(middle, middle + 1),
            "last": slice(-1, None),
            "adjacent": slice(max(0, middle - 1), middle + 1),
        }[self.scenario.place]
        links = self.owners[0].links
        return [links[h.place.link].machine for h in hops[where] if h.place.link in links]  # type: ignore[index]

    def told(self, talk: Talk) -> None:
        """A token was chosen: maybe the time for the first of two faults."""
        repair = self.scenario.phase in ("replay", "fence")
        if talk is self.talks[0] and repair and len(talk.text) == self._strike_after:
            self._broke = True
            links = self.owners[0].links
            hops = [hop for hop in talk.chain.hops if hop.place.link in links]
            if hops:
                links[self.random.choice(hops).place.link].machine.kill()  # type: ignore[index]

    def point(self, machine: Machine, at: str, item: Frame | Step) -> None:
        """A machine is about to do something: strike it, if this is the moment."""
        if self.struck or not self.talks or not self._is_due(at, item):
            return None
        victims = self.victims()
        if machine not in victims:
            return None
        self.struck = True
        if self.scenario.fault == "owner nap":
            return self.after(0.0, lambda: self.owners[0].stop(3.0))
        for victim in victims:
            victim.strike(self.scenario.fault)
        return None

    def _is_due(self, at: str, item: Frame | Step) -> bool:
        talk, phase = self.talks[0], self.scenario.phase
        decoding = len(talk.text) >= self._strike_after and item.rows == 1
        if phase == "receive":
            return at == "receive" and decoding and getattr(item, "kind", None) is Kind.STEP
        if phase in ("compute", "send"):
            return at == phase and decoding
        if phase == "prefill":
            return at == "compute" and item.rows > 1 and not talk.text
        if not self._broke or talk.chain.recovered:
            return False
        if phase == "replay":
            return at == "compute" and talk.chain.settled
        return at == "receive" and getattr(item, "kind", None) in (Kind.FENCE, Kind.OPEN)

    def blamed(self, machine: Machine, reason: str) -> None:
        assert machine.blamable, f"{machine.name} is healthy and was blamed: {reason}"

    # -- the run

    def run(self) -> Outcome:
        while not self._ended():
            self._next()
            assert self.now < 300, f"a session is blocked: {[t.end for t in self.talks]}"
        outcome = Outcome(
            self.scenario,
            [talk.end for talk in self.talks],
            max(talk.gap for talk in self.talks),
            sum(talk.moves for talk in self.talks),
            self.struck,
        )
        self._check_gap(outcome.gap)
        self._check_rest()
        return outcome

    def _ended(self) -> bool:
        return self._expected_talks() and all(talk.end for talk in self.talks)

    def _expected_talks(self) -> bool:
        return self.now > 0.2

    def _next(self) -> None:
        self.now, _, call = heappop(self._events)
        call()

    def _check_gap(self, gap: float) -> None:
        """A fault is found out within its limit; then all may have to be computed again."""
        fault = self.scenario.fault
        rows = sum(len(talk.prompt) + talk.length for talk in self.talks)
        limit = 0.3 + ROUND_TRIP * (len(self.machines) + 3)
        limit += 2 * rows * BLOCKS * ROW_SECONDS * (10 if fault == "slow" else 1)
        if fault in SILENT:
            limit += SILENCE_SECONDS + HEARTBEAT_SECONDS + TICK_SECONDS
        elif fault in DEAF or fault in ("corrupt", "reorder"):
            # each of two machines is found out by itself; and half a frame may be waited for
            limit += 2 * (ANSWER_SECONDS + HEARTBEAT_SECONDS + TICK_SECONDS)
        elif fault == "owner nap":
            limit += 3
        elif fault == "nap":
            limit += 0.6
        assert gap < limit or fault == "full", f"a gap of {gap:.2f} s, more than {limit:.2f}"

    def _check_rest(self) -> None:
        """Nobody holds what is of no use any more."""
        for owner in self.owners:
            assert owner.budget.used == 0
            assert not owner.talks
        until = self.now + IDLE + ORPHAN
        while self.now < until and self._events:
            self._next()
        for machine in self.machines:
            if machine.running and not machine.dead:
                assert not machine.host.sessions, f"{machine.name} keeps a session"
                assert not any(machine.cache.rows.values()), f"{machine.name} keeps rows"
                assert machine.computing is None


def run(scenario: Scenario) -> Outcome:
    """Errors: AssertionError where an invariant does not hold."""
    return World(scenario).run()


def table(outcomes: Sequence[Outcome], key: Callable[[Scenario], str]) -> str:
    """In Markdown, one line for each value of ``key``."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome.scenario)].append(outcome)
    lines = [
        "| | runs | answers | equal | no path left | moves | longest gap, s |",
        "|---" * 7 + "|",
    ]
    for name, group in [*sorted(groups.items()), ("**all**", list(outcomes))]:
        ends = [end for outcome in group for end in outcome.ends]
        gap = max(outcome.gap for outcome in group)
        moves = sum(outcome.moves for outcome in group)
        cells = [len(group), len(ends), ends.count("equal"), ends.count("lost"), moves]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {gap:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=1000, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--matrix", action="store_true", help="a line for each fault and phase")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    broken = 0
    for seed in range(options.first, options.first + options.seeds):
        scenario = Scenario.of(seed)
        try:
            outcomes.append(run(scenario))
        except Exception as error:  # noqa: BLE001 - the other seeds are run in any case
            broken += 1
            sys.stdout.write(f"{scenario}: {type(error).__name__}: {error}\n")
    sys.stdout.write(table(outcomes, lambda s: s.fault) + "\n\n")
    sys.stdout.write(table(outcomes, lambda s: f"{s.phase}, {s.place}") + "\n\n")
    if options.matrix:
        sys.stdout.write(table(outcomes, lambda s: f"{s.fault}, {s.phase}") + "\n\n")
    missed = sum(not outcome.struck for outcome in outcomes)
    sys.stdout.write(
        f"{missed} runs ended before their fault could strike; {broken} broke a rule\n"
    )
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
