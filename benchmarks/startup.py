"""What starting costs: the command line's help, and a node until it is ready."""

import subprocess
import time
from collections.abc import Iterator

from benchmarks.api import KWAAI, Node
from benchmarks.measure import CONTEXT


def help_times(rounds: int) -> list[float]:
    """Seconds of ``kwaai --help``, run after run; the first, with cold caches, is left out."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run([KWAAI, "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    once()
    return [once() for _ in range(rounds)]


def ready_times(rounds: int) -> Iterator[float]:
    """Seconds from ``kwaai run`` to 200 at ``/ready``, with the bundled model."""
    for _ in range(rounds):
        with Node(None, context=CONTEXT) as node:
            yield node.ready_s
