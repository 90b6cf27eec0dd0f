"""Owners of the simulation: heads, and a router of few words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache, partial
from random import Random
from typing import TYPE_CHECKING

from kwaai_core.errors import FrameError
from kwaai_core.span.chain import Chain, Settings
from kwaai_core.span.frames import Frame, Kind, encode
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.journal import Budget
from kwaai_core.span.watch import Pace
from kwaai_core.testing.toy import BLOCKS, WIDTH, chosen, embed, plain
from kwaai_core.types import Span
from tests.span.machines import CHUNK, Link, Machine, Process

if TYPE_CHECKING:
    from tests.span.simulation import World

TICK_SECONDS = 0.1
PATIENCE = 6.0
"""For how many seconds a router looks for a path."""


@lru_cache(maxsize=256)
def expected(prompt: tuple[int, ...], length: int) -> list[int]:
    """The text of the whole model."""
    return plain(prompt, length)


class Owner(Process):
    """A node that answers requests over the machines."""

    def __init__(self, world: World, name: str, budget: int) -> None:
        super().__init__(world)
        self.name = name
        self.budget = Budget(budget)
        self.links: dict[Hashable, Link] = {}
        self.talks: list[Talk] = []
        self.paces: dict[Place, Pace] = {}
        self._dials: dict[str, float] = {}
        for machine in world.machines:
            self.dial(machine)
        self.every(TICK_SECONDS, self._tick)

    def go_on(self) -> None:
        """It looks at the time before it has read what has come meanwhile."""
        self.running = True
        self._tick()
        super().go_on()

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
                talk.chain.beat(link.number, frame)
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
            Settings(WIDTH, room, CHUNK),
            embed,
            self.owner.send,
            self.owner.budget,
            pace=lambda place: self.owner.paces.setdefault(place, Pace()),
            replay_rows=lambda _: self._replay,
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
        link = self.owner.links.get(trouble.place.link)
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
        again = partial(self._answer, soft, since)
        return self.world.after(0.1, partial(self.owner.post, again))


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
