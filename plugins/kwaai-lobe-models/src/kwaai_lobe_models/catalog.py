"""The catalog role over the index and a folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from kwaai_core import Catalog, Host, ModelCard, ModelFileError, ModelNotFound, Span
from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import cached_digest
from kwaai_lobe_models import ModelsSettings
from kwaai_lobe_models.folder import scan
from kwaai_lobe_models.index import Entry, Index, offered


@asynccontextmanager
async def open_catalog(host: Host) -> AsyncIterator[Catalog]:
    """The catalog; the files of a folder are hashed before it opens, once each."""
    folder = host.settings(ModelsSettings).folder
    cache = host.state / "digests"
    found: Sequence[Entry] = ()
    if folder:
        found = await trio.to_thread.run_sync(scan, Path(folder), cache, lambda path: _cancellable)
    yield Models(Index(host.state), found, cache)


def _cancellable(done: int, total: int) -> None:
    """Let a node stop in the middle of a file of many gigabytes."""
    trio.from_thread.check_cancelled()


class Models:
    """See :class:`kwaai_core.Catalog`. What was added while the node runs is seen at once."""

    def __init__(self, index: Index, found: Sequence[Entry], cache: Path) -> None:
        self._index = index
        self._found = found
        self._cache = cache

    def _entries(self) -> dict[str, Entry]:
        return {entry.id: entry for entry in offered(self._index.entries(), self._found)}

    async def cards(self) -> Sequence[ModelCard]:
        entries = self._entries().values()
        return [entry.card() for entry in entries if entry.condition() != "missing"]

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        entries = self._entries()
        entry = entries.get(card.id)
        if entry is None or entry.card() != card:
            raise ModelNotFound(card.id, list(entries))
        if entry.condition() == "missing":
            raise ModelFileError(f"{entry.path}, the file of {entry.id}, is gone")
        if entry.condition() == "changed":
            await trio.to_thread.run_sync(self._check_again, entry)
        return Path(entry.path)

    def _check_again(self, entry: Entry) -> None:
        """A file that was only touched or moved back is still the same model."""
        digest = cached_digest(read_gguf(Path(entry.path)), self._cache, _cancellable)
        if digest != entry.digest:
            raise ModelFileError(
                f"{entry.path} is no longer the model {entry.id} that was added: "
                f"kwaai models rm {entry.id}, then add it again"
            )
