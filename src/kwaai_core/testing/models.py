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
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

Quantisation = Literal["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyper-parameters of a model with tied embeddings.

    ``embedding`` must be a multiple of 32, for Q4_K of 256, and of ``heads``.
    """

    architecture: Literal["llama", "qwen2", "qwen3", "gemma3"] = "llama"
    blocks: int = 3
    embedding: int = 256
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 512
    vocabulary: int = 512
    context: int = 4096


TINY = Shape()
TINY_QWEN2 = Shape("qwen2")
QWEN2_0_5B = Shape("qwen2", 24, 896, 14, 2, 4864, 151936, 32768)
QWEN2_1_5B = Shape("qwen2", 28, 1536, 12, 2, 8960, 151936, 32768)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_random_model(
    path: Path, shape: Shape = TINY, *, quantisation: Quantisation = "Q8_0", seed: int = 0
) -> Path:
    """Write a model; equal arguments give equal bytes of tensors. Returns ``path``.

    A text becomes a token a byte, as the vocabulary is the 256 bytes, fillers and three
    special tokens.
    """
    writer = GGUFWriter(path, shape.architecture)
    _describe(writer, shape, quantisation)
    _vocabulary(writer, shape.vocabulary)
    draw = np.random.default_rng(seed)
    for name, dimensions, deviation in _weights(shape):
        # embedding rows may not divide into the blocks of a K-quant
        kind = quantisation if dimensions[1] % _BLOCKS[quantisation] == 0 else "Q8_0"
        data = _random(draw, dimensions, deviation, kind)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    for name, size, value in _vectors(shape):
        writer.add_tensor(name, np.full(size, value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: GGUFWriter, shape: Shape, quantisation: Quantisation) -> None:
    writer.add_name(f"random {shape.architecture} {shape.blocks}x{shape.embedding}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_file_type(LlamaFileType.ALL_F32)
    if shape.architecture in ("qwen3", "gemma3"):
        writer.add_key_length(shape.embedding // shape.heads)
        writer.add_value_length(shape.embedding // shape.heads)
    if shape.architecture == "gemma3":
        writer.add_sliding_window(64)


def _vocabulary(writer: GGUFWriter, size: int) -> None:
    tokens = [_byte_token(byte) for byte in range(256)]
    fillers = size - len(tokens) - len(_SPECIAL)
    tokens += [f"Ġw{number}" for number in range(fillers)] + list(_SPECIAL)
    types = [TokenType.NORMAL] * (256 + fillers) + [TokenType.CONTROL] * len(_SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["Ġ w"])
    writer.add_bos_token_id(size - 3)
    writer.add_eos_token_id(size - 1)
    writer.add_eot_token_id(size - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _byte_token(byte: int) -> str:
    """How byte-level BPE writes a byte: itself where it is printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))


def _weights(shape: Shape) -> Iterator[tuple[str, tuple[int, int], float]]:
    """(name, (rows, columns), standard deviation) of every matrix."""
    wide, narrow = shape.embedding, shape.embedding // shape.heads * shape.kv_heads
    # a gemma scales its embeddings up; where they prevail a tied model repeats its last token
    embedding = 0.05 if shape.architecture == "gemma3" else 1.0
    yield "token_embd.weight", (shape.vocabulary, wide), embedding * wide**-0.5
    for block in range(shape.blocks):
        yield f"blk.{block}.attn_q.weight", (wide, wide), 2 * wide**-0.5
        yield f"blk.{block}.attn_k.weight", (narrow, wide), 2 * wide**-0.5
        yield f"blk.{block}.attn_v.weight", (narrow, wide), 2 * wide**-0.5
        yield f"blk.{block}.attn_output.weight", (wide, wide), 2 * wide**-0.5
        yield f"blk.{block}.ffn_gate.weight", (shape.feed_forward, wide), 2 * wide**-0.5
        yield f"blk.{block}.ffn_up.weight", (shape.feed_forward, wide), 2 * wide**-0.5
        feed = 2 * shape.feed_forward**-0.5
        yield f"blk.{block}.ffn_down.weight", (wide, shape.feed_forward), feed


def _vectors(shape: Shape) -> Iterator[tuple[str, int, float]]:
    """(name, size, value) of every norm and bias."""
    wide, head = shape.embedding, shape.embedding // shape.heads
    yield "output_norm.weight", wide, 1.0
    for block in range(shape.blocks):
        names = ["attn_norm", "ffn_norm"]
        if shape.architecture == "gemma3":
            names += ["post_attention_norm", "post_ffw_norm"]
        yield from ((f"blk.{block}.{name}.weight", wide, 1.0) for name in names)
        if shape.architecture in ("qwen3", "gemma3"):
            yield f"blk.{block}.attn_q_norm.weight", head, 1.0
            yield f"blk.{block}.attn_k_norm.weight", head, 1.0
        if shape.architecture == "qwen2":
            yield f"blk.{block}.attn_q.bias", wide, 0.1
            yield f"blk.{block}.attn_k.bias", head * shape.kv_heads, 0.1
            yield f"blk.{block}.attn_v.bias", head * shape.kv_heads, 0.1


_BLOCKS = {"F32": 1, "F16": 1, "BF16": 1, "Q4_0": 32, "Q8_0": 32, "Q4_K": 256}


def _random(
    draw: np.random.Generator, dimensions: tuple[int, int], deviation: float, kind: Quantisation
) -> NDArray[np.generic]:
    """Normal values, or random quanta under one scale: ``(rows, columns or bytes of them)``."""
    rows, columns = dimensions
    if kind in ("F32", "F16", "BF16"):
        values = draw.standard_normal(dimensions, np.float32) * np.float32(deviation)
        if kind == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float16 if kind == "F16" else np.float32)
    blocks = rows * columns // _BLOCKS[kind]
    # standard deviations of one quantum under a scale of 1; Q4_K's minimum centres it
    head, quanta, unit = {
        "Q4_0": (1, 16, 4.6),
        "Q8_0": (1, 32, 73.9),
        "Q4_K": (2, 140, 230.0),
    }[kind]
    # a sign for each block, since the quanta of Q4_0 have a mean of their own
    signs = draw.choice(np.array([-1, 1], np.float32), (blocks, 1))
    scales = signs * np.array([1, 7.5][:head], np.float32) * np.float32(deviation / unit)
    data = np.empty((blocks, 2 * head + quanta), np.uint8)
    data[:, : 2 * head] = scales.astype(np.float16).view(np.uint8)
    data[:, 2 * head :] = np.frombuffer(draw.bytes(blocks * quanta), np.uint8).reshape(blocks, -1)
    return data.reshape(rows, -1)
