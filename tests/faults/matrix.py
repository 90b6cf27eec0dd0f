"""Which faults strike where and when, what each may cost, and which of them make no sense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

PLACES = ("first", "middle", "last", "adjacent", "itself")
"""Whose host is struck: of the first third, the second, the last; of two neighbours; and, during a
replay, the one to which it goes."""

PHASES = ("receive", "compute", "send", "prefill", "replay", "bare decode", "bare prefill")
"""Before a host receives a step, while it computes it, before its result is sent; during a prompt;
during the replay after another fault. *Bare*: nothing lies between the workers, and the moment is
any in an answer, or in a prompt."""

ALONE = "receive, no spare"
"""Nobody else holds the blocks."""


@dataclass(frozen=True)
class Fault:
    """``gap``: for how many seconds an answer may then pause at most, the replay aside: the figures
    of the design plus what two busy cores may take. ``blames``: the hosts that are struck may be
    suspected."""

    gap: float
    blames: bool = True


_SILENT = 1.0 + 0.25 + 0.1  # the limit of silence, a heartbeat, and a look at the time
_BUSY = 1.5

FAULTS = {
    "kill node": Fault(_BUSY),
    "kill worker": Fault(_BUSY),
    "stop node": Fault(_BUSY, blames=False),
    "stop worker": Fault(_SILENT + _BUSY),
    "stop both": Fault(_SILENT + _BUSY),
    "zombie": Fault(_SILENT + _BUSY),
    "nap": Fault(0.5 + _BUSY, blames=False),
    "blackhole": Fault(_SILENT + _BUSY),
    "half-open, deaf": Fault(5.0 + 0.35 + _BUSY),
    "half-open, mute": Fault(_SILENT + _BUSY),
    "ten times slower": Fault(_BUSY, blames=False),
    "crawling": Fault(0.4 + 0.4 + _BUSY, blames=False),
    "corrupt": Fault(5.0 + 0.35 + _BUSY),
    "duplicate": Fault(_BUSY, blames=False),
    "reorder": Fault(0.25 + _BUSY),
}

SIGNALS = ("kill node", "kill worker", "stop node", "stop worker", "stop both", "zombie", "nap")
FRAMES = ("corrupt", "duplicate", "reorder")
DEADLY = ("kill node", "stop both")
"""After these nobody is there for as long as a path is looked for."""


@dataclass(frozen=True)
class Cell:
    """One fault at one place in one phase."""

    fault: str
    place: str
    phase: str

    def __str__(self) -> str:
        return f"{self.fault} / {self.place} / {self.phase}"

    @property
    def bare(self) -> bool:
        return self.phase.startswith("bare")

    @property
    def limit(self) -> float:
        """How long the answer may pause, in seconds."""
        limit = FAULTS[self.fault].gap
        if self.phase == "replay":
            limit += 0.5
        if self.place == "itself" and FAULTS[self.fault].blames:
            limit += 5.0  # the only other host has just been lost, and is not asked again so soon
        return limit

    @property
    def patience(self) -> float:
        """How long the rest of the answer may take beside its longest pause, in seconds. It takes
        a fraction of one where a host that has become slow is left at once."""
        return 12.0 if self.fault == "crawling" else 4.0


def left_out(cell: Cell) -> str:
    """Why a cell makes no sense; nothing where it does."""
    if cell.place == "itself" and cell.phase != "replay":
        return "only a replay has somebody to whom it goes"
    if cell.bare and cell.fault not in SIGNALS:
        return "what happens to frames needs somebody who sees them"
    if cell.phase == "compute" and cell.fault in FRAMES:
        return "no frame of the step is on its way while it is computed"
    if cell.phase == "receive" and cell.fault == "reorder":
        return "in decoding a step has no other behind it to change places with"
    if cell.phase == ALONE and (cell.fault not in DEADLY or cell.place in ("adjacent", "itself")):
        return "without a spare, what counts is who is missing for good"
    return ""


def everything() -> Iterator[Cell]:
    """Every combination, those that make no sense too."""
    for fault, place, phase in product(FAULTS, PLACES, (*PHASES, ALONE)):
        yield Cell(fault, place, phase)


def cells(seed: int) -> list[Cell]:
    """All that make sense, in an order drawn from the seed."""
    found = [cell for cell in everything() if not left_out(cell)]
    Random(seed).shuffle(found)
    return found


def one_of_each(seed: int) -> list[Cell]:
    """For each fault the first cell that is over soon, and needs no second swarm."""
    first: dict[str, Cell] = {}
    for cell in cells(seed):
        if not cell.bare and cell.phase != ALONE and cell.place != "itself":
            first.setdefault(cell.fault, cell)
    return list(first.values())
