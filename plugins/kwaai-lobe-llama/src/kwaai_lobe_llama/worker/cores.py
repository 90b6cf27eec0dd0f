"""The cores of a worker: the threads of a computation are bound to one each, the others roam.

OpenMP binds the thread that loads it, see ``OMP_PROC_BIND``, and threads that this one starts would
stay on its core with it, where they would hold up every computation.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

CORES = frozenset(os.sched_getaffinity(0))
"""What this process may use; imported before llama.cpp, and OpenMP with it, is loaded."""


def start_thread(work: Callable[[], object]) -> None:
    """Do work in a thread of its own, on whichever core is free, as long as the process lives."""
    threading.Thread(target=_roam, args=(work,), daemon=True).start()


def _roam(work: Callable[[], object]) -> None:
    with suppress(OSError):  # these cores were taken from it meanwhile
        os.sched_setaffinity(0, CORES)
    work()
