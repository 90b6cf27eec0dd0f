"""Slices of a model's file that stock llama.cpp loads: a span of blocks, or the head.

A *span* is a model that happens to have only those blocks. It has no vocabulary, since llama.cpp
would otherwise compute logits for every row; hidden states go in and come out. The *head* has the
vocabulary, the final norm and the output matrix, and one block whose weights are all zero, so that
``x + 0 + 0 = x``: llama.cpp refuses a model without blocks.

Slices are kept by the model's digest and what they hold, and made again where they are not whole.
Their own digests are kept beside them, for :mod:`kwaai_lobe_llama.slice_folder` to compare.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import GgufFile, Stamp, Tensor, Value, open_model, read_gguf
from kwaai_lobe_llama.gguf_writer import Source, clean_parts, string, uint32, write_gguf
from kwaai_lobe_llama.slice_digest import write_digest
from kwaai_lobe_llama.sliceable import PER_BLOCK, check_cut, has_window, sliceable

FORMAT = 2
"""To be raised when slices are written otherwise, so that old ones are not used."""

UNIT_BLOCKS = 4

_NO_TOKENS = 32
_HEAD_FEED_FORWARD = 32
_Q4_0_VALUES, _Q4_0_BYTES = 32, 18


def units_of(span: Span, most: int = UNIT_BLOCKS) -> list[Span]:
    """A span cut into units of about equal size, of ``most`` blocks at the most."""
    blocks = span.hi - span.lo
    count = -(-blocks // most)
    borders = [span.lo + blocks * n // count for n in range(count + 1)]
    return [Span(lo, hi) for lo, hi in pairwise(borders)]


def slice_span(file: GgufFile, digest: str, span: Span, folder: Path) -> Path:
    """The file of a span in ``folder``, made where it is not there.

    Errors: :class:`ModelFileError` where the model cannot be cut like this, has changed since it
    was read, or there is no room on the disk.
    """
    check_cut(file, span)
    return _kept(file, folder / f"{_name(digest)}-{span.lo}-{span.hi}.gguf", *_span(file, span))


def slice_head(file: GgufFile, digest: str, folder: Path) -> Path:
    """The file of the head, as :func:`slice_span`."""
    sliceable(file)
    return _kept(file, folder / f"{_name(digest)}-head.gguf", *_head(file))


def is_current(path: Path) -> bool:
    """Whether a file in the folder of slices has this format, by its name."""
    return f"-v{FORMAT}-" in path.name


def _name(digest: str) -> str:
    return f"{''.join(c for c in digest if c.isalnum())[:32]}-v{FORMAT}"


def _kept(file: GgufFile, path: Path, metadata: dict[str, Value], tensors: list[Source]) -> Path:
    size = sum(tensor.nbytes for tensor in tensors)
    if _whole(path, size, len(tensors)):
        return path
    with open_model(file.path) as model:

        def check() -> None:
            if Stamp.of(os.fstat(model.fileno())) != file.stamp:
                raise ModelFileError(f"{file.path} has changed while it was read: try again")

        def finish(sha256: str) -> None:
            check()
            write_digest(path, sha256)

        check()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            clean_parts(path.parent)
            write_gguf(path, metadata, tensors, model, finish)
        except OSError as error:
            raise ModelFileError(
                f"{path} cannot be written ({error.strerror or error}): a slice of "
                f"{file.path.name} needs {-(-size >> 20)} MiB there"
            ) from None
    return path


def _whole(path: Path, size: int, tensors: int) -> bool:
    """Whether a slice is there: it has its name only once it is whole, but disks lose things."""
    try:
        found = read_gguf(path)
    except ModelFileError:
        return False
    return len(found.tensors) == tensors and sum(t.nbytes for t in found.tensors) == size


# -- a span


def _span(file: GgufFile, span: Span) -> tuple[dict[str, Value], list[Source]]:
    arch, blocks = file.architecture, span.hi - span.lo
    metadata = {
        key: _cut(file, key, value, span)
        for key, value in file.metadata.items()
        if not key.startswith("tokenizer.")
    }
    _set_windows(metadata, file, span)
    metadata[f"{arch}.block_count"] = uint32(blocks)
    metadata[f"{arch}.vocab_size"] = uint32(_NO_TOKENS)
    metadata["tokenizer.ggml.model"] = string("none")
    return metadata, list(_span_tensors(file, span))


def _cut(file: GgufFile, key: str, value: Value, span: Span) -> Value:
    """A value for a span: of what is one element a block, the elements of its blocks."""
    per_block = key.removeprefix(f"{file.architecture}.") in PER_BLOCK
    if not (per_block and value.array and value.count == file.blocks):
        return value
    size = len(value.raw) // value.count
    raw = value.raw[span.lo * size : span.hi * size]
    return replace(value, raw=raw, count=span.hi - span.lo)


def _set_windows(metadata: dict[str, Value], file: GgufFile, span: Span) -> None:
    """Say of each block whether it has a window; llama.cpp aborts where none of them has one,
    unless the model has none at all."""
    if not sliceable(file).window_period:
        return
    flags = bytes(has_window(file, block) for block in range(span.lo, span.hi))
    prefix = f"{file.architecture}.attention.sliding_window"
    metadata[f"{prefix}_pattern"] = Value("bool", flags, array=True, count=len(flags))
    if not any(flags):
        metadata.pop(prefix, None)


def _span_tensors(file: GgufFile, span: Span) -> Iterator[Source]:
    for tensor in file.tensors:
        block, rest = _place(tensor)
        if block is not None:
            if span.lo <= block < span.hi:
                yield _source(tensor, f"blk.{block - span.lo}.{rest}")
        elif tensor.name == "token_embd.weight":
            width = tensor.shape[0]
            yield Source(tensor.name, "F16", (width, _NO_TOKENS), 2 * width * _NO_TOKENS, None)
        elif not tensor.name.startswith("output."):
            yield _source(tensor, tensor.name)


def _place(tensor: Tensor) -> tuple[int | None, str]:
    head, _, rest = tensor.name.partition(".")
    number, _, name = rest.partition(".")
    return (int(number), name) if head == "blk" and number.isdigit() else (None, "")


def _source(tensor: Tensor, name: str) -> Source:
    return Source(name, tensor.type, tensor.shape, tensor.nbytes, tensor.offset)


# -- the head


def _head(file: GgufFile) -> tuple[dict[str, Value], list[Source]]:
    arch = file.architecture
    metadata = {key: _cut(file, key, value, Span(0, 1)) for key, value in file.metadata.items()}
    metadata[f"{arch}.block_count"] = uint32(1)
    metadata[f"{arch}.feed_forward_length"] = uint32(_HEAD_FEED_FORWARD)
    if sliceable(file).window_period:  # without a window there, llama.cpp meets an assertion
        key = f"{arch}.attention.sliding_window_pattern"
        metadata[key] = Value("bool", b"\1", array=True, count=1)
    return metadata, list(_head_tensors(file))


def _head_tensors(file: GgufFile) -> Iterator[Source]:
    width, narrow = file.embedding_length, _HEAD_FEED_FORWARD
    shapes = {
        "ffn_gate.weight": (width, narrow),
        "ffn_gate.bias": (narrow,),
        "ffn_up.weight": (width, narrow),
        "ffn_up.bias": (narrow,),
        "ffn_down.weight": (narrow, width),
    }
    for tensor in file.tensors:
        block, rest = _place(tensor)
        if block is None:
            yield _source(tensor, tensor.name)
        elif block == 0:
            yield _zeros(tensor.name, shapes.get(rest, tensor.shape))


def _zeros(name: str, shape: tuple[int, ...]) -> Source:
    """A tensor of zeros, in the smallest type that every backend has: it is multiplied with for
    each token."""
    if len(shape) == 1:
        return Source(name, "F32", shape, 4 * shape[0], None)
    if shape[0] % _Q4_0_VALUES:
        return Source(name, "F16", shape, 2 * prod(shape), None)
    return Source(name, "Q4_0", shape, prod(shape) // _Q4_0_VALUES * _Q4_0_BYTES, None)


def embedding_scale(file: GgufFile) -> float:
    """What the rows of the embedding are multiplied with, in float32, before block 0."""
    if not sliceable(file).scaled_embedding:
        return 1.0
    (root,) = struct.unpack("<f", struct.pack("<f", file.embedding_length**0.5))
    return float(root)
