"""The tokens of a session as its owner gave them to the hosts, step by step, with their tags."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kwaai_core.span.frames import Frame
from kwaai_core.span.tags import PrefixTags


class Shape(NamedTuple):
    """One step as it was recorded: ``rows`` tokens from ``position`` on. The head shall see the
    last ``outputs`` of them: the one that is followed by a token that it chooses, or all."""

    position: int
    rows: int
    outputs: int


class Recording:
    """What any lost state can be computed from again, in the shapes in which it was computed.

    ``embed`` gives the hidden states that go into block 0 for some tokens.
    """

    def __init__(self, embed: Callable[[Sequence[int]], bytes], tags: PrefixTags) -> None:
        self._embed = embed
        self._tags = tags
        self._shapes: list[Shape] = []
        self._ends: list[int] = []
        self.tokens: list[int] = []

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._shapes)

    def __getitem__(self, step: int) -> Shape:
        return self._shapes[step]

    def add(self, tokens: Sequence[int], chunk: int, *, every: bool = False) -> None:
        """More tokens, in steps of ``chunk`` rows at absolute multiples of it; the last one is
        followed by a token that the head chooses. ``every``: it shall see all rows of them."""
        start = len(self.tokens)
        self.tokens += tokens
        self._tags.extend(tokens)
        for position, rows in _cut(start, len(self.tokens), chunk):
            end = position + rows
            outputs = rows if every else int(end == len(self.tokens))
            self._shapes.append(Shape(position, rows, outputs))
            self._ends.append(end)

    def held(self, frame: Frame) -> int:
        """How many steps a host holds, by what it says of its position and the tag there."""
        length = frame.position
        if not 0 < length <= len(self.tokens) or self._tags.at(length) != frame.payload:
            return 0
        return bisect_right(self._ends, length)

    def tags(self, position: int, rows: int) -> bytes:
        """What a step of so many rows carries in front of its hidden states."""
        return self._tags.of(position, rows)

    def states(self, position: int, rows: int) -> bytes:
        """The hidden states of some tokens, as they go into block 0."""
        return self._embed(self.tokens[position : position + rows])


def _cut(start: int, end: int, chunk: int) -> Iterator[tuple[int, int]]:
    while start < end:
        rows = min(chunk - start % chunk, end - start)
        yield start, rows
        start += rows
