"""A set of texts as a tree: what they have in common is followed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class Branch:
    """``text``, and after it nothing where that ``ends``, or one of the others."""

    text: str
    ends: bool
    others: tuple[Branch, ...]


def branches(texts: Iterable[str]) -> tuple[Branch, ...]:
    """Texts, by how they begin."""
    return _branches(sorted(set(texts)), 0)


def _branches(texts: Sequence[str], at: int) -> tuple[Branch, ...]:
    return tuple(
        _branch(list(some), at) for _, some in groupby(texts, lambda text: text[at : at + 1])
    )


def _branch(texts: list[str], at: int) -> Branch:
    first, last = texts[0], texts[-1]  # they are sorted: the others have as much in common
    pairs = enumerate(zip(first, last, strict=False))
    common = first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))]
    ends = first == common
    return Branch(common[at:], ends, _branches(texts[ends:], len(common)))


def widest(tree: Sequence[Branch], ends: bool = False) -> int:
    """How many ways there are to go on at one place, at most; ``ends``: ending here is one."""
    return max([len(tree) + ends, *(widest(branch.others, branch.ends) for branch in tree)])
