"""Random-weight GGUF files: real models to llama.cpp, of any size, that nobody has to download.

Kernels cost the same whatever the values are, so they serve benchmarks as well as tests. The
weights are scaled so that activations stay finite and greedy text does not settle into a loop.
Needs the extra ``kwaai-core[testing]`` (gguf, numpy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from kwaai_core.testing.vocabulary import CHAT_TEMPLATE, SPECIAL, add_vocabulary

__all__ = [
    "CHAT_TEMPLATE", "QWEN2_0_5B", "QWEN2_1_5B", "TINY", "TINY_QWEN2", "Architecture",
    "Quantisation", "Shape", "write_random_model",
]  # fmt: skip

Architecture = Literal["llama", "qwen2", "qwen3", "gemma2", "gemma3"]
Quantisation = Literal["F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyper-parameters of a model; ``tied``: the embedding is the output matrix too.

    A gemma is always tied. ``embedding`` and ``feed_forward`` must be multiples of 32, and
    ``embedding`` one of ``heads``.
    """

    architecture: Architecture = "llama"
    blocks: int = 3
    embedding: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    vocabulary: int = 512
    context: int = 4096
    tied: bool = True

    @property
    def head(self) -> int:
        """The width of one attention head."""
        return self.embedding // self.heads


TINY = Shape()
TINY_QWEN2 = Shape("qwen2")
QWEN2_0_5B = Shape("qwen2", 24, 896, 14, 2, 4864, 151936, 32768)
QWEN2_1_5B = Shape("qwen2", 28, 1536, 12, 2, 8960, 151936, 32768)

_GEMMA = ("gemma2", "gemma3")
_NORMED_HEADS = ("qwen3", "gemma3")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A matrix of ``rows`` by ``columns`` random values, or a vector of ``value`` (no rows).

    ``quiet`` is how many rows at the end are small.
    """

    name: str
    rows: int
    columns: int
    kind: Quantisation
    value: float
    quiet: int = 0

    @property
    def nbytes(self) -> int:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return max(self.rows, 1) * self.columns // block * size


def write_random_model(
    path: Path,
    shape: Shape = TINY,
    *,
    quantisation: Quantisation = "Q8_0",
    seed: int = 0,
    name: str = "",
    template: str = CHAT_TEMPLATE,
) -> Path:
    """Write a model and return ``path``; equal arguments give equal bytes, on any machine.

    ``name`` is its ``general.name``, ``template`` its chat template. Memory: that of the largest
    tensor, a few times.
    """
    writer = GGUFWriter(None, shape.architecture)
    _describe(writer, shape, name, quantisation)
    add_vocabulary(writer, shape.vocabulary, template)
    tensors = list(_tensors(shape, quantisation))
    for tensor in tensors:
        dimensions = [tensor.rows, tensor.columns] if tensor.rows else [tensor.columns]
        kind = GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, dimensions, np.dtype("f4"), tensor.nbytes, kind)
    part = path.with_name(f"{path.name}.part")  # who finds `path` finds all of it
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, tensor in enumerate(tensors):
        bits = np.random.PCG64([seed, number])
        writer.write_tensor_data(_data(tensor, bits))
    writer.close()
    return part.replace(path)


def _describe(writer: GGUFWriter, shape: Shape, name: str, quantisation: Quantisation) -> None:
    writer.add_name(name or f"random {shape.architecture} {shape.blocks}x{shape.embedding}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape.head)
    writer.add_file_type(_FILE_TYPES[quantisation])
    writer.add_quantization_version(2)
    if shape.architecture in (*_GEMMA, *_NORMED_HEADS):
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    if shape.architecture in _GEMMA:
        writer.add_sliding_window(64)


_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16, "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0, "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_K": LlamaFileType.MOSTLY_Q4_K_M, "Q6_K": LlamaFileType.MOSTLY_Q6_K,
}  # fmt: skip


def _tensors(shape: Shape, quantisation: Quantisation) -> Iterator[_Tensor]:
    wide, narrow, feed = (
        shape.embedding,
        shape.head * shape.kv_heads,
        shape.feed_forward,
    )
    # Where the embedding prevails over what the blocks add, a tied model repeats its last token;
    # a gemma scales it up by the root of its width. The last norm then makes the logits vary by 3.
    gemma = shape.architecture in _GEMMA
    tied = shape.tied or gemma
    small = 1 / wide if gemma else wide**-0.5
    yield _embedding("token_embd", shape, quantisation, small)
    yield _vector("output_norm.weight", wide, 3 * wide**-0.5 / small if tied else 1.0)
    if not tied:
        yield _embedding("output", shape, quantisation, 3 * wide**-0.5)
    for block in range(shape.blocks):
        at = f"blk.{block}"
        for norm in _NORMS + (_POST_NORMS if gemma else ()):
            yield _vector(f"{at}.{norm}.weight", wide, 1.0)
        if shape.architecture in _NORMED_HEADS:
            # sharp attention: a mean over all positions hardly changes from token to token
            yield _vector(f"{at}.attn_q_norm.weight", shape.head, 4.0)
            yield _vector(f"{at}.attn_k_norm.weight", shape.head, 1.0)
        for part, rows in (("attn_q", wide), ("attn_k", narrow), ("attn_v", narrow)):
            yield _matrix(f"{at}.{part}.weight", rows, wide, quantisation)
            if shape.architecture == "qwen2":
                yield _vector(f"{at}.{part}.bias", rows, 0.1)
        yield _matrix(f"{at}.attn_output.weight", wide, wide, quantisation)
        yield _matrix(f"{at}.ffn_gate.weight", feed, wide, quantisation)
        yield _matrix(f"{at}.ffn_up.weight", feed, wide, quantisation)
        yield _matrix(f"{at}.ffn_down.weight", wide, feed, quantisation)


_NORMS = ("attn_norm", "ffn_norm")
_POST_NORMS = ("post_attention_norm", "post_ffw_norm")


def _vector(name: str, size: int, value: float) -> _Tensor:
    return _Tensor(name, 0, size, "F32", value)


def _matrix(name: str, rows: int, columns: int, kind: Quantisation) -> _Tensor:
    return _Tensor(name, rows, columns, _fitting(kind, columns), 2 * columns**-0.5)


def _embedding(name: str, shape: Shape, kind: Quantisation, deviation: float) -> _Tensor:
    # as llama-quantize does it: more bits than elsewhere. The special tokens' rows are small, so
    # that greedy text does not end by chance.
    kind = "Q6_K" if kind.startswith(("Q4", "Q5")) else kind
    kind = _fitting(kind, shape.embedding)
    rows = shape.vocabulary
    return _Tensor(f"{name}.weight", rows, shape.embedding, kind, deviation, quiet=len(SPECIAL))


def _fitting(kind: Quantisation, columns: int) -> Quantisation:
    """What llama-quantize falls back to where a row is not made of whole blocks of 256."""
    return _FALLBACKS.get(kind, kind) if columns % 256 else kind


_FALLBACKS: dict[Quantisation, Quantisation] = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


def _data(tensor: _Tensor, bits: np.random.PCG64) -> NDArray[np.uint8]:
    """The bytes of a tensor; only raw bits are drawn, which are the same in every numpy."""
    if not tensor.rows:
        return np.full(tensor.columns, tensor.value, np.float32).view(np.uint8)
    deviation = np.full((tensor.rows, 1), tensor.value, np.float32)
    deviation[tensor.rows - tensor.quiet :] /= 20
    if tensor.kind in ("F32", "F16", "BF16"):
        return _floats(tensor, bits, deviation)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
    blocks = tensor.columns // block
    data = _bytes(bits, tensor.nbytes).reshape(tensor.rows, blocks, size)
    _scale(data, tensor.kind, deviation)
    return data.reshape(-1)


def _bytes(bits: np.random.PCG64, count: int) -> NDArray[np.uint8]:
    drawn: NDArray[np.uint64] = bits.random_raw(-(-count // 8))
    return drawn.view(np.uint8)[:count]


def _floats(
    tensor: _Tensor, bits: np.random.PCG64, deviation: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Evenly distributed values with this standard deviation."""
    drawn = _bytes(bits, 2 * tensor.rows * tensor.columns).view(np.int16)
    unit = np.float32(3**0.5 / 2**15)
    values = drawn.reshape(tensor.rows, -1).astype(np.float32) * (deviation * unit)
    if tensor.kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).reshape(-1).view(np.uint8)
    if tensor.kind == "F16":
        return values.astype(np.float16).reshape(-1).view(np.uint8)
    return values.reshape(-1).view(np.uint8)


# Where a block has its scale, and the standard deviation of its random quanta.
_SCALES: dict[Quantisation, tuple[int, float]] = {
    "Q4_0": (0, 4.61), "Q5_0": (0, 9.23), "Q8_0": (0, 73.9), "Q4_K": (0, 4.61),
    "Q6_K": (208, 18.5),
}  # fmt: skip


def _scale(data: NDArray[np.uint8], kind: Quantisation, deviation: NDArray[np.float32]) -> None:
    """Put scales into blocks of random bytes ``(rows, blocks, bytes)``; see ggml-common.h.

    The quanta of most types have a mean of their own, hence a random sign for each block: the
    lowest bit of the byte in which the scale will be.
    """
    at, unit = _SCALES[kind]
    signs = np.where(data[..., at] & 1, np.float32(1), np.float32(-1))
    scale = signs * deviation / np.float32(unit)
    if kind == "Q4_K":
        data[..., 2:4] = _halves(scale * np.float32(7.5 / 32))
        scale /= 32
        data[..., 4:12], data[..., 12:16] = 160, 0  # 6 bits each: all scales and minima are 32
    elif kind == "Q6_K":
        data[..., 192:208] = 1
    data[..., at : at + 2] = _halves(scale)


def _halves(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    halves: NDArray[np.float16] = values.astype(np.float16)
    return halves[..., None].view(np.uint8)
