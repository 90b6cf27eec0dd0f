"""Why there is no route: values that prove it, and say what is missing in one line for people.

Blocks are told to people with both ends included; spans here are half-open, as everywhere in code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from kwaai_core import Span, Tier

Objection = Literal["excluded", "tier", "exact", "dtype", "room", "cut"]
"""Why somebody who holds blocks is of no use: it failed this request, is trusted too little, has no
exact worker, does not speak the type on the wire, has no room, or holds them only in one unit with
blocks that have to be computed by this node."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Blocks that nobody may compute. ``objections`` counts those who hold some of them, by what
    keeps them out; ``best_tier`` is the highest of those who are trusted too little.

    ``local``: this node has to compute them itself, and does not hold them.
    """

    span: Span
    objections: Mapping[Objection, int] = field(default_factory=dict)
    best_tier: Tier | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Some blocks have nobody. The other values are those of the wish."""

    model: str
    missing: tuple[Missing, ...]
    min_tier: Tier
    tokens: int
    local_blocks: int
    dtype: str

    def __str__(self) -> str:
        return "; ".join(self._line(missing) for missing in self.missing)

    def _line(self, missing: Missing) -> str:
        what = f"{blocks(missing.span)} of model {self.model}"
        if missing.local:
            it = "it" if missing.span.hi - missing.span.lo == 1 else "them"
            keeps = f"local_blocks = {self.local_blocks} keeps {what} on this node"
            return f"{keeps}, which does not hold {it}"
        if set(missing.objections) == {"tier"}:
            best = f"the best known is {missing.best_tier}"
            return f"{what} have no peer of tier ≥ {self.min_tier}; {best}"
        if not missing.objections:
            return f"nobody in reach holds {what}"
        total = sum(missing.objections.values())
        reasons = ", ".join(
            f"{count} {self._reason(objection, missing)}"
            for objection, count in sorted(missing.objections.items())
        )
        return f"{what} have no peer that can be used; of {total} known: {reasons}"

    def _reason(self, objection: Objection, missing: Missing) -> str:
        return {
            "excluded": "failed or left this request",
            "tier": f"below tier {self.min_tier} (the best is {missing.best_tier})",
            "exact": "without an exact worker, which a request with kwaai.exact = false can use",
            "dtype": f"without {self.dtype} on the wire",
            "room": f"without room for {self.tokens} tokens",
            "cut": f"with a unit across the border that local_blocks = {self.local_blocks} draws",
        }[objection]


@dataclass(frozen=True, slots=True)
class Unjoined:
    """Every block has somebody, but no chain of units ends where the next begins.

    ``border`` is the furthest that a chain from block 0 reaches.
    """

    model: str
    border: int

    def __str__(self) -> str:
        return (
            f"all blocks of model {self.model} are held, but in units that do not meet: "
            f"no chain from block 0 leads beyond block {self.border}"
        )


@dataclass(frozen=True, slots=True)
class Late:
    """The best of all routes is too slow: nanoseconds ``found``, at most ``asked``.

    For the first token, ``within`` is the limit per token that the best route had to keep.
    """

    model: str
    what: Literal["token", "first token"]
    found: int
    asked: int
    within: int | None = None

    def __str__(self) -> str:
        found, asked = _ms(self.found), _ms(self.asked)
        if self.what == "token":
            return f"the fastest route for {self.model} takes {found} per token, {asked} were asked"
        within = f" with at most {_ms(self.within)} per token" if self.within is not None else ""
        return (
            f"the earliest first token of any route for {self.model}{within} takes {found}, "
            f"{asked} were asked"
        )


@dataclass(frozen=True, slots=True)
class Undecided:
    """Too many routes are neither better nor worse than others: none was found in time."""

    model: str
    asked: int

    def __str__(self) -> str:
        return (
            f"no route for {self.model} with a first token within {_ms(self.asked)} was found "
            "among too many candidates; ask for more time"
        )


Refusal = Uncovered | Unjoined | Late | Undecided


def blocks(span: Span) -> str:
    """Blocks as people are told of them, with both ends included."""
    last = span.hi - 1
    return f"block {last}" if last == span.lo else f"blocks {span.lo}–{last}"


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.4g} ms"
