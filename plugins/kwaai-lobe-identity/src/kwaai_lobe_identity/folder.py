"""Files that survive: written as a whole or not at all, readable by their owner alone."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kwaai_core import ConfigError, RequestError


class Folder:
    """The files of the lobe. Readers need no lock; whoever changes what was read holds one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None where there is none. Errors: :class:`ConfigError`."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path / name} cannot be read: {error.strerror}") from None

    def mode(self, name: str) -> int:
        """Who may do what with a file. Errors: :class:`ConfigError`."""
        try:
            return stat.S_IMODE((self.path / name).stat().st_mode)
        except OSError as error:
            raise ConfigError(f"{self.path / name} cannot be read: {error.strerror}") from None

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """What changes whenever the file does."""
        try:
            facts = (self.path / name).stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_ino, facts.st_size

    def create(self, name: str, data: bytes) -> None:
        """Make a file that is not there yet. Errors: :class:`RequestError` where it is."""
        self._place(name, data, replacing=False)

    def replace(self, name: str, data: bytes) -> None:
        """Make a file, or put another in its place."""
        self._place(name, data, replacing=True)

    def _place(self, name: str, data: bytes, *, replacing: bool) -> None:
        path, part = self.path / name, self.path / f".{name}.part"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(part, data)
            if replacing:
                part.replace(path)
            else:
                _link(part, path)
            _sync(self.path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
        finally:
            with suppress(OSError):  # it has its new name, or there is nothing to remove
                part.unlink()

    @contextmanager
    def locked(
        self, name: str = "lock", *, shared: bool = False, wait: bool = True
    ) -> Iterator[None]:
        """Hold a lock, of this name, against other processes and threads.

        Errors: BlockingIOError where it is held and this may not ``wait``.
        """
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(lock, kind)
            yield
        finally:
            os.close(lock)


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # of a process that was killed
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(file, "wb") as writing:
        writing.write(data)
        writing.flush()
        os.fsync(file)


def _link(part: Path, path: Path) -> None:
    """Give a file its name, which unlike a renaming never takes another file's."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise RequestError(f"{path} is there already, and is never overwritten") from None


def _sync(folder: Path) -> None:
    """Make the name of a file as durable as its bytes are."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
