"""Round trips to peers, measured by this node; and what its own workers measure, to be told."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import trio

from kwaai_core import KwaaiError, ModelCard, Transport
from kwaai_core.span.roles import SpanFacts, SpanHost, SpanLoad
from kwaai_lobe_router.facts import MAX_CLAIMS, Batch, FastFacts, SlowFacts
from kwaai_lobe_router.fields import MAX_NS
from kwaai_lobe_router.newest import Newest

FRESH_SECONDS = 15.0
PING_SECONDS = 2.0


class RoundTrips:
    """Round trips in nanoseconds, by peer. ``nursery`` is for measuring in the background."""

    def __init__(self, transport: Transport, nursery: trio.Nursery) -> None:
        self._transport = transport
        self._nursery = nursery
        self._known = Newest[str, tuple[int, float]]()

    def all(self) -> dict[str, int]:
        """What is known, as it is told to others: the newest of them."""
        newest = sorted(self._known.items(), key=lambda item: -item[1][1])[:MAX_CLAIMS]
        return {peer: rtt for peer, (rtt, _) in newest}

    async def of(self, peer: str) -> int:
        """The round trip to a peer, measured now if that was long ago.

        Errors: those of :meth:`kwaai_core.Transport.ping`.
        """
        rtt, at = self._known.get(peer, (0, -FRESH_SECONDS))
        now = trio.current_time()
        if now - at < FRESH_SECONDS and rtt:
            return rtt
        seconds = await self._transport.ping(peer, seconds=PING_SECONDS)
        rtt = nanoseconds(seconds)
        self._known[peer] = rtt, trio.current_time()
        return rtt

    def measure_soon(self, peer: str) -> None:
        """Measure for the next time that somebody asks."""
        self._nursery.start_soon(self._measure, peer)

    async def _measure(self, peer: str) -> None:
        with suppress(KwaaiError):
            await self.of(peer)


def nanoseconds(seconds: float) -> int:
    """As announcements have it: at least one."""
    return min(max(int(seconds * 1e9), 1), MAX_NS)


def slow_facts(card: ModelCard, host: SpanHost) -> SlowFacts:
    """What a node announces of the units that it holds."""
    facts: SpanFacts = host.facts
    return SlowFacts(
        card.digest,
        card.architecture or "unknown",
        facts.blocks,
        facts.width,
        tuple(host.units),
        facts.fingerprint,
        facts.exact,
        facts.replay_rows,
        facts.chunk,
        facts.cells,
    )


def fast_facts(
    digest: str,
    host: SpanHost,
    links: Mapping[str, int],
    kept: Mapping[str, int],
    peer: str = "",
) -> FastFacts | None:
    """How busy and fast its units are; None where that is not measured, as after a crash.

    ``kept`` is for how many sessions of which peers room is kept: ``peer`` has its own part of it.
    """
    load: SpanLoad = host.load()
    if not len(host.units) == len(load.step_seconds) == len(load.row_seconds):
        return None
    steps = tuple(map(nanoseconds, load.step_seconds))
    return FastFacts(
        digest,
        load.sessions,
        load.waiting,
        max(0, load.free - sum(kept.values()) + kept.get(peer, 0)) * host.facts.cells,
        (Batch(1, steps),),
        tuple(map(nanoseconds, load.row_seconds)),
        links,
        kept.get(peer, 0),
    )
