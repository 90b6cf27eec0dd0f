"""The index of added files: one JSON document, replaced as a whole, read again when it changed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_type_hints

from kwaai_core import ConfigError, ModelCard, RequestError
from kwaai_core.gguf import GgufFile, Stamp, read_gguf
from kwaai_core.gguf.digest import Progress, cached_digest

Condition = Literal["ready", "missing", "changed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: what it is, and how it was when that was found out.

    ``mtime`` is in nanoseconds; ``added``, when it was described, in seconds since 1970.
    """

    id: str
    digest: str
    path: str
    architecture: str
    blocks: int
    context_length: int
    size: int
    mtime: int
    inode: int
    added: int

    @classmethod
    def parse(cls, facts: Mapping[str, object]) -> Entry:
        """An entry as the index has it. Errors: TypeError where it is anything else."""
        entry = cls(**facts)  # type: ignore[arg-type]  # checked now
        for name, kind in get_type_hints(cls).items():
            if type(getattr(entry, name)) is not kind:
                raise TypeError(f"{name} is {getattr(entry, name)!r}")
        return entry

    def card(self) -> ModelCard:
        """What the catalog says of it."""
        return ModelCard(
            id=self.id,
            digest=self.digest,
            architecture=self.architecture,
            size=self.size,
            blocks=self.blocks,
            context_length=self.context_length,
            created=self.added,
            source="kwaai-lobe-models",
        )

    def condition(self) -> Condition:
        """Whether the file is still the one that was added, by size, mtime and inode."""
        try:
            stamp = Stamp.of(os.stat(self.path))
        except OSError:
            return "missing"
        return "ready" if stamp == Stamp(self.size, self.mtime, self.inode) else "changed"


def describe(path: Path, id_: str, cache: Path, progress: Progress | None = None) -> Entry:
    """Check a file and make its entry.

    Errors: :class:`ModelFileError`; :class:`RequestError` for an id that nobody could type.
    """
    if id_ and not _ID.fullmatch(id_):
        raise RequestError(f"{id_!r} cannot be an id: it may have letters, digits and . _ : / -")
    file = read_gguf(path)
    return Entry(
        id=id_ or natural_id(file),
        digest=cached_digest(file, cache, progress),
        path=str(path),
        architecture=file.architecture,
        blocks=file.blocks,
        context_length=file.context_length,
        size=file.stamp.size,
        mtime=file.stamp.mtime,
        inode=file.stamp.inode,
        added=int(time.time()),
    )


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def natural_id(file: GgufFile) -> str:
    """A readable id: the file's own name without its ending, in lower case, dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", file.path.stem.lower()).strip("-") or "model"


class Index:
    """The entries in a folder. Readers need no lock; writers hold one while they replace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "models.json"
        self._seen: tuple[int, ...] | None = None
        self._entries: tuple[Entry, ...] = ()

    def entries(self) -> Sequence[Entry]:
        """What is in the index now. Errors: :class:`ConfigError` where it cannot be read."""
        try:
            facts = self._file.stat()
        except OSError:
            self._seen = None  # reading says what is wrong, or that there is nothing
            return self._read()
        seen = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
        if self._seen != seen:
            self._entries, self._seen = self._read(), seen
        return self._entries

    def _read(self) -> tuple[Entry, ...]:
        try:
            document = json.loads(self._file.read_bytes())
            return tuple(Entry.parse(entry) for entry in document["models"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._file} is damaged ({error}): move it away and add your models again"
            ) from None

    def find(self, name: str) -> Entry:
        """The entry of an id, or of a digest's beginning of 6 characters and more.

        Errors: :class:`RequestError` where there is none, or more than one.
        """
        return find(self.entries(), name)

    def add(self, entry: Entry, *, rename: bool = False) -> tuple[Entry, Entry | None]:
        """Add an entry, in place of one of the same model whose file has gone or changed.

        Such a one has moved, and keeps its id unless it is to ``rename``. Returns what is in the
        index now, and what it took the place of.

        Errors: :class:`RequestError` where its id or its digest is there.
        """
        with self._writing() as entries:
            before = next((other for other in entries if other.digest == entry.digest), None)
            if before is not None:
                if before.condition() == "ready":
                    raise RequestError(
                        f"this model is there already, as {before.id} ({before.path}): "
                        f"kwaai models rm {before.id}, to add it anew"
                    )
                entries.remove(before)
                entry = entry if rename else replace(entry, id=before.id)
            if any(other.id == entry.id for other in entries):
                raise RequestError(
                    f"there is another model with the id {entry.id}: choose one with --id"
                )
            entries.append(entry)
        return entry, before

    def remove(self, name: str) -> Entry:
        """Take an entry out; its file stays. Errors: :class:`RequestError`."""
        with self._writing() as entries:
            entry = find(entries, name)
            entries[:] = [other for other in entries if other.id != entry.id]
        return entry

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = open(self._folder / "lock", "w")  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"{self._folder} cannot be used: {error.strerror}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _writing(self) -> Iterator[list[Entry]]:
        with self._locked():
            entries = list(self._read())
            yield entries
            part = self._file.with_suffix(".part")
            document = {"models": [asdict(entry) for entry in entries]}
            with open(part, "w") as file:
                json.dump(document, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._file)


def find(entries: Sequence[Entry], name: str) -> Entry:
    """See :meth:`Index.find`."""
    for entry in entries:
        if entry.id == name:
            return entry
    found = [entry for entry in entries if len(name) >= 6 and entry.digest.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f"“{name}” could be {' or '.join(entry.id for entry in found)}")
    ids = ", ".join(entry.id for entry in entries) or "none"
    raise RequestError(
        f"there is no model “{name}” among those that were added ({ids}); "
        "what other lobes bring, `kwaai models` does not keep"
    )


def offered(added: Sequence[Entry], found: Sequence[Entry]) -> Sequence[Entry]:
    """What was added, and of the files found in a folder those that are not the same again."""
    ids = {entry.id for entry in added}
    digests = {entry.digest for entry in added if entry.condition() == "ready"}
    new = (entry for entry in found if entry.id not in ids and entry.digest not in digests)
    return (*added, *new)
