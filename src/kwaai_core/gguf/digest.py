"""The model digest: a model's identity, whatever its file is called.

It is the SHA-256 of the RFC 8785 JSON of ``{tensors, metadata, tokenizer, template}``, described
with test vectors in `docs/reference/model-digest.md`. Two quantisations are two models; a file
that differs only in its name, its order of tensors or its notes is the same model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, TypeAlias

import rfc8785

from kwaai_core.errors import ModelFileError
from kwaai_core.gguf.contents import GgufFile, Stamp, Tensor, Value
from kwaai_core.gguf.reader import open_model

Progress = Callable[[int, int], None]
Json: TypeAlias = "str | float | Mapping[str, Json] | Sequence[Json]"
_STEP = 1 << 22
_ARCHITECTURE = "general.architecture"
_TEMPLATE = "tokenizer.chat_template"


def model_digest(file: GgufFile, progress: Progress | None = None) -> str:
    """The digest of a checked file, in hex: 64 characters.

    Reads all of the file, so call it in a thread. ``progress`` gets the bytes done and those in
    all, every 4 MiB; an exception of it ends the work, which is how a thread is cancelled
    (``trio.from_thread.check_cancelled``).

    Errors: :class:`ModelFileError`, also where the file changed since it was checked.
    """
    with open_model(file.path) as opened:
        _unchanged(file, opened)
        tensors = _tensors(file, opened, progress)
        _unchanged(file, opened)
    own = f"{file.architecture}."
    metadata = [key for key in file.metadata if key == _ARCHITECTURE or key.startswith(own)]
    tokenizer = [
        key
        for key in file.metadata
        if key.startswith("tokenizer.") and not key.startswith(_TEMPLATE)
    ]
    template = file.metadata.get(_TEMPLATE, Value("string", bytes(8)))
    return _sha256_json(
        {
            "tensors": tensors,
            "metadata": _entries(file, metadata),
            "tokenizer": _sha256_json(_entries(file, tokenizer)),
            "template": hashlib.sha256(b"".join(template.strings())).hexdigest(),
        }
    )


def _unchanged(file: GgufFile, opened: BinaryIO) -> None:
    if Stamp.of(os.fstat(opened.fileno())) != file.stamp:
        raise ModelFileError(f"{file.path} changed while it was read: try again when it is whole")


def _tensors(file: GgufFile, opened: BinaryIO, progress: Progress | None) -> Json:
    total = sum(tensor.nbytes for tensor in file.tensors)
    done, found = 0, {}
    buffer = memoryview(bytearray(_STEP))
    for tensor in file.tensors:
        hashed = hashlib.sha256()
        for part in _parts(opened, tensor, buffer):
            hashed.update(part)
            done += len(part)
            if progress is not None:
                progress(done, total)
        found[tensor.name] = hashed.hexdigest()
    named = sorted(file.tensors, key=lambda tensor: tensor.name.encode())
    return [[t.name, t.type, list(t.shape), found[t.name]] for t in named]


def _parts(opened: BinaryIO, tensor: Tensor, buffer: memoryview) -> Iterator[memoryview]:
    opened.seek(tensor.offset)
    left = tensor.nbytes
    while left:
        size = opened.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
        if not size:
            raise ModelFileError(f"{opened.name} was cut short while it was read")
        left -= size
        yield buffer[:size]


def _entries(file: GgufFile, keys: list[str]) -> Json:
    ordered = sorted(keys, key=str.encode)
    return [_entry(key, file.metadata[key]) for key in ordered]


def _entry(key: str, value: Value) -> Json:
    elements = _elements(value)
    return [key, f"array[{value.type}]", elements] if value.array else [key, value.type, *elements]


def _elements(value: Value) -> list[Json]:
    """The elements as JSON that every implementation writes alike."""
    if value.type == "string":
        return [_text(string) for string in value.strings()]
    if value.type.startswith("float"):  # as their bytes: there are many ways to print a float
        size = int(value.type.removeprefix("float")) // 8
        return [value.raw[at : at + size].hex() for at in range(0, len(value.raw), size)]
    if value.type in ("int64", "uint64"):  # RFC 8785 has no integers beyond 2^53
        return [str(number) for number in value.numbers()]
    return list(value.numbers())


def _text(data: bytes) -> Json:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}  # a token need not be UTF-8


def _sha256_json(document: Json) -> str:
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def cached_digest(file: GgufFile, cache: Path, progress: Progress | None = None) -> str:
    """:func:`model_digest`, remembered in the folder ``cache`` by path, size, mtime and inode.

    A damaged memory is no error, nor is a folder that cannot be written: it is computed anew.
    """
    path = file.path.absolute()
    key = {"version": 1, "path": os.fsdecode(path), **asdict(file.stamp)}
    place = cache / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    known = _remembered(place)
    digest = known.pop("digest", None)
    if known == key and isinstance(digest, str) and _DIGEST.fullmatch(digest):
        return digest
    digest = model_digest(file, progress)
    with suppress(OSError):
        _remember(place, key | {"digest": digest})
    return digest


_DIGEST = re.compile("[0-9a-f]{64}")


def _remembered(place: Path) -> dict[str, object]:
    try:
        known = json.loads(place.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(place: Path, facts: Mapping[str, object]) -> None:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.write_text(json.dumps(facts))
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
