"""What the vectors are worth, and that a text's own depends on nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwaai_lobe_minilm.batches import BATCH_TOKENS, PIECE_CHARACTERS, batches, pieces
from kwaai_lobe_minilm.files import read_files
from kwaai_lobe_minilm.model import DIMENSIONS, FIRST, LAST, MAX_TOKENS, Model


def cosines(model: Model, *texts: str) -> list[float]:
    """Of the first text with each of the others."""
    vectors = model.vectors(model.tokens(texts))
    return [float(vectors[0] @ vector) for vector in vectors[1:]]


@pytest.mark.parametrize(
    ("texts", "near", "far"),
    [
        (("the man is eating a meal", "a person eats food", "stock markets fell sharply today"),
         0.723, -0.034),
        (("How do I reset my password?", "Steps to recover account credentials",
          "best pizza in town"), 0.610, 0.032),
        (("What did they eat for dinner?", "The meal they had in the evening",
          "Stock prices fell sharply"), 0.791, 0.043),
    ],
)  # fmt: skip
def test_meanings(model: Model, texts: tuple[str, ...], near: float, far: float) -> None:
    # another processor adds up in another order, and rounds otherwise
    assert cosines(model, *texts) == pytest.approx([near, far], abs=0.01)


def test_the_words_matter_and_not_their_case_or_spaces(model: Model) -> None:
    same, other = cosines(model, "A red  House\n", "a red house", "a house that is blue")
    assert same == pytest.approx(1, abs=1e-6)
    assert other < 0.9


def test_tokens_are_those_of_bert_and_none_is_cut_off(model: Model) -> None:
    hello, empty, unknown, many, sign = model.tokens(
        ["Hello, world!", "", "x" * 101, "word " * 1000, "naïve 世界"]
    )
    assert hello == [FIRST, 7592, 1010, 2088, 999, LAST]
    assert empty == [FIRST, LAST]
    assert unknown == [FIRST, 100, LAST]
    assert many == [FIRST, *[2773] * 1000, LAST]
    assert sign == [FIRST, 15743, 1745, 100, LAST]  # without accents, and one sign is unknown
    assert model.vocabulary == 30522


def rows(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    chance = random.Random(seed)
    return [[FIRST, *chance.choices(range(1000, 30522), k=n - 2), LAST] for n in lengths]


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(2, 40) | st.sampled_from([2, 255, 256]), min_size=1, max_size=6),
)
def test_a_vector_is_the_same_to_the_bit_in_any_batch(
    model: Model, seed: int, lengths: list[int]
) -> None:
    given_ = rows(seed, lengths)
    together = model.vectors(given_)
    backwards = model.vectors(given_[::-1])[::-1]
    alone = np.concatenate([model.vectors([row]) for row in given_])
    assert together.dtype == np.float32
    assert together.shape == (len(lengths), DIMENSIONS)
    assert together.tobytes() == backwards.tobytes() == alone.tobytes()


def test_a_vector_is_the_same_to_the_bit_with_any_number_of_threads(model: Model) -> None:
    other = Model(read_files(), threads=3)
    given_ = rows(1, [2, 3, 17, 64, 128, 256])
    assert model.vectors(given_).tobytes() == other.vectors(given_).tobytes()


@given(st.lists(st.integers(1, MAX_TOKENS), max_size=300))
def test_batches_have_every_row_once_and_keep_to_their_size(lengths: list[int]) -> None:
    found = list(batches(lengths))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[i] for i in batch)
        assert len(batch) * longest <= BATCH_TOKENS
    ordered = [lengths[i] for batch in found for i in batch]
    assert ordered == sorted(lengths)


@given(st.lists(st.integers(0, 3 * PIECE_CHARACTERS), max_size=20))
def test_pieces_are_the_texts_in_order(lengths: list[int]) -> None:
    texts = ["x" * n for n in lengths]
    found = list(pieces(texts))
    assert [text for piece in found for text in piece] == texts
    for piece in found:
        assert len(piece) == 1 or sum(map(len, piece)) <= PIECE_CHARACTERS
