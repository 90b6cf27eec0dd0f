"""The GGUF files of one folder, which are offered without being added."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kwaai_core import ConfigError, ModelFileError
from kwaai_core.gguf.digest import Progress
from kwaai_lobe_models.index import Entry, describe

log = logging.getLogger(__name__)
ProgressOf = Callable[[Path], Progress]


def scan(folder: Path, cache: Path, progress_of: ProgressOf | None = None) -> Sequence[Entry]:
    """An entry for each sound file in ``folder`` itself, in the order of their names.

    Blocks while files are hashed that are not in ``cache``. A file that is not sound, or that
    has the id or the digest of one before it, is left out with a warning.

    Errors: :class:`ConfigError` where the folder cannot be read.
    """
    ids: dict[str, Entry] = {}
    digests: dict[str, Entry] = {}
    for path in _files(folder.expanduser().absolute()):
        try:
            entry = describe(path, "", cache, progress_of(path) if progress_of else None)
        except ModelFileError as error:
            log.warning("left out: %s", error)
            continue
        other = ids.get(entry.id) or digests.get(entry.digest)
        if other is not None:
            log.warning("left out: %s is the same model or id as %s", path, other.path)
            continue
        # nobody added it: its time is the file's, the same at every start
        ids[entry.id] = digests[entry.digest] = replace(entry, added=entry.mtime // 10**9)
    return tuple(ids.values())


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    except OSError as error:
        raise ConfigError(f"[models] folder = {str(folder)!r}: {error.strerror}") from None
