"""Parts of a model on llama.cpp: hidden states in, and hidden states, or logits, out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

from kwaai_lobe_llama.plan import EXACT_CHUNK, PAD, Plan
from kwaai_lobe_llama.worker.bindings import C, ggml
from kwaai_lobe_llama.worker.loaded import EngineError, Loaded

Place = tuple[int, int]
"""Where a row goes: its position, and its stream."""


OUTPUT = b"l_out-%d"
"""What llama.cpp names the output of a block."""


class SpanEngine(Loaded):
    """A slice of blocks. Its output is what its last block gives, before any norm: the tensor that
    llama.cpp names ``l_out`` and the number of the block, taken as the graph is computed.

    Names are compared only from the node on at which it was found last, since a context's graphs
    have the same nodes in the same order, those of quiet calls and the others. Where that was no
    longer so, a call would fail, and the next one would look at all of them again."""

    def __init__(self, plan: Plan) -> None:
        self._capacity = max(plan.chunk, plan.streams + 1)
        # llama.cpp drops the rows that are no outputs before the last block is done
        super().__init__(plan, self._capacity)
        self._states = _States(self._capacity, self.width)

    @property
    def width(self) -> int:
        """Values of one hidden state."""
        return int(C.llama_model_n_embd(self.model))

    def _arrange(self, params: C.llama_context_params) -> None:
        wanted = OUTPUT % (C.llama_model_n_layer(self.model) - 1)
        output = (ctypes.c_float * (self._capacity * self.width))()
        address, room = ctypes.addressof(output), ctypes.sizeof(output)
        self._output = memoryview(output).cast("B")
        self._taken = self._asked = self._turn = 0
        self._turns = {False: 0, True: 0}

        def take(tensor: int, ask: bool, _: object) -> bool:
            if ask:  # of every node of the graph, hundreds of times a call
                self._asked += 1
                return self._asked >= self._turn and bool(ggml.ggml_get_name(tensor) == wanted)
            size = ggml.ggml_nbytes(tensor)
            if not self._taken:  # where a call is split, more follow, and run() says so
                ggml.ggml_backend_tensor_get(tensor, address, 0, min(size, room))
                self._taken, self._turn = size, self._asked
            return False  # what llama.cpp has after it is not needed

        # llama.cpp keeps the pointer, so this stays
        self._take = params.cb_eval = C.ggml_backend_sched_eval_callback(take)

    def run(
        self, states: Sequence[memoryview], places: Sequence[Place], *, quiet: bool = False
    ) -> memoryview:
        """Run rows, of which ``states`` are the hidden states, in order, in any number of parts.

        The result, ``(len(places), width) float32``, is good until the next call. ``quiet``: it is
        the last row alone, and what only the output of the others needs is not computed, as in any
        prompt of llama.cpp. Errors: :class:`Aborted`; :class:`EngineError` where llama.cpp fails.
        """
        self._taken = self._asked = 0
        self._turn = self._turns[quiet]
        wanted = 1 if quiet else len(places)
        self._run(self._states.filled(states, places, outputs=wanted))
        row = self.width * 4
        if self._taken != wanted * row:
            self._turns[quiet] = 0
            raise EngineError(
                f"llama.cpp gave the states of {self._taken // row} of {wanted} rows at once: "
                "it has split the call, or names its tensors otherwise"
            )
        self._turns[quiet] = self._turn
        return self._output[: self._taken]


class HeadEngine(Loaded):
    """The head: final norm, output matrix and vocabulary, behind a block that changes nothing.

    That block has a cache too, with one cell for each row of a call, emptied before the next. A
    call has at least the plan's least number of rows; those that nobody asked for are blank.
    """

    def __init__(self, plan: Plan) -> None:
        rows = max(plan.streams, plan.min_rows)
        shape = replace(plan, context=PAD, chunk=max(rows, EXACT_CHUNK), streams=rows)
        super().__init__(shape, rows, scored=True)
        self.plan = replace(plan, max_rows=min(plan.max_rows, plan.streams))
        self._states = _States(max(rows, self.scored_rows), self.width)
        self._blank = bytes(self.width * 4)

    @property
    def width(self) -> int:
        """Values of one hidden state."""
        return int(C.llama_model_n_embd(self.model))

    def run_head(self, states: Sequence[bytes]) -> None:
        """Run one hidden state for each of some answers; their logits are then in order."""
        C.llama_memory_clear(self.memory, False)
        rows = [*states, *[self._blank] * (self.plan.min_rows - len(states))]
        self._run(self._states.filled(rows, [(0, stream) for stream in range(len(rows))]))

    def score(self, states: memoryview) -> None:
        """Run hidden states of one prompt, ``scored_rows`` at the most; the logits are in order."""
        C.llama_memory_clear(self.memory, False)
        rows = len(states) // len(self._blank)
        blanks = [memoryview(self._blank)] * (self.plan.min_rows - rows)
        places = [(position, 0) for position in range(max(rows, self.plan.min_rows))]
        self._run(self._states.filled([states, *blanks], places))


class _States:
    """A ``llama_batch`` of hidden states over arrays of our own."""

    def __init__(self, capacity: int, width: int) -> None:
        ints = ctypes.c_int32 * capacity
        self._values = (ctypes.c_float * (capacity * width))()
        self._bytes = memoryview(self._values).cast("B")
        self._positions, self._streams, self._ones = ints(), ints(), ints(*[1] * capacity)
        self._outputs = (ctypes.c_int8 * capacity)(*[1] * capacity)
        pointer = ctypes.POINTER(ctypes.c_int32)
        base = ctypes.addressof(self._streams)
        self._pointers = (pointer * capacity)(
            *(ctypes.cast(base + 4 * i, pointer) for i in range(capacity))
        )
        self._batch = C.llama_batch(
            n_tokens=0,
            token=None,
            embd=ctypes.cast(self._values, ctypes.POINTER(ctypes.c_float)),
            pos=ctypes.cast(self._positions, pointer),
            n_seq_id=ctypes.cast(self._ones, pointer),
            seq_id=ctypes.cast(self._pointers, ctypes.POINTER(pointer)),
            logits=ctypes.cast(self._outputs, ctypes.POINTER(ctypes.c_int8)),
        )

    def filled(
        self,
        states: Sequence[memoryview] | Sequence[bytes],
        places: Sequence[Place],
        *,
        outputs: int | None = None,
    ) -> C.llama_batch:
        """A batch; ``outputs``: of so many rows, the last ones, instead of all."""
        first = 0 if outputs is None else len(places) - outputs
        at = 0
        for part in states:
            end = at + len(part)
            self._bytes[at:end] = part
            at = end
        for row, (position, stream) in enumerate(places):
            self._positions[row], self._streams[row] = position, stream
            self._outputs[row] = row >= first
        self._batch.n_tokens = len(places)
        return self._batch
