"""Random models are models to llama.cpp: they read every byte, and their text does not loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import get_args

import llama_cpp
import pytest

from kwaai_core.testing.models import Architecture, Quantisation, Shape, write_random_model

Load = Callable[..., llama_cpp.Llama]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    opened: list[llama_cpp.Llama] = []

    def load(shape: Shape, kind: Quantisation = "Q8_0", seed: int = 0) -> llama_cpp.Llama:
        path = write_random_model(tmp_path / "model.gguf", shape, quantisation=kind, seed=seed)
        opened.append(llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False))
        return opened[-1]

    yield load
    for model in opened:
        model.close()


def greedy(model: llama_cpp.Llama, prompt: bytes, count: int) -> list[int]:
    model.reset()  # type: ignore[no-untyped-call]
    tokens = model.generate(model.tokenize(prompt), temp=0.0, repeat_penalty=1.0)
    return list(islice(tokens, count))


@pytest.mark.parametrize("architecture", get_args(Architecture))
@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q4_K"])
def test_greedy_text_does_not_loop(
    load: Load, architecture: Architecture, kind: Quantisation
) -> None:
    model = load(Shape(architecture), kind)
    tokens = greedy(model, b"hello world", 100)
    assert len(set(tokens)) >= 50
    assert not set(tokens) & set(range(509, 512))  # no special token ends it
    assert greedy(model, b"Hello world", 100) != tokens


@pytest.mark.parametrize("kind", get_args(Quantisation))
def test_untied_models_of_every_quantisation(load: Load, kind: Quantisation) -> None:
    assert len(set(greedy(load(Shape(tied=False), kind), b"a", 100))) >= 50


def test_every_byte_can_be_read(load: Load) -> None:
    model = load(Shape(blocks=1))
    text = "".join(map(chr, range(1, 0x250))) + "日本語 😀\n\t "
    tokens = model.tokenize(text.encode(), add_bos=False)
    assert model.detokenize(tokens) == text.encode()


def test_every_word_is_one_token(load: Load) -> None:
    model = load(Shape(blocks=1, vocabulary=5000))
    for token in range(256, 4997):
        word = model.detokenize([token], prev_tokens=[300])
        assert model.tokenize(word, add_bos=False) == [token], word


def test_the_chat_template_is_laid_out(load: Load) -> None:
    model = load(Shape(blocks=1))
    text = b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokens = model.tokenize(text, add_bos=False, special=True)
    assert (tokens[0], tokens.count(510), tokens.count(511)) == (510, 2, 1)
    assert model.token_eos() == 511
    assert "<|im_start|>" in model.metadata["tokenizer.chat_template"]
