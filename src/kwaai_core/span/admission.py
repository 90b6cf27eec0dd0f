"""What a host of spans admits: which sessions and which steps, and for how many there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kwaai_core.span.frames import TAG_SIZE, Frame, Opening
from kwaai_core.span.hosted import Session, all_finite
from kwaai_core.types import Span


@dataclass(frozen=True, slots=True)
class Limits:
    """What a host admits.

    ``streams`` sessions with ``cells`` rows each, ``per_peer`` of them for one peer; ``chunk``
    rows of one step, ``window`` steps of a session that wait. A session that is not used for
    ``idle`` seconds is forgotten, and after ``orphan`` seconds if its link is gone.
    """

    streams: int
    cells: int
    chunk: int
    per_peer: int
    window: int = 8
    idle: float = 600.0
    orphan: float = 5.0
    retry: float = 1.0


class Admission:
    """The units that sessions may be opened over, and the streams of the cache that are free;
    ``reserved`` is for how many more sessions of which peers some are kept."""

    def __init__(self, units: Sequence[Span], limits: Limits) -> None:
        self.hold(units)
        self._limits = limits
        self._free = list(range(limits.streams))
        self.reserved: Mapping[str, int] = {}

    def hold(self, units: Sequence[Span]) -> None:
        """See :meth:`kwaai_core.span.host.Host.hold`."""
        self._starts = {unit.lo for unit in units}
        self._ends = {unit.hi for unit in units}
        self._blocks = {block for unit in units for block in range(unit.lo, unit.hi)}

    # -- room

    @property
    def free(self) -> int:
        """How many streams nobody has."""
        return len(self._free)

    def reserve(self, sessions: Mapping[str, int]) -> None:
        """See :meth:`kwaai_core.span.host.Host.reserve`."""
        self.reserved = dict(sessions)

    def full(self, peer: str, own: int) -> bool:
        """Whether a peer that has ``own`` sessions may have no other."""
        kept = sum(room for other, room in self.reserved.items() if other != peer)
        return len(self._free) <= kept or own >= self._limits.per_peer

    def take(self) -> int:
        """A stream for a session; there must be a free one."""
        return self._free.pop(0)

    def give_back(self, stream: int) -> None:
        """The session that had a stream is gone."""
        self._free.append(stream)
        self._free.sort()  # neighbouring streams share a call

    # -- what is wrong with it; nothing where it may be had

    def objection(self, opening: Opening) -> str:
        """Why no session can be opened so."""
        span = opening.span
        if opening.sender or opening.target:
            return "steps come from the owner, and outputs go there: rings are not served"
        inside = span.hi - span.lo <= len(self._blocks) and self._blocks.issuperset(
            range(span.lo, span.hi)
        )
        if not inside or span.lo not in self._starts or span.hi not in self._ends:
            return f"blocks {span.lo} to {span.hi} are no run of units that are held here"
        if opening.tokens > self._limits.cells:
            return f"a session has room for {self._limits.cells} tokens, not {opening.tokens}"
        return ""

    def objection_to_step(self, session: Session, frame: Frame) -> str:
        """Why a step that fits what its session holds is not computed."""
        if frame.rows > self._limits.chunk:
            return f"a step has at most {self._limits.chunk} rows here, not {frame.rows}"
        if frame.position + frame.rows > session.room:
            return f"the session was opened for {session.room} tokens"
        if len(session.pending) >= self._limits.window:
            return f"{len(session.pending)} steps of the session wait already"
        states = memoryview(frame.payload)[(frame.rows + 1) * TAG_SIZE :]
        return "" if all_finite(states) else "the hidden states are not finite numbers"
