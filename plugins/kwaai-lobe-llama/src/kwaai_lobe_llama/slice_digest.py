"""The SHA-256 of a slice, in a file beside it: llama.cpp computes with whatever bits are there.

That file is one that ``sha256sum --check`` reads.
"""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path

from kwaai_lobe_llama.gguf_writer import opened_part, part_of


def digest_file(path: Path) -> Path:
    """Where the digest of a slice is kept."""
    return path.with_suffix(".sha256")


def write_digest(path: Path, digest: str) -> None:
    """Keep the digest, in hex, of a slice that is about to be there. Errors: :class:`OSError`."""
    part = part_of(digest_file(path))
    with opened_part(part) as file:
        file.write(_line(path, digest).encode())
        file.flush()
        part.replace(digest_file(path))


def is_as_written(path: Path, file: BufferedReader) -> bool:
    """Whether an open slice still has the digest that it was written with; all of it is read."""
    try:
        kept = digest_file(path).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return False
    return kept == _line(path, hashlib.file_digest(file, "sha256").hexdigest())


def _line(path: Path, digest: str) -> str:
    return f"{digest}  {path.name}\n"
