"""The test vectors of the model digest: files, and the JSON that is hashed, each by its own way.

``python -m tests.gguf.vectors`` writes them into the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gguf.writer import CODES, Described, Model, Pair, array, scalar

PAGE = Path(__file__).parents[2] / "docs/reference/model-digest.md"
BLOCK = re.compile(r"^```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TYPES = {0: "F32", 1: "F16", 8: "Q8_0"}


@dataclass(frozen=True, slots=True)
class Fact:
    """A metadata pair as a person would write it down."""

    key: str
    kind: str
    value: Any

    @property
    def pair(self) -> Pair:
        write = array if isinstance(self.value, list) else scalar
        return Pair(self.key.encode(), write(self.kind, self.value))

    @property
    def json(self) -> list[Any]:
        if isinstance(self.value, list):
            return [self.key, f"array[{self.kind}]", [self._json(item) for item in self.value]]
        return [self.key, self.kind, self._json(self.value)]

    def _json(self, item: Any) -> Any:
        match self.kind:
            case "float32" | "float64":
                return struct.pack(f"<{CODES[self.kind][1]}", item).hex()
            case "int64" | "uint64":
                return f"{item:d}"
            case "string":
                try:
                    return item.decode()
                except UnicodeDecodeError:
                    return {"hex": item.hex()}
            case _:
                return item


ORDINARY = (
    Fact("general.architecture", "string", b"llama"),
    Fact("llama.block_count", "uint32", 1),
    Fact("llama.embedding_length", "uint32", 32),
    Fact("llama.context_length", "uint32", 64),
)
EVERYTHING = (
    Fact("tokenizer.ggml.tokens", "string", [b"a", b"", b"\xff\xfe", "ß\n".encode()]),
    Fact("tokenizer.ggml.scores", "float32", [0.0, -0.0, float("inf")]),
    Fact("tokenizer.ggml.merges", "string", []),
    Fact("tokenizer.ggml.bos_token_id", "uint32", 1),
    Fact("tokenizer.chat_template", "string", "{{ messages }} \u20ac".encode()),
    Fact("tokenizer.chat_template.tool_use", "string", b"{{ tools }}"),
    Fact("general.name", "string", b"a note"),
    Fact("general.file_type", "uint32", 7),
    Fact("other.block_count", "uint32", 3),
    Fact("llama.\U0001f600", "bool", True),
    Fact("llama.\uff5a", "bool", False),
    *ORDINARY,
    Fact("llama.one.int8", "int8", -128),
    Fact("llama.one.uint8", "uint8", 255),
    Fact("llama.one.int16", "int16", -(2**15)),
    Fact("llama.one.uint16", "uint16", 2**16 - 1),
    Fact("llama.one.int32", "int32", -(2**31)),
    Fact("llama.one.uint32", "uint32", 2**32 - 1),
    Fact("llama.one.int64", "int64", -(2**63)),
    Fact("llama.one.uint64", "uint64", 2**64 - 1),
    Fact("llama.one.float32", "float32", 1e-5),
    Fact("llama.one.float64", "float64", 0.1),
    Fact("llama.one.string", "string", b"\x80"),
    Fact("llama.some.bool", "bool", [True, False]),
    Fact("llama.some.int64", "int64", [-1, 2**53 + 1]),
    Fact("llama.some.float64", "float64", [1.0]),
    Fact("llama.some.uint16", "uint16", []),
)
TENSORS = (
    Described(b"token_embd.weight", (32, 2), 8, bytes(range(68))),
    Described(b"output_norm.weight", (32,), 0, bytes(range(128))),
    Described(b"blk.0.attn_q.weight", (2, 3, 1), 1, bytes(range(12))),
)


@dataclass(frozen=True, slots=True)
class Vector:
    """A model in words, from which both the file and its digest follow."""

    name: str
    facts: Sequence[Fact]
    tensors: Sequence[Described]

    def file(self) -> bytes:
        return bytes(Model(tuple(fact.pair for fact in self.facts), tuple(self.tensors)))

    @property
    def tokenizer(self) -> list[Any]:
        keys = (f for f in self.facts if f.key.startswith("tokenizer."))
        return in_order(f.json for f in keys if not f.key.startswith("tokenizer.chat_template"))

    @property
    def document(self) -> dict[str, Any]:
        own = ("general.architecture", "llama.")
        template = [f.value for f in self.facts if f.key == "tokenizer.chat_template"] or [b""]
        return {
            "metadata": in_order(f.json for f in self.facts if f.key.startswith(own)),
            "template": hashlib.sha256(template[0]).hexdigest(),
            "tensors": in_order(
                [t.name.decode(), TYPES[t.kind], list(t.shape), hashlib.sha256(t.data).hexdigest()]
                for t in self.tensors
            ),
            "tokenizer": sha256(self.tokenizer),
        }

    @property
    def digest(self) -> str:
        return sha256(self.document)

    def written(self) -> dict[str, Any]:
        """As the page has it; the file in lines of base64."""
        return {
            "name": self.name,
            "file": textwrap.wrap(base64.b64encode(self.file()).decode(), 88),
            "tokenizer": self.tokenizer,
            "document": self.document,
            "digest": self.digest,
        }


VECTORS = (
    Vector("smallest", ORDINARY, (Described(),)),
    Vector("everything", EVERYTHING, TENSORS),
)


def in_order(items: Any) -> list[Any]:
    return sorted(items, key=lambda item: item[0].encode())


def sha256(document: Any) -> str:
    """RFC 8785, as far as it is needed: no floats, and object keys in ASCII."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def on_page() -> list[dict[str, Any]]:
    """The vectors that the page has."""
    return [json.loads(text) for text in BLOCK.findall(PAGE.read_text())]


def readable(vector: Vector) -> str:
    """JSON with a line for each entry."""
    written = vector.written()
    document = written["document"]
    members = [f'  "{key}": {lines(document[key], 6)}' for key in document]
    return ",\n".join(
        [
            f'{{\n  "name": "{vector.name}"',
            f'  "file": {lines(written["file"], 4)}',
            f'  "tokenizer": {lines(written["tokenizer"], 4)}',
            '  "document": {\n  ' + ",\n  ".join(members) + "\n  }",
            f'  "digest": "{vector.digest}"\n}}',
        ]
    )


def lines(value: Any, indent: int) -> str:
    """A value as JSON, an array with its items on lines of their own."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False)
    items = [" " * indent + json.dumps(item, ensure_ascii=False) for item in value]
    return "[\n" + ",\n".join(items) + "\n" + " " * (indent - 2) + "]"


def main() -> None:
    blocks = iter(f"```json\n{readable(vector)}\n```" for vector in VECTORS)
    PAGE.write_text(BLOCK.sub(lambda match: next(blocks), PAGE.read_text()))


if __name__ == "__main__":
    main()
