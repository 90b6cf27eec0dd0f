"""What the owner of a session sent over one boundary, kept for who must be brought to its state.

A journal is whole or dropped: replay begins at the first token, so one that lacks its beginning is
of no use. What is still on its way is kept in either case.
"""

from __future__ import annotations


class Budget:
    """How many bytes all journals of an owner may have together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    @property
    def exceeded(self) -> bool:
        return self.used > self.most


class Journal:
    """The inputs of the span that begins at one boundary, by step. Whoever made it calls
    :meth:`close`, which gives its bytes back to the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._states: dict[int, bytes] = {}
        self._keeps = True

    def put(self, step: int, states: bytes) -> None:
        """Keep the input of a step; another one takes the place of what was kept for it."""
        self.remove(step)
        self._states[step] = states
        self._budget.used += len(states)

    def get(self, step: int) -> bytes | None:
        """The input of a step, if it is kept."""
        return self._states.get(step)

    def remove(self, step: int) -> None:
        """Forget a step, if it is kept."""
        self._budget.used -= len(self._states.pop(step, b""))

    def passed(self, steps: int) -> None:
        """So many steps, from the first on, have been received: without room they are dropped."""
        if self._keeps and self._budget.exceeded:
            self._keeps = False
        if not self._keeps:
            for step in [number for number in self._states if number < steps]:
                self.remove(step)

    def first_missing(self, first: int, end: int) -> int:
        """The first step from ``first`` on that is not kept; ``end`` where all are."""
        return next((n for n in range(first, end) if n not in self._states), end)

    def close(self) -> None:
        """Forget everything."""
        for step in list(self._states):
            self.remove(step)
