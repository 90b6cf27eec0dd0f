"""The table ``[spans]`` of ``kwaai.toml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from kwaai_core import Span
from kwaai_core.config import Count

PROMPT, MOST_PROMPT = 32, 1 << 20
"""For how long a prompt the time to the first token is told, where nobody says, and at most."""

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


@dataclass(frozen=True, slots=True)
class SpansSettings:
    """What this node holds for others, and how it routes its own answers.

    ``models`` names models of the catalogs of which it holds blocks: ``blocks`` of them, like
    ``"0-14"``, both ends included; or, with ``memory``, the run of blocks that the swarm lacks
    most, for as many bytes in all. ``unit`` is how many blocks at most are held as one, to be used
    together. ``exact``: what is held, and what is asked of others, computes the same bits whoever
    else is served. ``whole``: a model that fits this machine is run here, without peers.
    ``local_blocks``: so many blocks at both ends are computed here, unless a request says more.
    ``links``: that one peer may have here at once. ``drain_seconds``: for moving the sessions of
    peers away before this node leaves.
    """

    models: tuple[str, ...] = ()
    blocks: str = ""
    memory: int = 0
    unit: Count = 8
    exact: bool = True
    whole: bool = True
    local_blocks: Count = 0
    links: Count = 4
    drain_seconds: float = 8.0

    def __post_init__(self) -> None:
        if self.blocks and self.memory:
            raise ValueError("blocks and memory: give one of them")
        if self.models and not (self.blocks or self.memory):
            raise ValueError('models: say which blocks of them, like blocks = "0-14", or memory')
        if (self.blocks or self.memory) and not self.models:
            raise ValueError("blocks and memory: of which models?")
        if self.blocks and len(self.models) > 1:
            raise ValueError("blocks: good for one model; with several, give memory")
        if self.blocks:
            self._check_blocks()
        if not 1 <= self.unit <= 1000:
            raise ValueError(f"unit = {self.unit}: must be 1 to 1000")
        if not 0 <= self.local_blocks <= 1000:
            raise ValueError(f"local_blocks = {self.local_blocks}: must be 0 to 1000")
        if not 1 <= self.links <= 64:
            raise ValueError(f"links = {self.links}: must be 1 to 64")
        if not 0 <= self.drain_seconds <= 60:
            raise ValueError(f"drain_seconds = {self.drain_seconds}: must be 0 to 60")

    def _check_blocks(self) -> None:
        if not _RANGE.fullmatch(self.blocks):
            raise ValueError(f'blocks = "{self.blocks}": must be like "0-14", or "3"')
        if self.span is None:
            raise ValueError(
                f'blocks = "{self.blocks}": the first must not be larger than the last'
            )

    @property
    def span(self) -> Span | None:
        """``blocks``, half-open; None where it is no range."""
        found = _RANGE.fullmatch(self.blocks)
        if found is None:
            return None
        lo = int(found[1])
        hi = int(found[2] or found[1]) + 1
        return Span(lo, hi) if lo < hi else None


def units_of(span: Span, unit: int) -> tuple[Span, ...]:
    """A run of blocks in units that end at multiples of ``unit``, so that those of two nodes
    meet."""
    inner = range(span.lo - span.lo % unit + unit, span.hi, unit)
    edges = [span.lo, *inner, span.hi]
    return tuple(Span(lo, hi) for lo, hi in pairwise(edges))
