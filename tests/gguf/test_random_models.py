"""Random models are the same on every machine, and hold what their shape says."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from kwaai_core.gguf import GgufFile, read_gguf
from kwaai_core.gguf.digest import model_digest
from kwaai_core.testing.models import Quantisation, Shape, write_random_model

SMALL = Shape("qwen2", blocks=2, vocabulary=300, tied=False)
# what every machine and every version of numpy must give
DIGESTS: dict[Quantisation, str] = {
    "F32": "41ccb62fe2e889e4636f3c48bccef8bdb93044a55ce8a1b1e4960b001ef16b14",
    "F16": "962bbcc0b897b2bf9bacdc51506e9b5ef30945d4de7a33a302e9b3c76fb55a51",
    "BF16": "00ec7850c97f6963cd2f095f239daf269637d71080293bdafafb82493b810a9e",
    "Q4_0": "c6afb083cd6717f166c107eaec8054179efce8f90511f7faf358b1d2ff4fbe05",
    "Q5_0": "7feef3efe3c8d78ed8c3909c50826221af38b3e42bed4391c38ecc6119f00158",
    "Q8_0": "fd340039f3a5fbaac3b2ba50b1b573cb38b1ad413bf4dba92b6856609666e81d",
    "Q4_K": "27df6a9653031f48545df3ff7c548039a064a1bac6e04a2daae5d09f87915f48",
    "Q6_K": "df7a0e6394217eb03281424c7a215ad66b2932de5c9aad33ba83db7d07594cc7",
}


def written(folder: Path, shape: Shape, kind: Quantisation, seed: int = 0) -> GgufFile:
    return read_gguf(write_random_model(folder / "model.gguf", shape, quantisation=kind, seed=seed))


def values(file: GgufFile, name: str) -> np.ndarray:
    """A tensor's rows as float32."""
    (tensor,) = (tensor for tensor in file.tensors if tensor.name == name)
    data = np.fromfile(file.path, np.uint8, tensor.nbytes, offset=tensor.offset)
    rows = data.reshape(tensor.shape[1], -1)
    return dequantize(rows, GGMLQuantizationType[tensor.type]).astype(np.float32)


@pytest.mark.parametrize("kind", get_args(Quantisation))
def test_bytes_are_the_same_everywhere(tmp_path: Path, kind: Quantisation) -> None:
    assert model_digest(written(tmp_path, SMALL, kind)) == DIGESTS[kind]


def test_another_seed_is_another_model(tmp_path: Path) -> None:
    first, second = (model_digest(written(tmp_path, SMALL, "Q8_0", seed)) for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("kind", get_args(Quantisation))
def test_weights_have_the_deviation_that_was_asked_for(tmp_path: Path, kind: Quantisation) -> None:
    file = written(tmp_path, SMALL, kind)
    weights = values(file, "blk.1.ffn_up.weight")
    assert weights.shape == (512, 256)
    assert np.isfinite(weights).all()
    assert abs(weights.std() / (2 * 256**-0.5) - 1) < 0.02
    assert abs(weights.mean()) < 0.02 * weights.std()


def test_special_tokens_are_quiet(tmp_path: Path) -> None:
    output = np.abs(values(written(tmp_path, SMALL, "Q8_0"), "output.weight"))
    assert output[-3:].max() < output[:-3].mean() / 2


def test_rows_that_are_not_whole_blocks_of_256(tmp_path: Path) -> None:
    file = written(tmp_path, Shape(embedding=96, heads=3, kv_heads=1, blocks=1), "Q4_K")
    types = {tensor.name: tensor.type for tensor in file.tensors if len(tensor.shape) == 2}
    assert types.pop("blk.0.ffn_down.weight") == "Q4_K"
    assert types.pop("token_embd.weight") == "Q8_0"
    assert set(types.values()) == {"Q5_0"}


def test_the_vocabulary_has_every_byte_and_every_word_once(tmp_path: Path) -> None:
    file = written(tmp_path, Shape(blocks=1, vocabulary=2000), "Q4_0")
    tokens = list(file.metadata["tokenizer.ggml.tokens"].strings())
    merges = list(file.metadata["tokenizer.ggml.merges"].strings())
    assert len(tokens) == len(set(tokens)) == 2000
    assert all(len(token.decode()) == 1 for token in tokens[:256])
    assert [merge.replace(b" ", b"") for merge in merges] == tokens[256:-3]
    known = set(tokens[:256])
    for merge in merges:
        assert set(merge.split(b" ")) <= known
        known.add(merge.replace(b" ", b""))


@pytest.mark.parametrize("size", [258, 2_000_000])
def test_vocabularies_that_cannot_be(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|syllables"):
        write_random_model(tmp_path / "model.gguf", Shape(vocabulary=size))
    assert list(tmp_path.iterdir()) == []


def test_the_name_is_told(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", SMALL, name="A name")
    assert read_gguf(path).text("general.name") == "A name"
    assert list(tmp_path.iterdir()) == [path]
