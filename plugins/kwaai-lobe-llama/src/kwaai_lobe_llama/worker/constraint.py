"""A grammar that an answer has to fit, on llama.cpp's sampler for it.

Like llama.cpp's own tools it draws first, and looks whether the token fits; only where it does not,
all tokens are compared with the grammar, and it draws among those that do. llama.cpp ends its
process where a token is accepted that does not fit, so none is that was not looked at.

Needs numpy, as :mod:`.logprobs` does.
"""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Set as AbstractSet

import numpy as np

from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.sampler import DeadEnd

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class GrammarRefused(Exception):
    """llama.cpp does not take a grammar."""


class Constraint:
    """A grammar, and how far an answer has come in it. ``marks`` are control tokens that it is
    written with; others have no text, so none of them fits.

    Resources: whoever made it calls :meth:`close`. Errors: :class:`GrammarRefused`.
    """

    def __init__(self, engine: Loaded, grammar: str, marks: AbstractSet[int] = frozenset()) -> None:
        self._engine = engine
        self._grammar = C.llama_sampler_init_grammar(engine.vocabulary, grammar.encode(), b"root")
        if not self._grammar:
            raise GrammarRefused
        self._candidates = np.zeros(engine.n_vocab, _CANDIDATE)
        self._numbers = np.arange(engine.n_vocab, dtype=np.int32)
        self._textless = np.array(sorted(engine.textless() - marks), dtype=np.int64)
        self._begun = b""
        self._without_text = engine.textless() - marks

    def draw(self, chain: C.llama_sampler_p, row: int) -> int:
        """Draw a token that fits by a chain of samplers from the logits of a row; :class:`DeadEnd`
        where none does."""
        logits = np.frombuffer(self._engine.logits(row), dtype="<f4")
        token = self._drawn(chain, self._filled(logits))
        if not self._fits(token):
            token = self._redrawn(chain, logits)
        C.llama_sampler_accept(chain, token)
        if not self._engine.is_end(token):
            C.llama_sampler_accept(self._grammar, token)
            self._begun = self._rest(token) or b""
        return token

    def _redrawn(self, chain: C.llama_sampler_p, logits: np.ndarray) -> int:
        array = self._filled(logits)
        self._candidates["logit"][self._textless] = -np.inf
        C.llama_sampler_apply(self._grammar, ctypes.byref(array))
        left = np.flatnonzero(self._candidates["logit"] > -np.inf)
        if not left.size:
            raise DeadEnd
        token = self._drawn(chain, array)
        if self._fits(token):
            return token
        # the grammar takes some bytes that are no UTF-8, and a draw may be rounded to no chance
        likely = map(int, left[np.argsort(-logits[left], kind="stable")])
        found = next(filter(self._fits, likely), None)
        if found is None:
            raise DeadEnd
        return found

    def _rest(self, token: int) -> bytes | None:
        """The bytes of an unfinished character after a token; None where there is no such one."""
        data = self._begun + self._engine.piece(token)
        try:
            return data[codecs.utf_8_decode(data, "strict", False)[1] :]
        except UnicodeDecodeError:
            return None

    def _filled(self, logits: np.ndarray) -> C.llama_token_data_array:
        self._candidates["id"], self._candidates["logit"] = self._numbers, logits
        data = self._candidates.ctypes.data_as(ctypes.POINTER(C.llama_token_data))
        return C.llama_token_data_array(data=data, size=logits.size, selected=-1, sorted=False)

    def _drawn(self, chain: C.llama_sampler_p, array: C.llama_token_data_array) -> int:
        C.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id) if array.selected >= 0 else -1

    def _fits(self, token: int) -> bool:
        if token < 0 or token in self._without_text or self._rest(token) is None:
            return False
        one = C.llama_token_data(token, 0.0, 0.0)
        array = C.llama_token_data_array(
            data=ctypes.pointer(one), size=1, selected=-1, sorted=False
        )
        C.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(one.logit == 0.0)

    def close(self) -> None:
        """Free the grammar."""
        C.llama_sampler_free(self._grammar)
