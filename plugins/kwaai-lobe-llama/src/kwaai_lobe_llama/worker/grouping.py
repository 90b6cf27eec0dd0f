"""Which rows share a call of ``llama_decode``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")

BRIDGED_GAP = 2
"""Idle streams that a call may carry along, as dummy rows, to remain one call.

llama.cpp splits a call silently where stream numbers are not consecutive, and each part then
passes all the weights through the caches again; a row costs about a third of that."""


def groups(items: Iterable[T], number: Callable[[T], int], most: int) -> list[list[T]]:
    """What has a row for a stream of this number, as one list a call: neighbouring streams, near
    enough, and at most ``most`` rows, those between them included."""
    runs: list[list[T]] = []
    for item in sorted(items, key=number):
        if runs and number(item) - number(runs[-1][-1]) <= BRIDGED_GAP + 1:
            runs[-1].append(item)
        else:
            runs.append([item])
    return [group for run in runs for group in _split(run, number, most)]


def _split(run: list[T], number: Callable[[T], int], most: int) -> list[list[T]]:
    """A run cut into calls of about equal width."""
    first = number(run[0])
    rows = number(run[-1]) - first + 1
    width = -(-rows // -(-rows // most))
    return [list(group) for _, group in groupby(run, lambda item: (number(item) - first) // width)]
