"""Workers that all want every core of a machine compute in turn, not at the same time.

The threads of a computation wait for one another some hundred times in each call. Two calls on the
same cores then wait for the scheduler at every one of these places, and take ten times as long
together as one after the other. So whoever is going to use more than half of its cores holds a
lock meanwhile, which those with the same cores share: a file of the user's, outside of all state
folders.

A lock is no reason to stand still. Who is stopped with it in hand is passed over, and nobody waits
for very long.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Self

from platformdirs import user_runtime_path

from kwaai_lobe_llama.plan import takes_turns
from kwaai_lobe_llama.worker.cores import start_thread

PATIENCE_SECONDS = 5.0
"""How long to wait for one who computes, at the most."""

LOOK_SECONDS = 0.05
"""How often to look whether it does."""

_ABOUT_TO_END = 0.0002
"""Who sends a step on is done with computing, and gives its turn up a moment later."""


def lock_of(cores: AbstractSet[int], threads: int) -> int | None:
    """An open lock for those cores; None where computing at once does no harm, or it cannot be had.

    It belongs to the caller, for as long as the process lives.
    """
    if not takes_turns(len(cores), threads):
        return None
    try:
        folder = user_runtime_path("kwaai", ensure_exists=True)
        return _opened(folder / f"cores-{'-'.join(map(str, sorted(cores)))[:200]}")
    except OSError:
        return None


def _opened(path: Path) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(path, flags, 0o600)
    found = os.fstat(lock)
    if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
        return lock
    os.close(lock)  # somebody else's, in a folder that all may write to
    return None


class Turns:
    """A context in which to compute; one thread enters it, and not twice at once. ``waited``: the
    turn was somebody else's before."""

    def __init__(self, lock: int | None) -> None:
        self._lock = lock
        self._mutex = threading.Lock()
        self._mine = threading.Event()
        self._asked = threading.Semaphore(0)
        self._wanted = self._asking = self._late = False
        self.waited = False
        if lock is not None:
            start_thread(lambda: self._wait_for(lock))

    @property
    def held(self) -> bool:
        """Whether others cannot compute now."""
        return self._mine.is_set()

    def __enter__(self) -> Self:
        self.waited = False
        if self._lock is not None and not self._had(self._lock):
            self.waited = True
            self._late = not self._awaited(self._lock)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._mutex:
            self._wanted = False
            if self._lock is not None and self._mine.is_set():
                self._mine.clear()
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _had(self, lock: int) -> bool:
        """Take it if it is to be had at once; otherwise it is waited for."""
        deadline = time.monotonic() + _ABOUT_TO_END
        with self._mutex:
            self._wanted = True
            while not self._asking:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        self._asking = True
                        self._asked.release()
                else:
                    self._take(lock)
                    self._late = False
                    return True
        return self._mine.is_set()

    def _awaited(self, lock: int) -> bool:
        """Wait for it, unless it was waited for in vain before, and still is."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._mine.wait(0 if self._late else LOOK_SECONDS):
            if self._late or time.monotonic() > deadline or _stopped(lock):
                return False
        return True

    def _wait_for(self, lock: int) -> None:
        """In a thread of its own, since waiting for a lock cannot be given up."""
        while self._asked.acquire():
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._mutex:
                self._asking = False
                if self._wanted:
                    self._take(lock)
                else:  # nobody computes here any more
                    fcntl.flock(lock, fcntl.LOCK_UN)

    def _take(self, lock: int) -> None:
        os.pwrite(lock, b"%-20d" % os.getpid(), 0)
        self._mine.set()


def _stopped(lock: int) -> bool:
    """Whether who holds a lock is stopped, see proc_pid_stat(5)."""
    try:
        holder = int(os.pread(lock, 20, 0))
        state = Path(f"/proc/{holder}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, ValueError, IndexError):
        return False
    return state in (b"T", b"t")
