"""GGUF files byte by byte, right or wrong, by code that shares nothing with the reader."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

CODES = {
    "uint8": (0, "B"), "int8": (1, "b"), "uint16": (2, "H"), "int16": (3, "h"),
    "uint32": (4, "I"), "int32": (5, "i"), "float32": (6, "f"), "bool": (7, "?"),
    "uint64": (10, "Q"), "int64": (11, "q"), "float64": (12, "d"),
}  # fmt: skip
STRING, ARRAY = 8, 9
ORDINARY: Mapping[str, tuple[str, Any]] = {
    "general.architecture": ("string", b"llama"),
    "llama.block_count": ("uint32", 1),
    "llama.embedding_length": ("uint32", 32),
    "llama.context_length": ("uint32", 64),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A metadata pair, its value written already."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor as its description has it; without an ``offset`` it gets the right one."""

    name: bytes = b"token_embd.weight"
    shape: tuple[int, ...] = (32,)
    kind: int = 0
    data: bytes = bytes(128)
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A file that is right unless told otherwise. The counts are what the header says."""

    pairs: tuple[Pair, ...] = ()
    tensors: tuple[Described, ...] = (Described(),)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    tensor_count: int | None = None
    pair_count: int | None = None
    order: str = field(default="<")

    def header(self) -> bytes:
        """All before the padding and the data."""
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        pairs = len(self.pairs) if self.pair_count is None else self.pair_count
        head = self.magic + struct.pack(f"{self.order}IQQ", self.version, tensors, pairs)
        head += b"".join(string(pair.key) + pair.value for pair in self.pairs)
        at = 0
        for tensor in self.tensors:
            head += string(tensor.name) + struct.pack("<I", len(tensor.shape))
            head += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
            head += struct.pack("<IQ", tensor.kind, at if tensor.offset is None else tensor.offset)
            at += len(tensor.data) + -len(tensor.data) % self.alignment
        return head

    def data(self) -> bytes:
        """The tensors' bytes, the last without padding, as some writers leave it."""
        parts = [t.data + bytes(-len(t.data) % self.alignment) for t in self.tensors[:-1]]
        return b"".join([*parts, *(tensor.data for tensor in self.tensors[-1:])])

    def __bytes__(self) -> bytes:
        head = self.header()
        return head + bytes(-len(head) % self.alignment) + self.data()


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def scalar(kind: str, value: Any) -> bytes:
    """A value with its type before it."""
    if kind == "string":
        return struct.pack("<I", STRING) + string(value)
    code, form = CODES[kind]
    return struct.pack(f"<I{form}", code, value)


def array(kind: str, values: Iterable[Any], count: int | None = None) -> bytes:
    """An array with its types before it; ``count`` is what it says of its length."""
    items = list(values)
    code = STRING if kind == "string" else CODES[kind][0]
    head = struct.pack("<IIQ", ARRAY, code, len(items) if count is None else count)
    if kind == "string":
        return head + b"".join(map(string, items))
    return head + b"".join(struct.pack(f"<{CODES[kind][1]}", item) for item in items)


def model(more: Mapping[str, bytes] = {}, without: str = "", **changes: Any) -> Model:
    """The smallest sound model, with further or other pairs, or without one of its own."""
    own = {key: scalar(*value) for key, value in ORDINARY.items() if key != without}
    pairs = {**own, **more}
    written = tuple(Pair(key.encode(), value) for key, value in pairs.items())
    return replace(Model(written), **changes)


def ample() -> Model:
    """A sound model in which everything occurs that a file can have."""
    kinds: dict[str, bytes] = {}
    for kind in CODES:
        kinds[f"llama.one.{kind}"] = scalar(kind, 1)
        kinds[f"llama.some.{kind}"] = array(kind, [0, 1, 1])
    kinds |= {
        "llama.empty": array("float32", []),
        "general.name": scalar("string", "Ä model".encode()),
        "general.alignment": scalar("uint32", 64),
        "tokenizer.ggml.tokens": array("string", [b"a", b"", b"\xff\xfe", "ß".encode()]),
        "tokenizer.chat_template": scalar("string", b"{{ messages }}"),
    }
    tensors = (
        Described(b"token_embd.weight", (32, 4), 8, bytes(range(136))),
        Described(b"output_norm.weight", (32,), 0, bytes(range(128))),
        Described(b"blk.0.attn_q.weight", (2, 3, 2, 1), 1, bytes(24)),
        Described(b"blk.0.scale", (), 0, bytes(4)),
    )
    return model(kinds, tensors=tensors, alignment=64)
