"""One session as its host sees it: what the KV cache holds, and what waits to be computed."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from kwaai_core.span.frames import TAG_SIZE, Flags, Frame
from kwaai_core.span.tags import as_numbers
from kwaai_core.types import Span

_PIECE = 4096
_EXPONENTS, _ONES, _SIGNS = (
    int.from_bytes(bits.to_bytes(4, "little") * (_PIECE // 4), "little")
    for bits in (0x7F800000, 0x00800000, 0x80000000)
)


class Step(NamedTuple):
    """A step that was admitted. ``states`` has ``rows`` hidden states, float32, row by row."""

    number: int
    position: int
    rows: int
    flags: Flags
    digest: int
    states: memoryview
    arrived: float

    @property
    def end(self) -> int:
        """The position after its last row."""
        return self.position + self.rows


class Answered(NamedTuple):
    """The last step that was computed, and as much of its output as ``flags`` asked for."""

    number: int
    digest: int
    flags: Flags
    output: bytes
    waited: float
    computed: float


@dataclass(slots=True, eq=False)
class Session:
    """A session of ``owner``, whose answers go to ``link``, None once that is gone.

    ``tags`` are of every position up to the last row that was admitted. The first ``held`` rows
    are computed, or just being so, and agree with them; the KV cache has ``cells`` rows, and those
    beyond ``held`` are cut off before the next step. ``latest`` is the number of the last step that
    was admitted in this epoch. While ``computing`` is set nothing may be freed: ``fence`` and
    ``closed`` say what is to be done afterwards.
    """

    number: int
    owner: str
    link: Hashable | None
    epoch: int
    span: Span
    stream: int
    room: int
    used: float
    tags: array[int] = field(default_factory=lambda: array("Q"))
    held: int = 0
    cells: int = 0
    latest: int = -1
    pending: deque[Step] = field(default_factory=deque)
    computing: Step | None = None
    answered: Answered | None = None
    fence: bool = False
    closed: bool = False

    @property
    def planned(self) -> int:
        """The rows that will be held once everything admitted is computed."""
        return max(0, len(self.tags) - 1)

    def agrees(self, frame: Frame) -> bool:
        """Whether a step that is not beyond the plan builds on the tokens that are in it."""
        return not self.tags or as_numbers(frame.payload[:TAG_SIZE])[0] == self.tags[frame.position]

    def admit(self, frame: Frame, digest: int, now: float) -> None:
        """Queue a step that continues the plan, or goes back in it."""
        border = (frame.rows + 1) * TAG_SIZE
        while self.pending and self.pending[-1].position >= frame.position:
            self.pending.pop()
        self.tags[frame.position :] = as_numbers(frame.payload[:border])
        self.held = min(self.held, frame.position)
        self.latest = frame.step
        states = memoryview(frame.payload)[border:]
        step = Step(frame.step, frame.position, frame.rows, frame.flags, digest, states, now)
        self.pending.append(step)

    def take(self) -> Step:
        """Begin to compute the next step."""
        step = self.computing = self.pending.popleft()
        self.cells = step.end
        # one that goes back into this step waits already: what it replaces does not count
        self.held = min(step.end, self.pending[0].position) if self.pending else step.end
        return step

    def repeated(self, frame: Frame, digest: int) -> Answered | None:
        """The answer to a step that was given already, if what is held still ends with it."""
        answered = self.answered
        if answered is None or (answered.number, answered.digest) != (frame.step, digest):
            return None
        if self.held != frame.position + frame.rows:
            return None
        same = answered.flags == frame.flags or frame.flags & Flags.SILENT
        return answered if same else None

    def enter(self, epoch: int, link: Hashable) -> None:
        """Begin an epoch, in which steps come over this link: drop what waits."""
        self.epoch, self.link, self.latest = epoch, link, -1
        self.keep_computed()

    def keep_computed(self) -> None:
        """Drop what waits."""
        self.pending.clear()
        del self.tags[self.held + 1 :]

    def empty(self) -> None:
        """Hold nothing; the cells are cut off before the next step."""
        self.held, self.answered = 0, None
        self.keep_computed()
        del self.tags[:]

    def tag(self) -> bytes:
        """The tag of what is held; none before the first step."""
        return as_bytes(self.tags[self.held]) if self.tags else b""


def as_bytes(tag: int) -> bytes:
    """A tag as it travels."""
    return tag.to_bytes(TAG_SIZE, "little")


def all_finite(states: bytes | memoryview) -> bool:
    """Whether float32 values have no NaN and no infinity among them: none has an exponent of ones
    only, to which adding one would carry into the place of its sign."""
    return not any(
        (int.from_bytes(states[at : at + _PIECE], "little") & _EXPONENTS) + _ONES & _SIGNS
        for at in range(0, len(states), _PIECE)
    )
