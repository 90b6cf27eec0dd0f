"""The API keys of a node: one file for each, in the folder ``keys`` of its state folder.

A key is ``kwaai_<name>_<64 hexadecimal digits>``. Its file has the SHA-256 of that and no more: 256
random bits cannot be guessed, so a hash that is slow on purpose, as passwords need one, would only
slow down who comes with a key. A node reads the file of the key that it is shown each time, so
commands and the node need not tell each other anything: what is created or revoked counts at once.

Where the folder is, keys are needed, also where it holds none. A file that is damaged lets nobody
in.
"""

import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from kwaai_core.config import ServerSettings
from kwaai_core.errors import ConfigError, InvalidKey, KeyDamaged, KwaaiError

FOLDER = "keys"
MAX_LIMIT = 60_000
"""The most that each limit of a key can be."""

_NAME = r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?"
_KEY = re.compile(rf"kwaai_({_NAME})_[0-9a-f]{{64}}")
_HASH = re.compile(r"[0-9a-f]{64}")
_SEEN_SECONDS = 60
_NEVER = 1 << 37  # seconds, beyond which there are no dates


@dataclass(frozen=True, slots=True)
class Key:
    """What a node keeps of a key; ``created`` and ``used`` are in seconds since 1970.

    ``requests_per_minute`` and ``concurrent`` limit it, None does not. ``used`` is when it was used
    last, to the minute, or None.
    """

    name: str
    sha256: str
    created: int
    requests_per_minute: int | None = None
    concurrent: int | None = None
    used: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(
                f"“{self.name}” cannot be the name of a key: it must be 1 to 32 of a-z, 0-9 and -"
            )
        if not _HASH.fullmatch(self.sha256):
            raise ValueError("sha256 is not 64 hexadecimal digits")
        if type(self.created) is not int or not 0 <= self.created < _NEVER:
            raise ValueError("created is no time")
        for limit in (self.requests_per_minute, self.concurrent):
            if limit is not None and not (type(limit) is int and 1 <= limit <= MAX_LIMIT):
                raise ValueError(f"a limit is not 1 to {MAX_LIMIT}")


class Keys:
    """The keys in a state folder; ``always`` needs one though there be no folder."""

    def __init__(
        self, state: Path, *, always: bool = False, now: Callable[[], float] = time.time
    ) -> None:
        self.folder = state / FOLDER
        self._needed = always
        self._now = now

    def needed(self) -> bool:
        """Whether whoever comes needs a key. What was needed once is, as long as this object is."""
        if not self._needed:
            try:
                self.folder.lstat()  # a link to what is gone is there too
                self._needed = True
            except FileNotFoundError:
                pass
            except OSError:  # which of the two it is cannot be seen
                self._needed = True
        return self._needed

    def find(self, shown: str) -> Key:
        """The key that somebody shows. Errors: :class:`InvalidKey`."""
        match = _KEY.fullmatch(shown)
        found = None
        with suppress(FileNotFoundError, KeyDamaged):
            found = self.read(match[1]) if match else None
        if found is None or not hmac.compare_digest(found.sha256, _hash(shown)):
            raise InvalidKey("this is no key of this node, or it was revoked")
        now = int(self._now())
        if found.used is None or now - found.used >= _SEEN_SECONDS:
            with suppress(OSError):  # a folder that cannot be written is no reason to keep out
                os.utime(self._file(found.name), (now, now))
        return found

    def read(self, name: str) -> Key:
        """One key. Errors: :class:`FileNotFoundError`, :class:`KeyDamaged`."""
        file = self._file(name)
        try:
            with file.open("rb") as opened:
                touched = int(os.fstat(opened.fileno()).st_mtime)
                key = Key(**json.loads(opened.read()))
            if key.name != name:
                raise ValueError(f"it is that of the key {key.name}")
            return replace(key, used=touched if touched > key.created else None)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise KeyDamaged(
                f"{file} is damaged, and nobody comes in with this key: {error}. Make another one: "
                f"kwaai keys revoke {name}, then kwaai keys create {name}"
            ) from None

    def names(self) -> list[str]:
        """The names of all keys, damaged ones too."""
        with _written(self.folder):
            return sorted(file.stem for file in self.folder.glob("[!.]*.json"))

    def create(
        self, name: str, requests_per_minute: int | None = None, concurrent: int | None = None
    ) -> tuple[Key, str]:
        """A new key, and the text of it, which is nowhere kept.

        Errors: :class:`ConfigError` for a name that cannot be one, or where nothing can be written;
        :class:`KwaaiError` where there is one of this name.
        """
        shown = f"kwaai_{name}_{secrets.token_hex(32)}"
        try:
            key = Key(name, _hash(shown), int(self._now()), requests_per_minute, concurrent)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        with _written(self.folder):
            for folder in (self.folder.parent, self.folder):  # a new state is as the node makes it
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(self.folder.parent)  # without the folder the port would be open again
            self._write(key)
        return key, shown

    def _write(self, key: Key) -> None:
        """Either the whole file is there under its name afterwards, or none."""
        fresh = self.folder / f".{key.name}.{secrets.token_hex(8)}"
        fields = {name: value for name, value in asdict(key).items() if name != "used"}
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                json.dump(fields, opened)
                opened.flush()
                os.utime(opened.fileno(), (key.created, key.created))
                os.fsync(opened.fileno())
            os.link(fresh, self._file(key.name))  # which does not replace another, as renaming does
        except FileExistsError:
            raise KwaaiError(f"there is a key “{key.name}” already: kwaai keys ls") from None
        finally:
            fresh.unlink(missing_ok=True)
        _sync(self.folder)

    def revoke(self, name: str) -> None:
        """Let nobody in with this key any more. Errors: :class:`KwaaiError` where there is none."""
        if name not in (names := self.names()):
            there = ", ".join(names) or "none"
            raise KwaaiError(f"there is no key “{name}”; there are: {there}")
        with _written(self.folder):
            self._file(name).unlink(missing_ok=True)
            _sync(self.folder)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def check_public(settings: ServerSettings, state: Path) -> None:
    """Errors: :class:`ConfigError` where other machines reach the port and there is no key."""
    if not settings.loopback and not Keys(state).names():
        raise ConfigError(
            f"[server] host = “{settings.host}” lets other machines in, and there is no API key "
            "yet: make one first, kwaai keys create NAME, or listen on 127.0.0.1"
        )


def _hash(shown: str) -> str:
    return sha256(shown.encode()).hexdigest()


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"the folder of keys {folder} cannot be used: {why}") from None
