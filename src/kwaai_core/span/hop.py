"""One hop of a route as the owner of a session sees it: what was sent there, and what came back."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from kwaai_core.span.frames import Flags, Frame
from kwaai_core.span.hosted import all_finite
from kwaai_core.span.journal import Journal
from kwaai_core.span.watch import Pace
from kwaai_core.types import Span


class Place(NamedTuple):
    """Who runs which blocks: a link to a host, and a span that it holds."""

    link: Hashable
    span: Span


class Blame(StrEnum):
    """Why a session should leave a place. Only LOST counts against the peer, and the last two are
    no reason to wait: the place serves until there is a better one."""

    LOST = "lost"
    FULL = "full"
    REFUSED = "refused"
    SLOW = "slow"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A place that the session cannot use any more, and why. Seconds: it has room again
    ``retry_after``; and the step for which it is called slow, or those of late, ``took`` so long.
    """

    place: Place
    blame: Blame
    reason: str
    retry_after: float = 0.0
    took: float = 0.0


class Flight(NamedTuple):
    """Steps ``[first, end)`` that were sent as one, and are not answered yet."""

    first: int
    end: int
    position: int
    rows: int
    flags: Flags
    sent: float


@dataclass(slots=True)
class Timing:
    """Sums over the steps of a hop, in seconds: from sending to result, of which the host says
    that so much was waiting and so much computing. ``replayed`` rows were computed again."""

    steps: int = 0
    rows: int = 0
    replayed: int = 0
    total: float = 0.0
    waited: float = 0.0
    computed: float = 0.0


@dataclass(slots=True, eq=False)
class Hop:
    """``done`` steps are applied there and ``sent`` have been sent; ``journal`` holds its inputs.
    ``furthest`` is the most that were ever sent: what is below it and sent again is a replay.

    ``session`` is its name at the host: each hop has its own, so that one host may have two. It is
    ``fresh`` until the host has one. ``awaited``: an OPEN or FENCE is unanswered, for ``waited``
    seconds, whatever its host says it does.
    ``refused`` counts the replays that it asked for since it last completed a step that was never
    sent before: what is replayed is no progress, or a host could ask for replays for ever.
    ``owed`` is for how many seconds it has owed an answer, and its host was not seen to compute;
    ``calls`` are those that its host says it has finished, -1 where it does not tell.
    ``replay_rows`` lone rows may be replayed there in one call without changing a bit.
    """

    place: Place
    journal: Journal
    pace: Pace
    furthest: int = 0
    session: int = field(default_factory=lambda: secrets.randbits(64))
    fresh: bool = True
    sent: int = 0
    done: int = 0
    flying: deque[Flight] = field(default_factory=deque)
    awaited: bool = False
    waited: float = 0.0
    refused: int = 0
    owed: float = 0.0
    calls: int = -1
    replay_rows: int = 1
    timing: Timing = field(default_factory=Timing)

    def rewind(self, steps: int) -> None:
        """So many steps are applied there; whatever else was sent is dropped there."""
        self.furthest = max(self.furthest, self.sent)
        self.done = self.sent = steps
        self.flying.clear()

    def take_off(self, flight: Flight) -> None:
        """Steps are being sent."""
        if not self.flying:
            self.owed = 0.0
        self.flying.append(flight)
        self.sent = flight.end

    def acknowledged(self, steps: int) -> None:
        """Its host stands at the epoch, and holds so many steps."""
        if self.fresh:
            self.pace.opened(self.owed)
        self.fresh = self.awaited = False
        self.rewind(steps)

    def wrong(self, frame: Frame) -> str:
        """What is wrong with a RESULT; nothing where it answers the oldest flight."""
        flight = self.flying[0] if self.flying else None
        if flight is None or frame.step != flight.end - 1:
            return f"it answered step {frame.step}, which was not the next to be answered"
        shape = (frame.position, frame.rows, frame.flags)
        if shape != (flight.position, flight.rows, flight.flags):
            return f"its answer to step {frame.step} has another shape than the step"
        if not all_finite(frame.payload):
            return f"its answer to step {frame.step} has values that are not finite"
        return ""

    def land(self, frame: Frame, now: float) -> Flight:
        """The oldest flight is answered."""
        flight = self.flying.popleft()
        self.done, self.owed = flight.end, 0.0
        if flight.end > self.furthest:
            self.refused = 0
        took = now - flight.sent
        self.pace.observe(flight.rows, took)
        timing = self.timing
        timing.steps += 1
        timing.rows += flight.rows
        timing.total += took
        timing.waited += frame.waited / 1e6
        timing.computed += frame.computed / 1e6
        if flight.first < self.furthest:
            timing.replayed += flight.rows
        return flight

    def fence(self) -> None:
        """An OPEN or FENCE is being sent; what it was sent before is not answered any more."""
        self.awaited, self.owed, self.waited = True, 0.0, 0.0
        self.flying.clear()

    def beat(self, frame: Frame) -> None:
        """Its host says how many calls it has finished, and for how long it has been in one."""
        if frame.computed or frame.step != self.calls:
            self.owed = 0.0
        self.calls = frame.step

    def owes(self, seconds: float) -> float:
        """So much time has gone by: for how long it has owed an answer. That of a step counts only
        where its host tells what it does."""
        if self.awaited:
            self.waited += seconds
        if self.awaited or (self.flying and self.calls >= 0):
            self.owed += seconds
        return self.owed

    def slow(self, now: float) -> float:
        """For how long its oldest step, or its opening, is under way, where that is longer than
        those before let expect; else 0."""
        if self.awaited and self.fresh:
            taking, limit = self.owed, self.pace.opening_limit()
        elif self.flying:
            flight = self.flying[0]
            taking, limit = now - flight.sent, self.pace.limit(flight.rows)
        else:
            return 0.0
        return taking if taking > limit else 0.0
