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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rfc8785

from kwaai_core.errors import ModelFileError
from kwaai_core.gguf import GgufFile, Value, read_gguf

Progress = Callable[[int, int], None]
_STEP = 1 << 24


def model_digest(file: GgufFile, progress: Progress = lambda done, total: None) -> str:
    """The digest of a checked file, in hex. ``progress`` gets bytes done and in all.

    Reads the whole file: call it in a thread. It ends early if ``progress`` raises.
    """
    total = sum(tensor.nbytes for tensor in file.tensors)
    done, tensors = 0, []
    for tensor in file.tensors:
        hashed = hashlib.sha256()
        for at in range(tensor.offset, tensor.offset + tensor.nbytes, _STEP):
            part = file.data[at : min(at + _STEP, tensor.offset + tensor.nbytes)]
            hashed.update(part)
            done += len(part)
            progress(done, total)
        tensors.append([tensor.name, tensor.type, list(tensor.shape), hashed.hexdigest()])
    prefix = f"{file.architecture}."
    pairs = file.metadata.items()
    metadata = [_entry(k, v) for k, v in pairs if k == _ARCHITECTURE or k.startswith(prefix)]
    tokenizer = [_entry(k, v) for k, v in pairs if k.startswith("tokenizer.") and k != _TEMPLATE]
    template = file.metadata[_TEMPLATE].decode() if _TEMPLATE in file.metadata else b""
    document = {
        "tensors": sorted(tensors),
        "metadata": sorted(metadata),
        "tokenizer": hashlib.sha256(rfc8785.dumps(sorted(tokenizer))).hexdigest(),
        "template": hashlib.sha256(template).hexdigest(),
    }
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


_ARCHITECTURE = "general.architecture"
_TEMPLATE = "tokenizer.chat_template"


def _entry(key: str, value: Value) -> list[Any]:
    kind = f"array[{value.type}]" if value.array else value.type
    return [key, kind, _plain(value)]


def _plain(value: Value) -> Any:
    """A value as JSON that every implementation writes alike."""
    if value.type.startswith("float"):
        size = int(value.type[5:]) // 8
        parts = [value.raw[i : i + size].hex() for i in range(0, len(value.raw), size)]
        return parts if value.array else parts[0]
    decoded = value.decode()
    items = decoded if value.array else [decoded]
    if value.type == "string":
        items = [_text(item) for item in items]
    elif value.type in ("int64", "uint64"):
        items = [str(item) for item in items]  # RFC 8785 has no integers beyond 2^53
    return items if value.array else items[0]


def _text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"hex": data.hex()}  # a token need not be UTF-8


def cached_digest(path: Path, cache: Path, progress: Progress = lambda done, total: None) -> str:
    """The digest of a file, remembered in the folder ``cache`` by path, size, mtime and inode.

    Errors: :class:`ModelFileError`.
    """
    identity = _identity(path)
    place = cache / f"{hashlib.sha256(identity).hexdigest()[:32]}.json"
    try:
        known = json.loads(place.read_bytes())["digest"]
        if re.fullmatch("[0-9a-f]{64}", known):
            return str(known)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: it is computed again
    digest = model_digest(read_gguf(path), progress)
    if _identity(path) != identity:
        raise ModelFileError(f"{path} was changed while it was read: try again")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    part.write_text(json.dumps({"digest": digest, "path": str(path)}))
    part.replace(place)
    return digest


def _identity(path: Path) -> bytes:
    """What changes when a file is another; a path need not be UTF-8."""
    try:
        facts = os.stat(path)
        real = os.fsencode(path.resolve())
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        raise ModelFileError(f"{path} cannot be read as a model: {error}") from None
    return real + f"\n{facts.st_size}\n{facts.st_mtime_ns}\n{facts.st_ino}".encode()
