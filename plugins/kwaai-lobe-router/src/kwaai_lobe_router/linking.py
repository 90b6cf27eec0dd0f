"""Links to the hosts of a plan, for one answer; one that is not made soon holds up nobody."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from kwaai_core import KwaaiError
from kwaai_core.span.hop import Place
from kwaai_lobe_router.gateways import Gateway
from kwaai_lobe_router.knowing import Neighbourhood
from kwaai_lobe_router.leaving import LOST_SECONDS, Left
from kwaai_lobe_router.swarm import Plan

log = logging.getLogger(__name__)

LINK_SECONDS, _LINK_TRIPS = 1.0, 40
"""For how long a link may be opened before the session goes by others, if there are any: at least
so long, and four times the ten round trips that it takes. It is opened further meanwhile."""

UNREACHED_SECONDS, LATE_SECONDS = 1.0, 0.25
"""For how long a session does not go to a peer to which no link could be opened, and that did not
say until when; and to one whose link is still being opened."""


class Linking:
    """Who cannot be linked to is noted in ``left``. ``opening`` are the peers of the last plan
    whose links take long, and may be there yet; ``unlinked`` are all of it that have none."""

    def __init__(self, gateway: Gateway, others: Neighbourhood | None, left: Left) -> None:
        self.opening: set[str] = set()
        self.unlinked: set[str] = set()
        self._gateway = gateway
        self._others = others
        self._left = left

    async def places(self, found: Plan) -> Sequence[Place] | None:
        """A plan with links; None where one could not be opened, or not soon: its peer is then left
        out for a while."""
        self.opening.clear()
        numbers = dict[str, int]()
        peers = {hop.peer for hop in found.hops}
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self._link, peer, numbers)
        self.unlinked = peers - numbers.keys()
        if self.unlinked:
            return None
        return [Place(numbers[hop.peer], hop.span) for hop in found.hops]

    def failed(self) -> str:
        """What kept the last plan from being used."""
        return f"no link to {', '.join(sorted(self.unlinked))} was opened"

    async def _link(self, peer: str, numbers: dict[str, int]) -> None:
        with trio.move_on_after(self._seconds(peer)) as scope:
            try:
                numbers[peer] = await self._gateway.link(peer)
            except KwaaiError as error:
                log.debug("%s cannot be used: %s", peer, error)
                pause = min(error.retry_after or UNREACHED_SECONDS, LOST_SECONDS)
                self._left.exclude(peer, trio.current_time() + pause)
        if scope.cancelled_caught:
            self.opening.add(peer)
            self._left.exclude(peer, trio.current_time() + LATE_SECONDS)

    def _seconds(self, peer: str) -> float:
        known = self._others.known.get(peer) if self._others is not None else None
        return max(LINK_SECONDS, _LINK_TRIPS * known.rtt / 1e9 if known is not None else 0.0)
