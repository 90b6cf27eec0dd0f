"""Which architectures can be cut into spans, and what has to be cut with them.

llama.cpp derives some hyper-parameters from the number of blocks, or from a block's place. Where it
does, a slice would compute something else than the whole model, silently. So there is a list, each
entry read in the sources of llama.cpp (version 0.3.36 of llama-cpp-python) and proved by tests at
every cut of small random models; whatever is not on it is refused.

=======  ===========================================================================================
llama    the number of blocks only names the model's size in logs; Llama 3's ``rope_freqs`` is one
         tensor for all blocks, and goes with each slice
qwen2    the number of blocks only names the model's size in logs
qwen3    the same
gemma3   every sixth block attends to everything, the others through a window: a slice is told so
         block by block. A model of 62 blocks is taken for the one of 27 billion parameters, which
         scales attention otherwise; so neither it nor a slice of 62 blocks can be made
=======  ===========================================================================================

A mixture of experts was not tried, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import GgufFile

PER_BLOCK = (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.sliding_window_pattern",
    "feed_forward_length",
)
"""Metadata that are arrays of one element a block, or one value for all."""


@dataclass(frozen=True, slots=True)
class Sliceable:
    """How an architecture is cut.

    ``window_period``: every so-manieth block has no sliding window, where the file does not say
    which. ``scaled_embedding``: what goes into block 0 is multiplied by the root of its width.
    ``forbidden`` is a number of blocks that llama.cpp takes for another model.
    """

    window_period: int = 0
    scaled_embedding: bool = False
    forbidden: int = 0


ARCHITECTURES = {
    "llama": Sliceable(),
    "qwen2": Sliceable(),
    "qwen3": Sliceable(),
    "gemma3": Sliceable(window_period=6, scaled_embedding=True, forbidden=62),
}


def sliceable(file: GgufFile) -> Sliceable:
    """How a model is cut; :class:`ModelFileError` where it cannot be."""
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        raise ModelFileError(
            f"{file.path} is of the architecture “{file.architecture}”, which cannot be cut into "
            f"spans yet; those that can are {', '.join(ARCHITECTURES)}"
        )
    if file.integer(f"{file.architecture}.expert_count"):
        raise ModelFileError(
            f"{file.path} is a mixture of experts, which cannot be cut into spans yet"
        )
    if file.integer(f"{file.architecture}.nextn_predict_layers"):
        raise ModelFileError(
            f"{file.path} has blocks that predict further tokens, which llama.cpp counts among the "
            "last; it cannot be cut into spans yet"
        )
    _check_arrays(file)
    if found.forbidden and file.blocks == found.forbidden:
        raise ModelFileError(
            f"{file.path} has {file.blocks} blocks, by which llama.cpp recognises a model that "
            "scales attention in its own way; a slice of it would compute something else"
        )
    return found


def check_cut(file: GgufFile, span: Span) -> Sliceable:
    """How a span is cut from a model; :class:`ModelFileError` where it cannot be."""
    found = sliceable(file)
    if not 0 <= span.lo < span.hi <= file.blocks:
        raise ModelFileError(
            f"{file.path} has blocks 0 to {file.blocks - 1}; {span.lo} to {span.hi - 1} are no "
            "span of them"
        )
    if found.forbidden and span.hi - span.lo == found.forbidden:
        raise ModelFileError(
            f"a span of {found.forbidden} blocks of {file.architecture} would be taken for another "
            "model by llama.cpp: take one more or less"
        )
    return found


def _check_arrays(file: GgufFile) -> None:
    for name in PER_BLOCK:
        value = file.metadata.get(f"{file.architecture}.{name}")
        if value is None or not value.array:
            continue
        if value.type == "string" or value.count != file.blocks:
            raise ModelFileError(
                f"{file.path} has a {name} of {value.count} elements ({value.type}) for "
                f"{file.blocks} blocks: get it anew from where it came from"
            )


def has_window(file: GgufFile, block: int) -> bool:
    """Whether a block attends through the sliding window."""
    key = f"{file.architecture}.attention.sliding_window_pattern"
    value = file.metadata.get(key)
    if value is not None and value.array:
        return bool(value.numbers()[block])
    usual = ARCHITECTURES[file.architecture].window_period
    if not usual:
        return False
    period = file.integer(key, usual)
    return period == 0 or block % period < period - 1  # 0 is “all of them” to llama.cpp
