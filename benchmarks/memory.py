"""Resident memory of processes, as the kernel counts it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes: ``rss`` counts shared pages fully, ``pss`` divides them by who shares them."""

    rss: int
    pss: int

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.rss + other.rss, self.pss + other.pss)


def resident(pid: int) -> Memory:
    """What ``/proc/<pid>/smaps_rollup`` says now."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return Memory(sizes["Rss"], sizes["Pss"])


def resident_together(pids: Iterable[int]) -> Memory:
    return sum((resident(pid) for pid in pids), Memory(0, 0))
