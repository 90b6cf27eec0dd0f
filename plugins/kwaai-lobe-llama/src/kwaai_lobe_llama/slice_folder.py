"""The folder of slices: those in use are locked, and of the others the oldest make room.

A lock ends with its process, so a slice is known to be in use whoever uses it. When one was used
last is its time of access, set here, since many disks are told not to keep it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from kwaai_core import ModelFileError
from kwaai_core.gguf import Stamp
from kwaai_lobe_llama.slice_digest import digest_file, is_as_written
from kwaai_lobe_llama.slicing import is_current

log = logging.getLogger(__name__)

_TRIES = 3


class _Slice(NamedTuple):
    """``used`` is when, in nanoseconds."""

    used: int
    path: Path
    size: int


class SliceFolder:
    """Slices in ``path``, all together of at most ``most`` bytes but for those in use."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self._compared: set[tuple[Path, Stamp]] = set()

    @contextmanager
    def using(self, make: Callable[[Path], Path]) -> Iterator[Path]:
        """The slice that ``make`` makes in the folder, or finds there: nobody removes it while the
        context is open. One that is used for the first time is read and compared with its digest,
        and made again where it has another. Errors: those of ``make``; :class:`ModelFileError`
        where what it makes does not stay as it was written."""
        path, file = self._locked(make)
        with file:
            self.make_room()
            yield path

    def _locked(self, make: Callable[[Path], Path]) -> tuple[Path, BufferedReader]:
        changed = 0
        while changed < _TRIES:
            path = make(self.path)
            with suppress(FileNotFoundError), ExitStack() as stack:
                file = stack.enter_context(path.open("rb"))
                fcntl.flock(file, fcntl.LOCK_SH)
                # who makes room may have removed it before it was locked
                if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    continue
                if self._is_as_written(path, file):
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                    stack.pop_all()
                    return path, file
                changed += 1
                log.warning("%s is not what was written there, and is made again", path)
                path.unlink()
        raise ModelFileError(
            f"{path} was written {_TRIES} times and is not what was written: look at that disk"
        )

    def _is_as_written(self, path: Path, file: BufferedReader) -> bool:
        """Compared once by this process, since a gigabyte takes most of a second."""
        key = path, Stamp.of(os.fstat(file.fileno()))
        if key not in self._compared and is_as_written(path, file):
            self._compared.add(key)
        return key in self._compared

    def size(self) -> int:
        """Bytes of all slices."""
        return sum(slice_.size for slice_ in self._slices())

    def make_room(self) -> None:
        """Remove what no version of this software uses any more, and then those that were not used
        for the longest time, until the others fit."""
        found = sorted(self._slices(), key=lambda slice_: (is_current(slice_.path), slice_))
        over, removed = sum(slice_.size for slice_ in found) - self._most, 0
        for slice_ in found:
            if (over > 0 or not is_current(slice_.path)) and _removed(slice_.path):
                over, removed = over - slice_.size, removed + slice_.size
        if removed:
            log.info("removed slices of models that nothing uses: %d MiB", -(-removed >> 20))

    def _slices(self) -> Iterator[_Slice]:
        for path in self.path.glob("*.gguf"):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield _Slice(found.st_atime_ns, path, found.st_size)


def _removed(path: Path) -> bool:
    """Whether a slice is gone; one in use stays."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            digest_file(path).unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError as error:
        log.debug("%s stays: %s", path, error)
        return False
    return True
