"""What a node tells of a model's swarm, for JSON: who holds what, and where an answer goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from kwaai_core import Hop, ModelCard, Span
from kwaai_lobe_router.planning import backup, plan
from kwaai_lobe_router.swarm import LOCAL, Candidate, Plan, Swarm, TierOf, Wish

Document = dict[str, Any]


def status(card: ModelCard, swarm: Swarm) -> Document:
    """Coverage of every block, who holds it, and what was measured of them."""
    holders = _holders(swarm)
    return {
        "model": card.id,
        "digest": card.digest,
        "blocks": swarm.blocks,
        "holders": holders,
        "missing": [asdict(span) for span in gaps(swarm)],
        "peers": [_peer(candidate) for candidate in swarm.candidates],
    }


def planned(card: ModelCard, swarm: Swarm, wish: Wish, tier_of: TierOf) -> Document:
    """The route that an answer would take now, and the one that stands by; or why there is none.
    The time to the first token is that after a prompt of as many tokens as the wish says."""
    found = plan(swarm, wish, tier_of)
    if not isinstance(found, Plan):
        return status(card, swarm) | {"route": None, "refused": str(found)}
    spare = backup(swarm, wish, found, tier_of)
    return status(card, swarm) | {
        "route": _hops(found.hops),
        "latency_ms": found.latency / 1e6,
        "first_token_ms": found.first_token / 1e6,
        "prompt_tokens": wish.prompt,
        "same_text_guaranteed": found.same_text,
        "backup": _hops(spare.hops) if spare else None,
        "backup_latency_ms": spare.latency / 1e6 if spare else None,
    }


def alone(card: ModelCard, swarm: Swarm) -> Document:
    """As :func:`planned`, of a model that this node runs whole, for which it asks nobody."""
    return status(card, swarm) | {
        "route": _hops([Hop(LOCAL, Span(0, card.blocks))]),
        "backup": None,
    }


def complete(found: Document, *, whole: bool, contradictions: Mapping[str, str]) -> Document:
    """And whether this node runs the model whole, and who says otherwise than it has signed."""
    return found | {"whole": whole, "contradictions": dict(contradictions)}


def _holders(swarm: Swarm) -> list[int]:
    """How many hold each block."""
    holders = [0] * swarm.blocks
    for candidate in swarm.candidates:
        for unit in candidate.units:
            for block in range(unit.span.lo, min(unit.span.hi, swarm.blocks)):
                holders[block] += 1
    return holders


def gaps(swarm: Swarm) -> list[Span]:
    """The blocks that nobody holds."""
    holders, gaps = _holders(swarm), list[Span]()
    for held, run in groupby(range(len(holders)), lambda block: holders[block] > 0):
        found = list(run)
        if not held:
            gaps.append(Span(found[0], found[-1] + 1))
    return gaps


def _hops(hops: Sequence[Hop]) -> list[Document]:
    return [{"peer": hop.peer, "lo": hop.span.lo, "hi": hop.span.hi} for hop in hops]


def _peer(candidate: Candidate) -> Document:
    return {
        "peer": candidate.peer,
        "units": [
            asdict(unit.span) | {"step_ms": unit.step / 1e6, "row_ms": unit.row / 1e6}
            for unit in candidate.units
        ],
        "rtt_ms": candidate.link / 1e6,
        "queue_ms": candidate.queue / 1e6,
        "room": candidate.room,
        "reserved": candidate.reserved,
        "exact": candidate.exact,
        "fingerprint": candidate.fingerprint,
    }
