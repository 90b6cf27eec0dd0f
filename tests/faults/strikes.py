"""The fault of one cell: when it strikes, whom, and what it does there."""

from __future__ import annotations

import time
from random import Random

import trio

from kwaai_core.span.frames import Flags, Frame, Kind
from tests.faults.asking import TOKENS, Answer
from tests.faults.matrix import FAULTS, FRAMES, SIGNALS, Cell
from tests.faults.nodes import Node
from tests.faults.swarm import THIRDS, Swarm
from tests.faults.wires import Way, Wire

NAP_SECONDS = 0.5
_SLOWER = 10.0
_CRAWL_SECONDS = 0.4
_BACK_AFTER = 0.5
_PLACES = {"first": 0, "middle": 1, "last": 2}


class Quiet:
    """A watcher who only watches."""

    def before(self, wire: Wire, way: Way, frame: Frame) -> bool:
        return True

    def after(self, wire: Wire, way: Way, frame: Frame) -> None:
        return


class Strike:
    """Watches one answer, and strikes once. ``fired`` is when it did, 0 before; ``struck`` are the
    hosts, ``hurt`` also those whose link was cut before, and ``blamable`` the peers that may be
    suspected for it."""

    def __init__(self, swarm: Swarm, cell: Cell, random: Random, nursery: trio.Nursery) -> None:
        self.fired = 0.0
        self.struck: list[Node] = []
        self.hurt: list[Node] = []
        self.blamable: set[str] = set()
        self._swarm = swarm
        self._cell = cell
        self._random = random
        self._nursery = nursery
        self._serving: dict[int, tuple[Node, Wire]] = {}
        self._wires: list[Wire] = []
        self._steps = [0] * THIRDS
        self._replays: dict[Wire, tuple[float, float]] = {}
        self._broke = False
        self._back = False
        self._thirds = self._choose()
        self._due = random.randrange(3, TOKENS // 2)
        self._way = random.choice(list(Way))
        self._moment = random.random()
        outside = [third for third in range(THIRDS) if third not in self._thirds]
        self._first = random.choice(outside) if cell.place != "itself" else self._thirds[0]
        self._trigger = random.choice(self._thirds)
        if cell.phase == "replay":
            self._trigger = self._first

    def _choose(self) -> list[int]:
        if self._cell.place == "adjacent":
            lower = self._random.randrange(THIRDS - 1)
            return [lower, lower + 1]
        if self._cell.place == "itself":
            return [self._random.randrange(THIRDS)]
        return [_PLACES[self._cell.place]]

    @property
    def thirds(self) -> list[int]:
        """Whose hosts it is about."""
        return self._thirds

    # -- watching

    def before(self, wire: Wire, way: Way, frame: Frame) -> bool:
        """See :class:`tests.faults.wires.Watcher`."""
        node = self._swarm.by_pid(wire.pid)
        third = node.third or 0
        if frame.kind is Kind.OPEN:
            self._serving[third] = node, wire
        self._note_replay(wire, frame)
        if frame.kind is Kind.STEP and frame.rows == 1 and not frame.flags & Flags.SILENT:
            self._steps[third] += 1
        if self._cell.bare or self.fired or third != self._trigger:
            return True
        if self._cell.phase == "replay" and not self._broke:
            if self._is_decoding(third) and way is Way.DOWN and frame.kind is Kind.STEP:
                self._broke = True
                self.hurt.append(node)
                self.blamable.add(node.peer)
                wire.cut()
                return False
            return True
        if self._is_due(third, way, frame, passed=False):
            return self._fire()
        return True

    def after(self, wire: Wire, way: Way, frame: Frame) -> None:
        """See :class:`tests.faults.wires.Watcher`."""
        third = self._swarm.by_pid(wire.pid).third or 0
        waits = not (self._cell.bare or self.fired) and third == self._trigger
        if waits and self._is_due(third, way, frame, passed=True):
            self._fire()

    @property
    def replay(self) -> float:
        """How many seconds the longest replay to one host took, as far as it could be seen."""
        return max((end - begin for begin, end in self._replays.values()), default=0.0)

    def _note_replay(self, wire: Wire, frame: Frame) -> None:
        if frame.flags & Flags.SILENT:
            now = time.monotonic()
            begin, end = self._replays.get(wire, (now, now))
            self._replays[wire] = begin, now if frame.kind is Kind.RESULT else end

    def _is_decoding(self, third: int) -> bool:
        return self._steps[third] >= self._due

    def _is_due(self, third: int, way: Way, frame: Frame, *, passed: bool) -> bool:
        step, result = frame.kind is Kind.STEP, frame.kind is Kind.RESULT
        if self._cell.phase == "replay":
            return step and bool(frame.flags & Flags.SILENT) and not passed
        if self._cell.phase == "prefill":
            return self._is_due_in_prompt(frame, way, passed=passed)
        if frame.rows != 1 or not self._is_decoding(third):
            return False
        if self._cell.phase == "compute":
            return step and passed
        return (result if self._cell.phase == "send" else step) and not passed

    def _is_due_in_prompt(self, frame: Frame, way: Way, *, passed: bool) -> bool:
        """At the second chunk: as it comes, while it is computed, or with its result."""
        if frame.rows <= 1 or not frame.position:
            return False
        if self._cell.fault in FRAMES:
            return way is self._way and not passed
        if self._moment < 0.67:
            return frame.kind is Kind.STEP and passed is (self._moment < 0.33)
        return frame.kind is Kind.RESULT and not passed

    # -- in an answer whose frames nobody sees

    def piece(self, answer: Answer) -> None:
        """The answer has begun, if it has no text yet, or has another piece of text."""
        if self._cell.bare and not self.fired:
            begun = self._cell.phase == "bare prefill"
            if begun or len(answer.times) >= self._due:
                self._find(answer.planned)
                self._fire()
        elif self._cell.fault == "zombie" and not self._back and self._is_mended(answer):
            self._back = True
            self.release()

    def _is_mended(self, answer: Answer) -> bool:
        """Whether text comes again, after a pause in which somebody must have been replaced."""
        late = answer.times[-1] - self.fired if self.fired and answer.times else 0.0
        return late > _BACK_AFTER

    def _find(self, planned: str) -> None:
        for hop in planned.split(", "):
            peer = hop.rpartition(":")[0]
            for host in self._swarm.hosts:
                if host.peer == peer:
                    self._serving[host.third or 0] = host, Wire(host.pid, self._random)

    # -- striking

    def _fire(self) -> bool:
        """Strike; whether the frame at hand is passed on."""
        self.fired = time.monotonic()
        for third in self._thirds:
            node, wire = self._serving[third]
            self.struck.append(node)
            self.hurt.append(node)
            self._wires.append(wire)
            if FAULTS[self._cell.fault].blames:
                self.blamable.add(node.peer)
            if self._cell.fault in SIGNALS:
                self._signal(node, wire)
            else:
                self._spoil(wire)
        # what a host that dies now has not sent, it never will
        return not (self._cell.phase == "send" and self._cell.fault in ("kill node", "kill worker"))

    def _signal(self, node: Node, wire: Wire) -> None:
        match self._cell.fault:
            case "kill node":
                node.kill()
            case "kill worker":
                node.kill_worker()
            case "stop node":
                node.freeze(node.pid)
            case "stop both" | "zombie":
                node.freeze(node.pid, node.worker)
                wire.frozen = trio.Event()
            case _:
                node.freeze(node.worker)
                wire.frozen = trio.Event()
        if self._cell.fault == "nap":
            self._nursery.start_soon(self._wake)

    async def _wake(self) -> None:
        await trio.sleep(NAP_SECONDS)
        self.release()

    def _spoil(self, wire: Wire) -> None:
        match self._cell.fault:
            case "blackhole":
                wire.lost |= set(Way)
            case "half-open, deaf":
                wire.lost.add(Way.DOWN)
            case "half-open, mute":
                wire.lost.add(Way.UP)
            case "ten times slower":
                wire.factor = _SLOWER
            case "crawling":
                wire.delay = _CRAWL_SECONDS
            case fault:
                wire.once[self._way_of_frame()] = fault

    def _way_of_frame(self) -> Way:
        match self._cell.phase:
            case "receive":
                return Way.DOWN
            case "prefill":
                return self._way
            case "replay" if self._cell.place == "itself":
                return Way.DOWN
        return Way.UP

    def release(self) -> None:
        """Let go on what was stopped, and pass on what it had sent."""
        for node in self.struck:
            node.thaw()
        for wire in self._wires:
            wire.thaw()

    def heal(self) -> None:
        """Undo what can be undone."""
        self.release()
        for wire in self._wires:
            wire.heal()
