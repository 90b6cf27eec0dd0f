"""A toy model whose outputs depend on every row before them.

A block's output of a row is a hash of the block, of that row and of all rows that its KV cache
holds before it; so a cache with a wrong, missing or repeated row gives other text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from kwaai_core.span.hosted import Session
from kwaai_core.types import Span

WIDTH = 4
ROW = 4 * WIDTH
BLOCKS = 12


def states_of(digest: bytes) -> bytes:
    """A digest as finite float32 values, exactly."""
    return struct.pack(f"<{WIDTH}f", *digest[:WIDTH])


def embed(tokens: Sequence[int]) -> bytes:
    """What goes into block 0."""
    return b"".join(states_of(blake2b(b"%d" % token).digest()) for token in tokens)


def chosen(state: bytes) -> int:
    """The head and a greedy sampler."""
    return int.from_bytes(blake2b(state, digest_size=4).digest(), "little") % 50_000


@dataclass
class ToyCache:
    """The KV cache of some blocks, by block and stream: the rows that went in."""

    rows: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def truncate(self, span: Span, stream: int, length: int) -> bool:
        """See :class:`kwaai_core.span.host.Cache`."""
        for block in range(span.lo, span.hi):
            del self.rows.setdefault((block, stream), [])[length:]
        return True

    def run(self, session: Session) -> bytes:
        """Compute the step that a session is computing."""
        step = session.computing
        if step is None:
            raise RuntimeError("the session computes nothing")
        states = bytes(step.states)
        for block in range(session.span.lo, session.span.hi):
            held = self.rows.setdefault((block, session.stream), [])
            if len(held) != step.position:
                raise RuntimeError("a host runs a step where its cache does not end")
            out = []
            for at in range(0, len(states), ROW):
                held.append(states[at : at + ROW])
                out.append(states_of(blake2b(b"%d" % block + b"".join(held)).digest()))
            states = b"".join(out)
        return states


def plain(prompt: Sequence[int], length: int) -> list[int]:
    """The text of the whole model in one place."""
    caches: list[list[bytes]] = [[] for _ in range(BLOCKS)]
    tokens, text = list(prompt), list[int]()
    fed = 0
    while len(text) < length:
        state = b""
        for token in tokens[fed:]:
            state = embed([token])
            for block, held in enumerate(caches):
                held.append(state)
                state = states_of(blake2b(b"%d" % block + b"".join(held)).digest())
        fed = len(tokens)
        token = chosen(state)
        tokens.append(token)
        text.append(token)
    return text
