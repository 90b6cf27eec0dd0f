"""The index of added files: one JSON document, replaced as a whole, read again when it changed."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kwaai_core import ConfigError, ModelCard, RequestError
from kwaai_core.digest import Progress, cached_digest
from kwaai_core.gguf import GgufFile, read_gguf

Condition = Literal["ready", "missing", "changed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: what it is, and how it was when that was found out.

    ``mtime`` is in nanoseconds; ``added`` in seconds since 1970.
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

    def card(self) -> ModelCard:
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
            facts = os.stat(self.path)
        except OSError:
            return "missing"
        same = (facts.st_size, facts.st_mtime_ns, facts.st_ino)
        return "ready" if same == (self.size, self.mtime, self.inode) else "changed"


def describe(path: Path, id_: str, cache: Path, progress: Progress, now: int) -> Entry:
    """Check a file and make its entry. Errors: :class:`ModelFileError`."""
    file = read_gguf(path)
    facts = path.stat()
    return Entry(
        id=id_ or natural_id(file),
        digest=cached_digest(path, cache, progress),
        path=str(path),
        architecture=file.architecture,
        blocks=file.blocks,
        context_length=file.context_length,
        size=facts.st_size,
        mtime=facts.st_mtime_ns,
        inode=facts.st_ino,
        added=now,
    )


def natural_id(file: GgufFile) -> str:
    """A readable id: the file's own name without its ending, in lower case, dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", file.path.stem.lower()).strip("-") or "model"


class Index:
    """The entries in a folder. Readers need no lock; writers hold one while they replace."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "models.json"
        self._seen: tuple[int, int] | None = None
        self._entries: tuple[Entry, ...] = ()

    def entries(self) -> Sequence[Entry]:
        """What is in the index now. Errors: :class:`ConfigError` where it cannot be read."""
        try:
            facts = self._file.stat()
            if self._seen != (facts.st_mtime_ns, facts.st_ino):
                document = json.loads(self._file.read_text())
                self._entries = tuple(Entry(**entry) for entry in document["models"])
                self._seen = (facts.st_mtime_ns, facts.st_ino)
        except FileNotFoundError:
            self._entries, self._seen = (), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._file} is damaged ({error}): move it away and add your models again"
            ) from None
        return self._entries

    def find(self, name: str) -> Entry:
        """The entry of an id, or of a digest's beginning of 6 characters and more."""
        for entry in self.entries():
            if entry.id == name or (len(name) >= 6 and entry.digest.startswith(name)):
                return entry
        ids = ", ".join(entry.id for entry in self.entries()) or "none"
        raise RequestError(f"there is no model “{name}”; added are: {ids}")

    def add(self, entry: Entry) -> None:
        """Add an entry. Errors: :class:`RequestError` where its id or its digest is there."""
        with self._writing() as entries:
            for other in entries:
                if other.digest == entry.digest and other.condition() == "ready":
                    raise RequestError(
                        f"this model is there already, as {other.id} ({other.path}): "
                        f"kwaai models rm {other.id}, to add it anew"
                    )
                if other.id == entry.id:
                    raise RequestError(
                        f"there is another model with the id {entry.id}: choose one with --id"
                    )
            entries.append(entry)

    def remove(self, name: str) -> Entry:
        """Take an entry out; its file stays. Errors: :class:`RequestError`."""
        entry = self.find(name)
        with self._writing() as entries:
            entries[:] = [other for other in entries if other.id != entry.id]
        return entry

    @contextmanager
    def _writing(self) -> Iterator[list[Entry]]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self._folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = list(self.entries())
            yield entries
            part = self._file.with_suffix(".part")
            document = {"models": [asdict(entry) for entry in entries]}
            with open(part, "w") as file:
                json.dump(document, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._file)
