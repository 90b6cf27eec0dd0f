"""Sequence numbers of this node's statements, which never restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import trio

from kwaai_lobe_libp2p import files

_log = logging.getLogger(__name__)


class Sequence:
    """Numbers that grow, over every restart; the last one is in a file before it is used.

    They are never behind the clock in milliseconds, so that a node that lost its folder goes on
    above what it signed before. Where the clock was ahead once, the file keeps them growing.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._lock = trio.Lock()
        self._last = _number(files.read(path, 64))

    async def next(self, above: int = 0) -> int:
        """A number higher than all before it, and than ``above``. Errors: OSError."""
        async with self._lock:
            number = max(self._last + 1, above + 1, int(self._now() * 1000))
            await trio.to_thread.run_sync(files.replace, self._path, b"%d\n" % number)
            self._last = number
            return number


def _number(data: bytes | None) -> int:
    if data is None:
        return 0
    try:
        return int(data)
    except ValueError:
        _log.warning("the file of sequence numbers is malformed; going on from the clock")
        return 0
