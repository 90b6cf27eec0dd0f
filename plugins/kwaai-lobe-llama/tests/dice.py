"""Answers of a model that knows nothing: random logits under a real grammar and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kwaai_core import Sampling
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.constraint import Constraint
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.sampler import Sampler

MOST = 2000


class Dice(Loaded):
    """A vocabulary whose model draws by lot, and likes to come to an end."""

    def __init__(self, path: Path) -> None:
        super().__init__(Plan(str(path), "", context=64, streams=1, threads=1), 1)
        closing = [self.piece(token)[:1] in (b'"', b"}", b"]") for token in range(self.n_vocab)]
        ending = [self.is_end(token) for token in range(self.n_vocab)]
        self._bonus = np.where(closing, 9.0, 0.0) + np.where(ending, 20.0, 0.0)
        self.token_of = {self.piece(token): token for token in range(self.n_vocab)}
        self._draw = np.random.default_rng(0)

    def seed(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)

    def logits(self, row: int) -> bytes:
        drawn = self._draw.normal(0, 3, self.n_vocab) + self._bonus
        return bytes(drawn.astype("<f4").tobytes())

    def write(self, grammar: str, sampling: Sampling, most: int = MOST) -> str | None:
        """A text that fits a grammar; None where it has become too long."""
        constraint = Constraint(self, grammar)
        sampler = Sampler(sampling, self.n_vocab, (), constraint)
        text = b""
        try:
            for _ in range(most):
                token = sampler.sample(self, 0)
                if self.is_end(token):
                    return text.decode()
                text += self.piece(token)
        finally:
            sampler.close()
        return None


@contextmanager
def dice(path: Path) -> Iterator[Dice]:
    made = Dice(path)
    try:
        yield made
    finally:
        made.close()


def fits(engine: Dice, grammar: str, text: str) -> bool:
    """Whether a text is one of a grammar, from its first character to its last."""
    constraint = Constraint(engine, grammar)
    try:
        for byte in text.encode():
            token = engine.token_of[bytes([byte])]
            if not constraint._fits(token):
                return False
            C.llama_sampler_accept(constraint._grammar, token)
            constraint._begun = constraint._rest(token) or b""
        return constraint._fits(C.llama_vocab_eos(engine.vocabulary))
    finally:
        constraint.close()
