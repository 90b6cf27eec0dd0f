"""How a worker waits for the next step: asleep, or, between the steps of an answer, awake.

To be woken takes the kernel and, in a virtual machine, its host some hundredths of a millisecond,
and caches have gone cold meanwhile: a few per cent of a step of a small model, at each hop. Who
asks again and again instead loses nothing, if nobody else wants the core; on a shared one it takes
from another worker just the time that this one waits for. So a worker stays awake only where it
has seen, while it slept, that a core was left over, and while it was awake, that it had one to
itself; and only for a short time after a step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet

AWAKE_SECONDS = 0.05
"""After the last step, until a worker that stays awake goes to sleep."""

LEFT_OVER = 0.6
"""The share of a core that must have been left over."""

TO_ITSELF = 0.7
"""The share of the time awake that one must have had a core."""

_WINDOW = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")


class Waiting:
    """Decides how long one may sleep. ``others`` gives the seconds of processor time that all other
    processes have taken of ``cores`` cores so far, None where nobody can tell."""

    def __init__(
        self,
        others: Callable[[], float | None],
        cores: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._others = others
        self._cores = cores
        self._now = clock
        self._worked = self._since = -AWAKE_SECONDS
        self._taken: float | None = None
        self._waited = self._ran = 0.0
        self._awake = False

    def worked(self) -> None:
        """A step was computed."""
        now = self._now()
        if now - self._worked > AWAKE_SECONDS:
            self._begin(now)  # what was before says nothing of the steps to come
        self._worked = now

    def waited(self, seconds: float, ran: float | None = None) -> None:
        """There was nothing to do for so long, after a step; one who was awake had a core for
        ``ran`` seconds of it, in whose place others might have computed."""
        self._waited += seconds
        self._ran += seconds if ran is None else ran

    def asleep(self, longest: float) -> float:
        """For how many seconds to sleep until something comes: 0 to stay awake."""
        now = self._now()
        if now - self._worked > AWAKE_SECONDS:
            return longest
        if now - self._since > _WINDOW and self._waited > _WINDOW / 10:
            self._judge(now)
        return 0.0 if self._awake else longest

    def _begin(self, now: float) -> None:
        self._since, self._taken, self._waited, self._ran = now, self._others(), 0.0, 0.0

    def _judge(self, now: float) -> None:
        before, waited, ran = self._taken, self._waited, self._ran
        self._begin(now)
        if self._awake and ran < TO_ITSELF * waited:
            self._awake = False
            return
        if before is None or self._taken is None:
            self._awake = False
            return
        # while one computes oneself others get little, so all that they took is counted as if
        # they had taken it while one waited
        self._awake = self._cores - (self._taken - before) / waited >= LEFT_OVER


def others(cores: AbstractSet[int]) -> Callable[[], float | None]:
    """What ``others`` of :class:`Waiting` asks for, of these cores, by Linux's ``/proc/stat``."""
    names = {f"cpu{core}".encode() for core in cores}

    def taken() -> float | None:
        try:
            with open("/proc/stat", "rb") as file:
                lines = file.read().splitlines()
            busy = sum(_busy(line) for line in lines if line.split(None, 1)[0] in names)
        except (OSError, ValueError, IndexError):
            return None
        return busy / _TICKS - time.process_time()

    return taken


def _busy(line: bytes) -> int:
    """Ticks that were neither idle nor waiting for a disk, of a line of ``/proc/stat``, see
    proc_stat(5); guests are counted in user and nice already."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, line.split()[1:])
    return user + nice + system + irq + softirq + steal
