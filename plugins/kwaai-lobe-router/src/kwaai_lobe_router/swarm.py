"""What is known of a swarm for one model, what a route has to satisfy, and what a plan is.

Times are whole nanoseconds: sums are exact, whatever the order of their terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kwaai_core import Hop, Span, Tier

LOCAL = "local"
"""The peer of this node's own hops."""

MAX_BLOCKS = 1000


@dataclass(frozen=True, slots=True)
class Unit:
    """Blocks that are computed together, and for how long: a lone row, and a row of a prefill."""

    span: Span
    step: int
    row: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody who holds units of the model; ``peer`` is :data:`LOCAL` for this node.

    ``units`` are in ascending order and do not overlap. ``link`` is the round trip to it, ``queue``
    how long a step waits for others; nanoseconds. A row takes ``row_bytes`` on the way there. It
    has room for ``room`` more tokens, and keeps that of ``reserved`` sessions for this node.
    """

    peer: str
    units: tuple[Unit, ...]
    link: int = 0
    row_bytes: int = 0
    queue: int = 0
    room: int = 1 << 62
    reserved: int = 0
    fingerprint: str = ""
    exact: bool = False
    dtypes: frozenset[str] = frozenset({"float32"})


@dataclass(frozen=True, slots=True)
class Swarm:
    """Everybody who might compute blocks of one model; peers are distinct.

    ``overhead`` is what a hop over a link costs besides all that is measured of its peer, and
    ``head`` what this node adds to each token; nanoseconds.
    """

    model: str
    blocks: int
    candidates: tuple[Candidate, ...]
    overhead: int = 0
    head: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a route has to satisfy.

    ``prompt`` tokens are computed before the first one comes, and ``tokens`` in all need room.
    ``max_latency`` bounds the predicted time per token, ``max_first_token`` that to the first;
    nanoseconds. ``exact`` asks for exact workers only, and if there is a route over those with this
    node's ``fingerprint`` alone, for one of these. ``salt`` decides between equals: two nodes with
    different ones do not both choose the same.
    """

    tokens: int = 0
    prompt: int = 1
    min_tier: Tier = "unknown"
    max_latency: int | None = None
    max_first_token: int | None = None
    local_blocks: int = 0
    exact: bool = False
    fingerprint: str = ""
    dtype: str = "float32"
    excluded: frozenset[str] = field(default_factory=frozenset)
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A route and what it is predicted to take, in nanoseconds: a token, and the first one.

    ``same_text``: all of it is exact and computes with the fingerprint that was wished for.
    ``shared`` are the spans that it has in common with the route that it is to back up.
    """

    hops: tuple[Hop, ...]
    latency: int
    first_token: int
    same_text: bool
    shared: tuple[Span, ...] = ()


TierOf = Callable[[str], Tier]


def nobody_is_known(peer: str) -> Tier:
    """The tier of every peer where no lobe judges them."""
    return "unknown"
