"""The probabilities of the tokens of one answer, from the logits of the model itself.

This is the only module of a worker that needs numpy, which takes a tenth of a second to import and
20 MB; so it is imported with the first request that asks for probabilities.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from kwaai_core import Logprob, TokenLogprob
from kwaai_lobe_llama.worker.loaded import Loaded


class LogprobReader:
    """Keeps the probabilities of an answer's tokens until their text is shown; with ``most`` of the
    likeliest tokens beside each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._taken = self._shown = 0

    @property
    def waiting(self) -> bool:
        """Whether there are tokens that were not told."""
        return bool(self._waiting)

    def take(self, engine: Loaded, row: int, token: int) -> None:
        """A token was drawn from the logits of a row of the engine's last call."""
        drawn = self.read(engine, row, token, engine.piece(token))
        self._waiting.append((self._taken, drawn))
        self._taken += len(drawn.token)

    def read(self, engine: Loaded, row: int, token: int, piece: bytes) -> TokenLogprob:
        """What the logits of a row of the engine's last call say of a token."""
        logits = np.frombuffer(engine.logits(row), dtype="<f4").astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        top = tuple(_of(engine, logits, int(other)) for other in _likeliest(logits, self._most))
        return TokenLogprob(piece, float(logits[token]), top)

    def shown(self, size: int) -> list[TokenLogprob]:
        """So many bytes of text more are shown: the tokens that begin in them."""
        self._shown += size
        found = []
        while self._waiting and self._waiting[0][0] < self._shown:
            found.append(self._waiting.popleft()[1])
        return found

    def rest(self) -> list[TokenLogprob]:
        """Nothing more is shown, and nothing was cut off: the tokens without text of their own."""
        found = [told for _, told in self._waiting]
        self._waiting.clear()
        return found


def _of(engine: Loaded, logprobs: np.ndarray, token: int) -> Logprob:
    return Logprob(engine.piece(token), float(logprobs[token]))


def _likeliest(logprobs: np.ndarray, most: int) -> np.ndarray:
    """The tokens with the largest, the first first; of equals the lower number first."""
    if not most:
        return np.empty(0, dtype=np.int64)
    most = min(most, logprobs.size)
    least = np.partition(logprobs, -most)[-most]
    found = np.flatnonzero(logprobs >= least)
    return found[np.lexsort((found, -logprobs[found]))][:most]
