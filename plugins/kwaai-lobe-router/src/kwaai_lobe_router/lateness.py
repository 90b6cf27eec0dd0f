"""Who was slow of late: what a route over them costs beside what they say themselves."""

from __future__ import annotations

import trio

from kwaai_lobe_router.fields import MAX_NS
from kwaai_lobe_router.newest import Newest

FIRST_SECONDS, LONGEST_SECONDS = 10.0, 600.0
"""For how long it counts that a peer was slow: so long at first, and twice as long each time that
it is slow again soon after."""


class Lateness:
    """The steps of which peers were called slow, and how long they took."""

    def __init__(self) -> None:
        self._late = Newest[str, tuple[int, float, float]]()

    def note(self, peer: str, took: float) -> None:
        """A step of this peer was called slow when it had taken so many nanoseconds."""
        now = trio.current_time()
        before, until, seconds = self._late.get(peer, (0, -LONGEST_SECONDS, 0.0))
        if now > until + seconds:
            before, seconds = 0, 0.0
        if now > until:  # else it is the same trouble
            seconds = min(max(2 * seconds, FIRST_SECONDS), LONGEST_SECONDS)
        self._late[peer] = max(before, min(int(took), MAX_NS)), now + seconds, seconds

    def of(self, peer: str) -> int:
        """How many nanoseconds its slow step had taken, for as long as that counts; else 0."""
        took, until, _ = self._late.get(peer, (0, 0.0, 0.0))
        return took if trio.current_time() <= until else 0
