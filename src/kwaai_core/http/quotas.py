"""What each API key has used of its limits, for as long as the node runs."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from kwaai_core.errors import Busy
from kwaai_core.http.keys import Key

_MINUTE = 60.0


@dataclass(slots=True)
class _Use:
    """When the requests of the last minute came, and how many are being answered."""

    times: deque[float] = field(default_factory=deque)
    running: int = 0


class Quotas:
    """Counts by the name of a key, so there are no more counts than there were keys."""

    def __init__(self) -> None:
        self._used: dict[str, _Use] = {}

    @contextmanager
    def request(self, key: Key) -> Iterator[None]:
        """One request of a key, until the block is left.

        A request that is refused counts for nothing. Errors: :class:`Busy` over a limit of the key.
        """
        use = self._used.setdefault(key.name, _Use())
        now = trio.current_time()
        while use.times and use.times[0] <= now - _MINUTE:
            use.times.popleft()
        if key.concurrent is not None and use.running >= key.concurrent:
            raise _over(key, key.concurrent, "at a time", 1.0)
        if (most := key.requests_per_minute) is not None:
            if len(use.times) >= most:
                raise _over(key, most, "a minute", use.times[-most] + _MINUTE - now)
            use.times.append(now)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1


def _over(key: Key, most: int, when: str, seconds: float) -> Busy:
    limit = f"{most} request{'s' * (most > 1)} {when}"
    return Busy(f"the key “{key.name}” may make {limit}: try again later", retry_after=seconds)
