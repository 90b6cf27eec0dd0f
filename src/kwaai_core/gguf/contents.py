"""What a GGUF file holds, once it is checked: metadata, tensors, and how the file was then."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# number: (name, elements of a block, bytes of a block); `enum ggml_type` of ggml.h and
# `type_traits` of ggml.c in llama.cpp as of llama-cpp-python 0.3.36, without the removed types
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

# number: (name, form for the module struct); arrays and strings are numbers 9 and 8
SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"),
    4: ("uint32", "I"), 5: ("int32", "i"), 6: ("float32", "f"), 7: ("bool", "?"),
    10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}  # fmt: skip
_FORMS = dict(SCALARS.values())
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Value:
    """A metadata value: ``type`` as the specification names it, ``raw`` its bytes in the file.

    An array has ``count`` elements of that type; a value that is none has one.
    """

    type: str
    raw: bytes
    array: bool = False
    count: int = 1

    def numbers(self) -> list[int | float | bool]:
        """The value as a list, of one where it is no array; empty for strings."""
        if self.type == "string":
            return []
        return list(struct.unpack(f"<{self.count}{_FORMS[self.type]}", self.raw))

    def strings(self) -> Iterator[bytes]:
        """The strings, one where it is no array: any bytes, as in the file; none for numbers."""
        at = 0
        for _ in range(self.count if self.type == "string" else 0):
            end = at + 8 + _U64.unpack_from(self.raw, at)[0]
            yield self.raw[at + 8 : end]
            at = end


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: ``shape`` as in the file, innermost first; ``offset`` in the file, in bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file does: its size in bytes, its mtime in nanoseconds, its inode."""

    size: int
    mtime: int
    inode: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Stamp:
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ino)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a checked file says, and how it was when it was read (``stamp``).

    The tensors' data begins at ``data_offset`` and is aligned to ``alignment`` bytes.
    """

    path: Path
    stamp: Stamp
    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int

    def text(self, key: str, default: str = "") -> str:
        """A string of the metadata; ``default`` where there is no string of this key."""
        value = self.metadata.get(key)
        if value is None or value.type != "string" or value.array:
            return default
        return value.raw[8:].decode("utf-8", "replace")

    def integer(self, key: str, default: int = 0) -> int:
        """A single integer of the metadata."""
        value = self.metadata.get(key)
        return default if value is None or value.array else next(iter(self.integers(key)), default)

    def integers(self, key: str, repeat: int = 1) -> list[int]:
        """Integers of the metadata: an array as it is, a single one ``repeat`` times."""
        value = self.metadata.get(key)
        if value is None or "int" not in value.type:
            return []
        found = [int(number) for number in value.numbers()]
        return found if value.array else found * repeat

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def blocks(self) -> int:
        return self.integer(f"{self.architecture}.block_count")

    @property
    def context_length(self) -> int:
        return self.integer(f"{self.architecture}.context_length")

    @property
    def embedding_length(self) -> int:
        return self.integer(f"{self.architecture}.embedding_length")

    @property
    def chat_template(self) -> str:
        return self.text("tokenizer.chat_template")
