"""The keys of an identity over time: one in use, one that will follow, those that were given up.

``key-0.jwk``, ``key-1.jwk`` and so on are made once and never changed. ``history.json`` has the
succession of each up to the one in use; replacing it is the moment of a rotation. The key that
follows may be kept elsewhere until then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kwaai_core import ConfigError, NotVerified, RequestError
from kwaai_lobe_identity.documents import loaded, parsed, parsing, written
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.keyfile import KeyFile, open_key_file, read_key_file
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.succession import (
    MAX_GENERATIONS,
    Lineage,
    Told,
    commit,
    digest_of,
    rotate,
    told,
)

HISTORY = "history.json"
SHOWN = MAX_GENERATIONS + 1
"""How many successions, the last ones, an identity shows of itself."""
IN_USE = "in-use"
"""The lock that a running node shares, and a rotation must have alone."""

Passphrase = Callable[[], bytes | None]
"""How to get at the passphrase, asked only where it is needed; None where there is none."""


@dataclass(frozen=True, slots=True)
class _History:
    successions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generations:
    """The identity in a folder, as far as it can be known without a passphrase."""

    folder: Folder
    file: KeyFile
    history: tuple[Told, ...]

    @property
    def did(self) -> str:
        return self.file.did

    @property
    def names(self) -> tuple[str, ...]:
        """The DID now, and those before it, newest first."""
        return Lineage(self.history).names(self.did)

    @property
    def path(self) -> Path:
        """The file of the key in use."""
        return self.folder.path / _name(len(self.history) - 1)

    @property
    def next_path(self) -> Path:
        """The file of the key that will follow."""
        return self.folder.path / _name(len(self.history))

    def key(self, passphrase: Passphrase) -> Key:
        """The key in use. Errors: :class:`ConfigError`."""
        return open_key_file(self.path, self.file, passphrase() if self.file.locked else None)


def load(folder: Folder, passphrase: Passphrase) -> Generations:
    """The identity in a folder, made there if there is none. Errors: :class:`ConfigError`."""
    found = find(folder)
    if found is None:
        with folder.locked():
            found = find(folder) or _make(folder, passphrase)
    return found


def find(folder: Folder) -> Generations | None:
    """The identity in a folder, None where none was made yet. Errors: :class:`ConfigError`."""
    content = folder.read(HISTORY)
    if content is None:
        return None
    path = folder.path / HISTORY
    try:
        with parsing("the history"):
            history = [told(jws) for jws in parsed(_History, loaded(content)).successions]
            dids = [one.did for one in history]
            if not dids or Lineage(history).names(dids[-1])[::-1] != tuple(dids[-SHOWN:]):
                raise ValueError("its keys do not follow one another")
            if history[-1].says.next:
                raise ValueError("the key in use has been given up")
    except NotVerified as error:
        raise ConfigError(f"{path} cannot be used: {error.message}: restore it") from None
    name = _name(len(history) - 1)
    file = read_key_file(folder, name)
    if file is None:
        raise ConfigError(f"{folder.path / name}, the key in use, is gone: restore it")
    if file.did != dids[-1]:
        raise ConfigError(f"{folder.path / name} is the key {file.did}, and should be {dids[-1]}")
    return Generations(folder, file, tuple(history))


def _make(folder: Folder, passphrase: Passphrase) -> Generations:
    """A first key and its successor; what a process that was killed had made already is used."""
    if (folder.path / _name(2)).exists():
        raise ConfigError(f"{folder.path / HISTORY} is gone, and these keys have one: restore it")
    first, second = _made(folder, 0, passphrase), _made(folder, 1, passphrase)
    key = open_key_file(folder.path / _name(0), first, passphrase())
    commitment = commit(key, second.did, "")
    folder.replace(HISTORY, written(_History((commitment,))))
    return Generations(folder, first, (told(commitment),))


def _made(folder: Folder, number: int, passphrase: Passphrase) -> KeyFile:
    file = read_key_file(folder, _name(number))
    if file is None:
        file = KeyFile.of(Key.generate(), passphrase())
        folder.create(_name(number), file.content)
    return file


def _name(number: int) -> str:
    return f"key-{number}.jwk"


def rotated(folder: Folder, passphrase: Passphrase, now: int) -> Generations:
    """Give the key in use up for the one that was committed to, and commit to another.

    Errors: :class:`RequestError` while a node uses the key; :class:`ConfigError`.
    """
    try:
        with folder.locked(IN_USE, wait=False):
            load(folder, passphrase)
            with folder.locked():
                return _rotated(folder, passphrase, now)
    except BlockingIOError:
        raise RequestError("a node that runs here uses the key: stop it first") from None


def _rotated(folder: Folder, passphrase: Passphrase, now: int) -> Generations:
    found = find(folder)
    if found is None:
        raise ConfigError(f"{folder.path} has no identity")
    number, own = len(found.history), found.history[-1].says
    following = read_key_file(folder, _name(number))
    if following is None:
        raise ConfigError(f"{found.next_path}, the next key, is not there: put it back first")
    if digest_of(following.did) != own.digest:
        raise ConfigError(f"{found.next_path} is not the key that this identity has committed to")
    after = _made(folder, number + 1, passphrase)
    key = found.key(passphrase)
    next_key = open_key_file(found.next_path, following, passphrase() if following.locked else None)
    given_up = rotate(key, next_key.did, own.previous, now)
    commitment = commit(next_key, after.did, key.did)
    history = (*found.history[:-1], told(given_up), told(commitment))
    folder.replace(HISTORY, written(_History(tuple(one.jws for one in history))))
    return Generations(folder, following, history)


def exported(found: Generations) -> bytes:
    """All files of the identity as one document, keys as they lie there: locked or not."""
    names = [HISTORY, *(_name(number) for number in range(len(found.history) + 1))]
    files = {name: content for name in names if (content := found.folder.read(name)) is not None}
    return written({name: content.decode() for name, content in files.items()}) + b"\n"


def restored(folder: Folder, content: bytes) -> Generations:
    """Put what :func:`exported` gave into a folder that has no identity.

    Errors: :class:`RequestError` where it has one, or where this is no export.
    """
    with folder.locked():
        if any(folder.path.glob("key-*.jwk")) or folder.read(HISTORY) is not None:
            raise RequestError(f"{folder.path} has an identity already: move that away first")
        try:
            with parsing("the export"):
                files = {str(name): str(text).encode() for name, text in loaded(content).items()}
                history = parsed(_History, loaded(files.pop(HISTORY))).successions
                told(history[-1])
                if not files.keys() <= {_name(number) for number in range(len(history) + 1)}:
                    raise ValueError("it has files that are none of an identity")
                for file in files.values():
                    KeyFile.parse(file)
        except (NotVerified, AttributeError) as error:
            raise RequestError(f"this is no export of an identity: {error}") from None
        for name, data in files.items():
            folder.create(name, data)
        folder.create(HISTORY, written(_History(history)))
    found = find(folder)
    if found is None:
        raise ConfigError(f"{folder.path} has no identity, though one was restored")
    return found
