"""From what a peer announces, and what this node has measured of it, to a candidate for a plan."""

from kwaai_lobe_router.facts import FastFacts, SlowFacts
from kwaai_lobe_router.fields import MAX_NS
from kwaai_lobe_router.swarm import Candidate, Unit

FLOAT32_BYTES = 4


def candidate(peer: str, slow: SlowFacts, fast: FastFacts, *, rtt: int, me: str) -> Candidate:
    """A peer as a plan sees it, ``rtt`` nanoseconds away as this node, ``me``, has measured it.

    Of the two ends' word on the link the larger counts. A session more makes its batches one row
    larger; the steps that wait there go before it, in batches as large as any that it told of.
    """
    steps = fast.batch(fast.sessions + 1).steps
    return Candidate(
        peer,
        tuple(map(Unit, slow.units, steps, fast.row)),
        link=max(rtt, fast.links.get(me, 0)),
        row_bytes=slow.width * FLOAT32_BYTES,
        queue=_queue(fast),
        room=min(fast.room, slow.cells),
        reserved=fast.reserved,
        fingerprint=slow.fingerprint,
        exact=slow.exact,
        dtypes=slow.dtypes,
    )


def _queue(fast: FastFacts) -> int:
    largest = fast.batches[-1]
    calls = -(-fast.waiting // largest.rows)
    return min(calls * sum(largest.steps), MAX_NS)
