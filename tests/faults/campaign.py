"""Cells played one after the other on one swarm, and what is looked at after each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from random import Random

import trio

from tests.faults.asking import LONG, SHORT, TOLD, Answer, Question, ask
from tests.faults.matrix import ALONE, Cell
from tests.faults.nodes import Broken, Node
from tests.faults.strikes import Quiet, Strike
from tests.faults.swarm import Swarm, open_swarm

FREE_SECONDS, ORPHAN_SECONDS = 1.5, 8.0
"""Within so many seconds a host has forgotten a session: one that was told that it has ended, and
one whose link was lost, which waits a while for its owner."""

TOLD_SECONDS = 0.25
"""A worker tells its node ten times a second how many sessions it has."""

LOOK_SECONDS = 10.0
"""For how long a path is looked for, before an answer ends with an error."""

_TRIES = 3


@dataclass
class Outcome:
    """Of one cell. ``problems`` is empty where all was as it must be."""

    cell: Cell
    gap: float = 0.0
    replay: float = 0.0
    replayed: int = 0
    equal: bool = False
    seconds: float = 0.0
    struck: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Campaign:
    """Plays cells on a swarm; the seed and a cell decide all that is drawn for it."""

    def __init__(self, swarm: Swarm, seed: int) -> None:
        self._swarm = swarm
        self._seed = seed
        self._owing: dict[Node, tuple[float, Outcome]] = {}
        self.broken = False

    async def play(self, cell: Cell) -> Outcome:
        """One cell, until all is well again; where that fails :attr:`broken` is set."""
        began, outcome = time.monotonic(), Outcome(cell)
        try:
            for attempt in range(_TRIES):
                outcome = Outcome(cell)
                if await self._try(outcome, Random(f"{self._seed} {cell} {attempt}")):
                    break
            else:
                outcome.problems.append(f"the answer was over before the fault, {_TRIES} times")
        except Broken as error:
            self.broken = True
            outcome.problems.append(str(error))
        outcome.seconds = time.monotonic() - began
        return outcome

    async def _try(self, outcome: Outcome, random: Random) -> bool:
        """Whether the fault struck, or something else was wrong."""
        swarm, cell = self._swarm, outcome.cell
        kind = LONG if cell.phase.endswith("prefill") else TOLD if cell.bare else SHORT
        question = random.choice(kind)
        before = await swarm.suspected()
        async with trio.open_nursery() as nursery:
            strike = Strike(swarm, cell, random, nursery)
            spares = await self._without_spare(strike) if cell.phase == ALONE else []
            swarm.wires.watcher = strike
            try:
                answer = await ask(swarm.asked, question, strike.piece)
            finally:
                swarm.wires.watcher = Quiet()
                strike.heal()
                for spare in spares:
                    spare.thaw()
        outcome.struck = [host.name for host in strike.struck]
        self._judge(outcome, answer, question, strike)
        await self._look_for_suspicion(outcome, before, strike)
        await self._heal(cell, strike, spares)
        await self._look_for_leaks(outcome, [*strike.hurt, *spares])
        return bool(strike.fired or outcome.problems)

    async def _without_spare(self, strike: Strike) -> list[Node]:
        """Freeze one of the two who hold the third, and wait until it is forgotten."""
        (third,) = strike.thirds
        spare = self._swarm.of(third)[0]
        spare.freeze(spare.pid, spare.worker)
        await self._swarm.forgotten(spare)
        return [spare]

    # -- what is looked at

    def _judge(self, outcome: Outcome, answer: Answer, question: Question, strike: Strike) -> None:
        cell, text = outcome.cell, self._swarm.texts[question]
        outcome.gap, outcome.replay = answer.gap, strike.replay
        outcome.replayed, outcome.equal = answer.replayed, answer.text == text
        wrong = outcome.problems.append
        if cell.phase == ALONE:
            if strike.fired:
                self._judge_end(outcome, answer, text, strike)
            return
        if answer.error:
            wrong(f"it ended with {answer.error.get('code')}: {answer.error.get('message')}")
        elif answer.text != text:
            wrong(f"it says {answer.text!r} and not {text!r}")
        elif answer.tokens != question.tokens:
            wrong(f"it counts {answer.tokens} tokens and not {question.tokens}")
        elif answer.kwaai.get("same_text_guaranteed") is not True:
            wrong("the same text was not guaranteed")
        elif strike.fired and answer.ended - strike.fired > cell.limit + cell.patience:
            wrong(f"it took {answer.ended - strike.fired:.1f} s from the fault on")
        if answer.gap - strike.replay > cell.limit:
            wrong(f"a gap of {answer.gap:.2f} s, of which {strike.replay:.2f} s are the replay")

    def _judge_end(self, outcome: Outcome, answer: Answer, text: str, strike: Strike) -> None:
        """Of an answer for which no path was left."""
        wrong = outcome.problems.append
        if answer.error.get("code") != "upstream_lost":
            wrong(f"it must end with upstream_lost, not {answer.error or 'without an error'}")
            return
        if not text.startswith(answer.text):
            wrong(f"it says {answer.text!r}, and {text!r} is right")
        outcome.equal = text.startswith(answer.text)
        (third,) = strike.thirds
        if f"blocks {2 * third}\u2013{2 * third + 1} " not in answer.error["message"]:
            wrong(f"it does not name what is missing: {answer.error['message']}")
        took = answer.ended - strike.fired
        if took > LOOK_SECONDS + outcome.cell.limit:
            wrong(f"it ended only after {took:.1f} s")

    async def _look_for_suspicion(
        self, outcome: Outcome, before: Counter[str], strike: Strike
    ) -> None:
        after = await self._swarm.suspected()
        names = {host.peer: host.name for host in self._swarm.hosts}
        for peer in after - before:
            if peer not in strike.blamable:
                said = [line for line in self._swarm.asked.log.splitlines() if peer in line]
                name, why = names.get(peer, peer), said[-1] if said else "nobody knows why"
                outcome.problems.append(f"{name} was suspected, and is healthy: {why}")

    async def _heal(self, cell: Cell, strike: Strike, spares: Sequence[Node]) -> None:
        swarm = self._swarm
        async with trio.open_nursery() as nursery:
            for host in strike.struck:
                if cell.fault == "kill node":
                    nursery.start_soon(swarm.restart, host)
                elif cell.fault == "kill worker":
                    nursery.start_soon(swarm.renewed, host)
        await swarm.settled([*strike.struck, *spares])

    async def _look_for_leaks(self, outcome: Outcome, hurt: Sequence[Node]) -> None:
        await trio.sleep(TOLD_SECONDS)
        now = time.monotonic()
        for host in self._swarm.hosts:
            until, owed = self._owing.get(host, (0.0, outcome))
            patience = ORPHAN_SECONDS if host in hurt else FREE_SECONDS
            self._owing[host] = max(until, now + patience), owed
        while waited := [
            host
            for host in self._swarm.hosts
            if not await self._is_free(host) and self._owing[host][1] is outcome
        ]:
            if all(host in hurt for host in waited):
                return
            await trio.sleep(0.05)

    async def _is_free(self, host: Node) -> bool:
        """Whether a host holds nothing any more, or has held it for too long, which is noted."""
        until, outcome = self._owing.get(host, (0.0, None))
        if outcome is None:
            return True
        sessions = await self._swarm.sessions(host)
        if sessions and time.monotonic() < until:
            return False
        if sessions:
            outcome.problems.append(f"{host.name} still holds {sessions} sessions")
        if sessions is None and time.monotonic() > until + ORPHAN_SECONDS:
            raise Broken(f"{host.name} holds its blocks no more: {host.log[-500:]}")
        if sessions is not None:
            del self._owing[host]
        return sessions is not None

    async def end(self) -> None:
        """Wait until every host is free."""
        while self._owing and not self.broken:
            await trio.sleep(0.1)
            for host in list(self._owing):
                await self._is_free(host)


async def run(
    chosen: Sequence[Cell],
    seed: int,
    folder: Path,
    tell: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Play cells, the bare ones last, each kind on a swarm of its own, and on a new one where that
    cannot be used any more; ``tell`` is called after each. Errors: :class:`Broken`, where no swarm
    comes up."""
    outcomes, swarms = list[Outcome](), 0
    for bare, group in groupby(sorted(chosen, key=_is_bare), _is_bare):
        waiting = list(group)
        while waiting:
            swarms += 1
            within = folder / str(swarms)
            async with open_swarm(within, Quiet(), Random(seed), bare=bare) as swarm:
                campaign = Campaign(swarm, seed)
                while waiting and not campaign.broken:
                    outcomes.append(await campaign.play(waiting.pop(0)))
                    tell(outcomes[-1])
                await campaign.end()
    return outcomes


def _is_bare(cell: Cell) -> bool:
    return cell.bare
