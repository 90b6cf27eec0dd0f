"""A strict reader of GGUF files: everything is checked before llama.cpp sees any of it.

GGUF is the file format of llama.cpp (specification: `docs/gguf.md` of ggml): a magic, a version,
counts, typed key-value pairs, tensor descriptions, padding, tensor data. Its parsers have a
history of memory errors, so this one believes nothing: all counts, sizes and offsets are compared
with the length of the file. Only little-endian files of version 2 and 3 are read.

The file is read, not mapped: one that somebody cuts short meanwhile is then an error, and not the
end of the process by SIGBUS.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import BinaryIO

from kwaai_core.errors import ModelFileError
from kwaai_core.gguf.contents import SCALARS, TENSOR_TYPES, GgufFile, Stamp, Tensor, Value

MAX_TENSORS = 1 << 16
MAX_PAIRS = 1 << 14
MAX_KEY = 1 << 12
MAX_STRING = 1 << 24
# A number costs 150 bytes while the digest is computed, so 600 MiB at most. These two are for the
# whole file; the largest vocabularies, of 262,144 tokens with merges, take a third of them.
MAX_ELEMENTS = 1 << 22
MAX_HEADER = 1 << 27
MAX_NAME = 63  # GGML_MAX_NAME, less the final zero

_STRING, _ARRAY = 8, 9
_UINT32 = ("uint32", False)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STEP = 1 << 20


def read_gguf(path: Path) -> GgufFile:
    """Read and check a file. Raises :class:`ModelFileError` with what is wrong, and where."""
    with open_model(path) as file:
        return _Reader(path, file).read()


@contextmanager
def open_model(path: Path) -> Iterator[BinaryIO]:
    """A model file to read from; what cannot be opened or read is a :class:`ModelFileError`."""
    try:
        file = open(path, "rb", buffering=0, opener=_open_regular)  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise _unreadable(path, error) from None
    with file:
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> ModelFileError:
    reason = getattr(error, "strerror", None) or error
    return ModelFileError(f"{path} cannot be read as a model: {reason}")


def _open_regular(path: str, flags: int) -> int:
    """Open what is a file; a pipe would wait for ever."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(fd)
    if stat.S_ISREG(facts.st_mode) and facts.st_size:
        return fd
    os.close(fd)
    raise OSError(0, "it is empty" if stat.S_ISREG(facts.st_mode) else "it is not a regular file")


class _Reader:
    """A cursor over the beginning of a file, of which it has read no more than it needs."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._stamp = Stamp.of(os.fstat(file.fileno()))
        self._data = bytearray()
        self._at = 0
        self._elements = 0

    def fail(self, what: str) -> ModelFileError:
        return ModelFileError(
            f"{self._path} is not a sound GGUF file: {what} (at byte {self._at}); "
            "get it anew from where it came from"
        )

    def fill(self, end: int, what: str) -> None:
        """Have the file's first ``end`` bytes."""
        if end > self._stamp.size:
            raise self.fail(
                f"{what} goes beyond the end of the file: it is truncated or damaged "
                f"(it has {self._stamp.size} bytes)"
            )
        if end > MAX_HEADER:
            raise self.fail(f"{what} goes beyond the {MAX_HEADER} bytes that a header may have")
        while len(self._data) < end:
            part = self._file.read(max(_STEP, end - len(self._data)))
            if not part:
                raise self.fail("it has been cut short just now")
            self._data += part

    def take(self, size: int, what: str) -> bytes:
        start = self._at
        if start + size > len(self._data):
            self.fill(start + size, what)
        self._at += size
        return bytes(self._data[start : self._at])

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str, most: int) -> int:
        value = int(_U64.unpack(self.take(8, what))[0])
        if value > most:
            raise self.fail(f"{what} is {value}, over the limit of {most}")
        return value

    def read(self) -> GgufFile:
        if self.take(4, "the magic") != b"GGUF":
            raise self.fail("it does not begin with GGUF")
        version = self.u32("the version")
        if version and not version & 0xFFFF:
            raise self.fail("it is big-endian, and only little-endian files are read")
        if version not in (2, 3):
            raise self.fail(f"its version is {version}, and 2 and 3 are read")
        tensors = self.u64("the number of tensors", MAX_TENSORS)
        metadata = self._metadata(self.u64("the number of metadata pairs", MAX_PAIRS))
        described = [self._tensor() for _ in range(tensors)]
        alignment = self._alignment(metadata)
        start = self._at + -self._at % alignment
        placed = tuple(self._placed(described, start, alignment))
        file = GgufFile(self._path, self._stamp, version, alignment, metadata, placed, start)
        self._check(file)
        return file

    def _metadata(self, pairs: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._name("a key", MAX_KEY)
            if key in metadata:
                raise self.fail(f"the key {key} occurs twice")
            metadata[key] = self._value(key)
        return metadata

    def _name(self, what: str, most: int) -> str:
        raw = self.take(self.u64(f"the length of {what}", most), what)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None
        if not name or not name.isprintable():
            raise self.fail(f"{what} is empty or not printable")
        return name

    def _value(self, key: str) -> Value:
        kind, count = self.u32(f"the type of {key}"), 1
        array = kind == _ARRAY
        if array:
            kind = self.u32(f"the element type of {key}")
            count = self.u64(f"the length of {key}", MAX_ELEMENTS)
        if kind == _ARRAY:
            raise self.fail(f"{key} is an array of arrays")
        self._elements += count
        if self._elements > MAX_ELEMENTS:
            raise self.fail(f"{key} makes more than {MAX_ELEMENTS} values in all")
        if kind == _STRING:
            return Value("string", self._strings(key, count), array, count)
        if kind not in SCALARS:
            raise self.fail(f"{key} has the unknown type {kind}")
        name, form = SCALARS[kind]
        raw = self.take(count * struct.calcsize(form), key)
        if name == "bool" and raw.strip(b"\0\1"):
            raise self.fail(f"{key} has a bool that is neither 0 nor 1")
        return Value(name, raw, array, count)

    def _strings(self, key: str, count: int) -> bytes:
        # the inner loop of 150,000 tokens: 0.03 s, against 0.2 s through take()
        data, start, at = self._data, self._at, self._at
        for _ in range(count):
            if at + 8 > len(data):
                self._at = at
                self.fill(at + 8, f"a string of {key}")
            size = _U64.unpack_from(data, at)[0]
            if size > MAX_STRING:
                self._at = at
                raise self.fail(f"a string of {key} is too long: {size} bytes")
            at += 8 + size
            if at > len(data):
                self._at = at - size
                self.fill(at, f"a string of {key}")
        self._at = at
        return bytes(data[start:at])

    def _tensor(self) -> Tensor:
        """A description, with the offset from where the data begins."""
        name = self._name("a tensor's name", MAX_NAME)
        dimensions = self.u32(f"the number of dimensions of {name}")
        if dimensions > 4:
            raise self.fail(f"{name} has {dimensions} dimensions")
        shape = tuple(self.u64(f"a dimension of {name}", 1 << 40) for _ in range(dimensions))
        kind = self.u32(f"the type of {name}")
        if kind not in TENSOR_TYPES:
            raise self.fail(f"{name} has the unknown or removed type {kind}")
        label, block, size = TENSOR_TYPES[kind]
        elements, row = prod(shape), shape[0] if shape else 1  # without dimensions: one number
        if not elements or row % block or elements > 1 << 50:
            raise self.fail(f"{name} has the shape {shape}, which {label} cannot have")
        offset = self.u64(f"the offset of {name}", 1 << 60)
        return Tensor(name, label, shape, offset, elements // block * size)

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get("general.alignment")
        if value is None:
            return 32
        alignment = _U32.unpack(value.raw)[0] if (value.type, value.array) == _UINT32 else 0
        if not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment}, not a power of two from 8 on")
        return int(alignment)

    def _placed(self, tensors: list[Tensor], start: int, alignment: int) -> Iterator[Tensor]:
        """The tensors with their offsets in the file: one after another, as llama.cpp asks."""
        expected, seen = 0, set[str]()
        for tensor in tensors:
            if tensor.name in seen:
                raise self.fail(f"the tensor {tensor.name} occurs twice")
            if tensor.offset != expected:
                raise self.fail(f"{tensor.name} is at {tensor.offset}, and should be at {expected}")
            if (end := start + tensor.offset + tensor.nbytes) > self._stamp.size:
                raise self.fail(
                    f"{tensor.name} goes beyond the end of the file: it is truncated "
                    f"(it has {self._stamp.size} bytes, and this ends at {end})"
                )
            seen.add(tensor.name)
            expected += tensor.nbytes + -tensor.nbytes % alignment
            yield replace(tensor, offset=start + tensor.offset)

    def _check(self, file: GgufFile) -> None:
        """What every model has, whatever its architecture."""
        named = file.architecture
        if not (named.isascii() and named.isprintable() and 0 < len(named) <= 64):
            raise self.fail("it does not say its general.architecture, or not in plain ASCII")
        if file.integer("split.count", 1) > 1:
            raise self.fail("it is one part of several: merge them with llama-gguf-split --merge")
        template = file.metadata.get("tokenizer.chat_template")
        if template is not None and (template.type != "string" or template.array):
            raise self.fail("its tokenizer.chat_template is not a string")
        for what in ("block_count", "embedding_length", "context_length"):
            key = f"{named}.{what}"
            value = file.metadata.get(key)
            if value is None or (value.type, value.array) != _UINT32:
                raise self.fail(f"{key} is missing, or not a single uint32")
            if not 0 < file.integer(key) < 1 << 31:
                raise self.fail(f"{key} is {file.integer(key)}, out of range")
        if file.blocks > 4096 or not file.tensors:
            raise self.fail(f"it has {file.blocks} blocks and {len(file.tensors)} tensors")
