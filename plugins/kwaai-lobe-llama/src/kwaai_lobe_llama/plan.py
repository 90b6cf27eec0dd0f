"""How a worker shall run a model: every number that decides its memory, its speed and its bits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of one loaded model; they never change while it is loaded.

    ``context`` is in tokens of one session, ``streams`` how many sessions there may be at once,
    each with KV cells of its own. A call of ``llama_decode`` holds either at most ``max_rows``
    rows of decoding sessions or one prefill chunk of at most ``chunk`` rows; ``min_rows`` 2 pads
    a lone row, for weights whose kernels treat it otherwise. ``exact`` promises that the logits
    of a session do not depend on who else is served (see :mod:`kwaai_lobe_llama.worker.exact`).
    """

    path: str
    digest: str
    context: int
    streams: int
    threads: int
    gpu_layers: int = 0
    k_type: str = "f16"
    v_type: str = "f16"
    flash_attention: bool = True
    unified: bool = False
    repack: bool = True
    max_rows: int = 8
    min_rows: int = 1
    chunk: int = 512
    exact: bool = False
    gate_folder: str = ""

    @property
    def cells(self) -> int:
        """KV cells of one session: llama.cpp makes its context a multiple of 256."""
        return padded(self.context)

    def scored_rows(self, vocabulary: int) -> int:
        """Rows of a call that may all have logits, which take four bytes for each token there is.

        An exact worker does not cut a chunk of a prompt in pieces, whose kernels might differ.
        """
        rows = max(_FEWEST_SCORED, _SCORED_BYTES // (4 * max(vocabulary, 1)))
        return EXACT_CHUNK if self.exact else min(rows, self.chunk, EXACT_CHUNK)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cls(**json.loads(text))

    def as_exact(self, *, max_rows: int, min_rows: int) -> Plan:
        """This plan under the rules of an exact worker, measured in `docs/explanation/exact.md`.

        K and V of different types keep llama.cpp from both attention paths whose bits depend on
        the shape of a call; without repacked weights and a unified cache nothing else does,
        within the row limits that the gate then proves.
        """
        return replace(
            self,
            k_type="bf16",
            v_type="f16",
            flash_attention=True,
            unified=False,
            repack=False,
            max_rows=max_rows,
            min_rows=min_rows,
            chunk=EXACT_CHUNK,
            exact=True,
        )


def padded(tokens: int) -> int:
    """The cells of a context of so many tokens."""
    return -(-tokens // PAD) * PAD


PAD = 256

_SCORED_BYTES = 16 << 20
_FEWEST_SCORED = 16

EXACT_CHUNK = 128
"""Rows of a canonical prefill chunk of an exact worker, at absolute multiples of itself."""


def takes_turns(cores: int, threads: int) -> bool:
    """Whether two computations of so many threads would be in one another's way on these cores."""
    return 2 * threads > cores
