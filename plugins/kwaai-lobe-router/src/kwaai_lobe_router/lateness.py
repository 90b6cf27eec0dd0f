"""Who was slow of late: what a route over them costs beside what they say themselves."""

from __future__ import annotations

import trio

from kwaai_lobe_router.fields import MAX_NS
from kwaai_lobe_router.newest import Newest

FIRST_SECONDS, LONGEST_SECONDS = 10.0, 600.0
"""For how long it counts that a peer was slow: so long at first, and twice as long each time that
it is slow again soon after."""


class Lateness:
    """The steps of which peers were called slow, and by how much they were late."""

    def __init__(self) -> None:
        self._late = Newest[str, tuple[int, float, float]]()

    def note(self, peer: str, late: float) -> None:
        """A step of this peer is late by so many nanoseconds, at least."""
        now = trio.current_time()
        before, until, seconds = self._late.get(peer, (0, -LONGEST_SECONDS, 0.0))
        if now > until + seconds:
            before, seconds = 0, 0.0
        if now > until:  # else it is the same trouble
            seconds = min(max(2 * seconds, FIRST_SECONDS), LONGEST_SECONDS)
        self._late[peer] = max(before, min(int(late), MAX_NS)), now + seconds, seconds

    def of(self, peer: str) -> int:
        """By how many nanoseconds a step of this peer is late, as far as it counts still."""
        late, until, _ = self._late.get(peer, (0, 0.0, 0.0))
        return late if trio.current_time() <= until else 0
