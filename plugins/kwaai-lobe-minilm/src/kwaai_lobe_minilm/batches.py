"""How many texts go at a time: so few that a batch ends soon, and of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BATCH_TOKENS = 512
"""Padding included. On two cores of an AMD EPYC a thread does 6,000 to 7,000 tokens a second with
256 and more at a time, and no more than that with 2,048; so a batch takes a tenth of a second."""

PIECE_CHARACTERS = 1 << 16
"""Of texts that are made into tokens at a time: some tens of milliseconds."""


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indexes of rows of these lengths, the shortest first, in batches."""
    batch = list[int]()
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, as many at a time as have few characters together."""
    piece, size = list[str](), 0
    for text in texts:
        if piece and size + len(text) > PIECE_CHARACTERS:
            yield piece
            piece, size = [], 0
        piece.append(text)
        size += len(text)
    if piece:
        yield piece
