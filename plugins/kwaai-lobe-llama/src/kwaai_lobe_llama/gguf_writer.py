"""Write a GGUF file, version 3, from parts of another: nothing is held in memory but a piece.

The layout is that of the specification in ggml's ``docs/gguf.md``: a header, metadata, the tensors'
descriptions, and their data, each aligned.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kwaai_core.gguf import TENSOR_TYPES, Value

ALIGNMENT = 32
_PIECE = 1 << 20
_NEW_SECONDS = 60
_VALUE_TYPES = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "string": 8, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_ARRAY = 9
_TENSOR_TYPES = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor to write: ``offset`` is where its data are in the model, None for zeros."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int | None


def string(text: str) -> Value:
    """A string, as metadata."""
    return Value("string", _string(text))


def uint32(number: int) -> Value:
    """A number, as metadata."""
    return Value("uint32", struct.pack("<I", number))


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[Source],
    model: BinaryIO,
    check: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a file whole, or not at all: it has its name only once all of it is on the disk.

    ``check`` is called before it gets that name, with the SHA-256 of all of it, in hex; what it
    raises leaves nothing behind. Errors: :class:`OSError` where there is no room for it, or the
    model cannot be read.
    """
    part = part_of(path)
    with opened_part(part) as file:
        digested = _Digested(file)
        digested.write(_head(metadata, tensors))
        for tensor in tensors:
            _copy(digested, model, tensor)
        file.flush()
        os.fsync(file.fileno())
        check(digested.digest.hexdigest())
        part.replace(path)
    _sync_folder(path.parent)


class _Digested:
    """A file that is written, and the digest of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.digest.update(data)
        self._file.write(data)


def part_of(path: Path) -> Path:
    """Where a file is written before it has its name: others may write the same at the same time,
    and who is last replaces what is equal."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")


@contextmanager
def opened_part(part: Path) -> Iterator[BinaryIO]:
    """A file that is being written, locked for as long; gone afterwards, if it was not renamed."""
    try:
        with part.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    finally:
        part.unlink(missing_ok=True)


def clean_parts(folder: Path) -> None:
    """Remove what processes that were killed left in a folder: nobody has a lock on it."""
    for part in folder.glob(".*.part"):
        # somebody else may clean as well; and a new one may not have its lock yet
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _NEW_SECONDS:
                with part.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _head(metadata: Mapping[str, Value], tensors: Sequence[Source]) -> bytes:
    described, at = [], 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        kind = struct.pack("<IQ", _TENSOR_TYPES[tensor.type], at)
        described.append(_string(tensor.name) + shape + kind)
        at += _padded(tensor.nbytes)
    pairs = [
        _string(key) + _value(value)
        for key, value in metadata.items()
        if key != "general.alignment"  # that of the model; this file has the default
    ]
    counts = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    return _aligned([counts, *pairs, *described])


def _value(value: Value) -> bytes:
    kind = _VALUE_TYPES[value.type]
    head = (
        struct.pack("<IIQ", _ARRAY, kind, value.count) if value.array else struct.pack("<I", kind)
    )
    return head + value.raw


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(parts: Iterable[bytes]) -> bytes:
    data = b"".join(parts)
    return data + bytes(-len(data) % ALIGNMENT)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _copy(file: _Digested, model: BinaryIO, tensor: Source) -> None:
    left = tensor.nbytes
    if tensor.offset is not None:
        model.seek(tensor.offset)
    while left:
        size = min(left, _PIECE)
        data = bytes(size) if tensor.offset is None else model.read(size)
        if not data:
            raise OSError(f"the model ends in the middle of {tensor.name}")
        file.write(data)
        left -= len(data)
    file.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))
