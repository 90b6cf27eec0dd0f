"""Which blocks of a model a node should hold, for the memory that it may use: pure."""

import random
from collections.abc import Sequence

from kwaai_core import Span


def place(
    holders: Sequence[int], sizes: Sequence[int], memory: int, *, unit: int, seed: int
) -> tuple[Span, ...]:
    """The run of units that the swarm lacks most, or nothing where not even one unit fits.

    ``holders`` counts, for each block, who has it already; ``sizes`` are the bytes that each block
    takes, its KV cache included, of ``memory``. Units begin at multiples of ``unit`` blocks, so
    that those of different nodes meet; the last one may be shorter.

    A model is served as often as its scarcest block is held. So of all runs the one is best after
    which the scarcest block has most holders, then the second scarcest, and so on. Among equals
    ``seed`` chooses: nodes that start at once, seeing the same, do not all take the same blocks.

    Errors: :class:`ValueError` where the arguments do not describe one model.
    """
    if unit < 1 or not holders or len(holders) != len(sizes):
        raise ValueError(f"{len(holders)} counts, {len(sizes)} sizes, units of {unit}: no model")
    units = [Span(lo, min(lo + unit, len(sizes))) for lo in range(0, len(sizes), unit)]
    runs = [run for start in range(len(units)) if (run := _longest(units[start:], sizes, memory))]
    if not runs:
        return ()
    ranked = [(_scarcity(holders, run), run) for run in runs]
    best = max(scarcity for scarcity, _ in ranked)
    return random.Random(seed).choice([run for scarcity, run in ranked if scarcity == best])


def _longest(units: Sequence[Span], sizes: Sequence[int], memory: int) -> tuple[Span, ...]:
    """As many of the units as fit, from the first one on."""
    run = list[Span]()
    for unit in units:
        memory -= sum(sizes[unit.lo : unit.hi])
        if memory < 0:
            break
        run.append(unit)
    return tuple(run)


def _scarcity(holders: Sequence[int], run: Sequence[Span]) -> list[int]:
    """The holders of all blocks if this run were held too, the scarcest first."""
    lo, hi = run[0].lo, run[-1].hi
    return sorted(count + (lo <= block < hi) for block, count in enumerate(holders))
