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
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count, product
from random import Random

from kwaai_core.span.chain import ANSWER_SECONDS
from kwaai_core.span.frames import Frame, Kind
from kwaai_core.span.hosted import Step
from kwaai_core.span.watch import HEARTBEAT_SECONDS, SILENCE_SECONDS
from kwaai_core.testing.toy import BLOCKS
from kwaai_core.types import Span
from tests.span.machines import HARMLESS, IDLE, ORPHAN, ROUND_TRIP, ROW_SECONDS, Machine
from tests.span.owners import TICK_SECONDS, Owner, Talk

UNIT = 2
"""Blocks."""

BEGUN = 0.2
"""Seconds within which all sessions begin."""

SILENT = {"stop", "zombie", "blackhole", "mute"}
UNHEARD = {"deaf", "corrupt", "reorder"}
"""What is found out only because an answer does not come: half a frame may be waited for."""
FAULTS = sorted({"kill", "restart", "fails", "drain"} | SILENT | UNHEARD | HARMLESS)
PHASES = ("receive", "compute", "send", "prefill", "replay", "fence")
PLACES = ("first", "middle", "last", "adjacent")
MATRIX = list(product(FAULTS, PHASES, PLACES))


@dataclass(frozen=True)
class Scenario:
    """The last two phases are those of mending a first fault, a kill: the other is the second."""

    fault: str
    phase: str
    place: str
    seed: int

    @classmethod
    def of(cls, seed: int) -> Scenario:
        """Consecutive seeds go through the whole matrix."""
        return cls(*MATRIX[seed % len(MATRIX)], seed)


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
            self.after(self.random.random() * BEGUN, partial(self._begin, owner))
        self._begin(self.owners[0])

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
        return [links[h.place.link].machine for h in hops[where] if h.place.link in links]

    def told(self, talk: Talk) -> None:
        """A token was chosen: maybe the time for the first of two faults."""
        repair = self.scenario.phase in ("replay", "fence")
        if talk is self.talks[0] and repair and len(talk.text) == self._strike_after:
            self._broke = True
            links = self.owners[0].links
            hops = [hop for hop in talk.chain.hops if hop.place.link in links]
            if hops:
                links[self.random.choice(hops).place.link].machine.kill()

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
        return self.now > BEGUN and all(talk.end for talk in self.talks)

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
        elif fault in UNHEARD:  # each of two machines is found out by itself
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
    parser = argparse.ArgumentParser(prog="simulation", description="Run the swarm, with faults.")
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
