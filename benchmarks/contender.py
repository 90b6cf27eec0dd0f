"""What is measured in turn: something that generates greedily for one prompt or for several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender.

    ``first_s`` is from the request to the first token, in seconds; ``rate`` the tokens a second
    of all streams together while every one of them was decoding. ``tokens`` are the distinct ids,
    where the contender knows them.
    """

    texts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    first_s: float
    rate: float
    tokens: frozenset[int] = frozenset()


class Contender(Protocol):
    """Plain llama.cpp, or a node behind its API."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes."""
        ...

    def run(self, prompts: Sequence[str], length: int) -> Run:
        """Greedily ``length`` tokens for each prompt, all at once."""
        ...
