"""A whole model on llama.cpp: tokens in, logits out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.loaded import Loaded


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a call: a token at a position of a stream, and whether its logits are wanted."""

    token: int
    position: int
    stream: int
    output: bool = True


class Engine(Loaded):
    """A loaded model that is whole."""

    def __init__(self, plan: Plan) -> None:
        # logits of a whole chunk would cost 300 MB
        super().__init__(plan, plan.streams + 1, scored=True)
        self._rows = _Batch(max(self.plan.chunk, self.plan.streams + 1))

    def decode(self, rows: Sequence[Row]) -> None:
        """Run rows; the logits of those that are outputs are then in the order of the rows.

        Errors: :class:`Aborted`; :class:`EngineError` where llama.cpp fails.
        """
        self._rows.fill(rows)
        self._run(self._rows.sized(len(rows)))

    def prefill(self, tokens: Sequence[int], position: int, stream: int, *, output: bool) -> None:
        """Run consecutive tokens of one stream; ``output``: the logits of the last are wanted."""
        self._rows.fill_run(tokens, position, stream, self.plan.min_rows if output else 0)
        self._run(self._rows.sized(len(tokens)))

    def score(self, tokens: Sequence[int], position: int, stream: int) -> None:
        """Run consecutive tokens of one stream, the logits of all of which are wanted: of
        ``scored_rows`` at the most."""
        self._rows.fill_run(tokens, position, stream, len(tokens))
        self._run(self._rows.sized(len(tokens)))


class _Batch:
    """A ``llama_batch`` over arrays of our own, filled by slices."""

    def __init__(self, capacity: int) -> None:
        ints = ctypes.c_int32 * capacity
        self._tokens, self._positions, self._streams = ints(), ints(), ints()
        self._outputs = (ctypes.c_int8 * capacity)()
        self._ones = ints(*[1] * capacity)
        pointer = ctypes.POINTER(ctypes.c_int32)
        base = ctypes.addressof(self._streams)
        self._pointers = (pointer * capacity)(
            *(ctypes.cast(base + 4 * i, pointer) for i in range(capacity))
        )
        self.batch = C.llama_batch(
            n_tokens=0,
            token=ctypes.cast(self._tokens, pointer),
            embd=None,
            pos=ctypes.cast(self._positions, pointer),
            n_seq_id=ctypes.cast(self._ones, pointer),
            seq_id=ctypes.cast(self._pointers, ctypes.POINTER(pointer)),
            logits=ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8)),
        )

    def sized(self, rows: int) -> C.llama_batch:
        self.batch.n_tokens = rows
        return self.batch

    def fill(self, rows: Sequence[Row]) -> None:
        for i, row in enumerate(rows):
            self._tokens[i], self._positions[i] = row.token, row.position
            self._streams[i], self._outputs[i] = row.stream, row.output

    def fill_run(self, tokens: Sequence[int], position: int, stream: int, outputs: int) -> None:
        n = len(tokens)
        self._tokens[:n] = list(tokens)
        self._positions[:n] = list(range(position, position + n))
        self._streams[:n] = [stream] * n
        self._outputs[:n] = [i >= n - outputs for i in range(n)]
