"""How much each peer may ask for: token buckets, for a bounded number of peers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class Rates:
    """A bucket for each peer: ``burst`` tokens at first, ``rate`` more a second.

    ``clock`` is monotonic, in seconds. Of more than ``peers`` peers the one that was idle for
    longest is forgotten, and so starts with a full bucket again.
    """

    def __init__(
        self, rate: float, burst: float, *, clock: Callable[[], float], peers: int = 4096
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._peers = peers
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str, tokens: float = 1.0) -> bool:
        """Take tokens from a peer's bucket; False, and none taken, where it has not as many."""
        left = self._refilled(peer)
        enough = left >= tokens
        self._keep(peer, left - tokens if enough else left)
        return enough

    def overdraw(self, peer: str, tokens: float) -> float:
        """Take tokens in any case; returns for how many seconds to wait until they are there."""
        left = self._refilled(peer) - tokens
        self._keep(peer, left)
        return max(0.0, -left / self._rate)

    def _refilled(self, peer: str) -> float:
        left, at = self._buckets.get(peer, (self._burst, self._clock()))
        return min(self._burst, left + (self._clock() - at) * self._rate)

    def _keep(self, peer: str, left: float) -> None:
        self._buckets[peer] = left, self._clock()
        self._buckets.move_to_end(peer)
        if len(self._buckets) > self._peers:
            self._buckets.popitem(last=False)
