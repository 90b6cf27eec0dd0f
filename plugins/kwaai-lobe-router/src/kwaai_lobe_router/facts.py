"""What a node announces of the blocks that it holds, and a reader that believes nothing.

*Slow facts* change when a node changes what it holds: they are the body of a signed record, one for
each model, found through the provider records under :func:`provider_key`. *Fast facts* are a status
answer, or a message on the model's topic; they count for :data:`MAX_AGE` seconds after they came.
Both are JSON in the canonical form of RFC 8785, of at most 16 KiB, times in nanoseconds: a row of a
prefill takes a small model's unit a few microseconds, and sums of whole numbers are exact.

That something is well-formed does not make it true: speed and round trips are a peer's own word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import rfc8785

from kwaai_core import FrameError, Span
from kwaai_lobe_router.fields import MAX_BYTES, MAX_NS, Fields
from kwaai_lobe_router.swarm import MAX_BLOCKS

MAX_AGE = 5.0
MAX_TOKENS = 1 << 32
MAX_BATCHES = 8
MAX_ROWS = 4096
MAX_CLAIMS = 128
DTYPES = frozenset({"float32", "bfloat16", "float16", "q8"})
"""The types of hidden states on the wire that have a name; others are left out when read."""


@dataclass(frozen=True, slots=True)
class SlowFacts:
    """Who holds what of a model, and computes it how.

    ``width`` is of a hidden state, ``blocks`` of the whole model; ``units`` are in ascending order
    and do not overlap. An ``exact`` worker takes at most ``rows`` lone rows in one call, and
    prefills in chunks of ``chunk``. A session has room for ``cells`` tokens. ``price`` is None:
    nothing has one yet.
    """

    digest: str
    architecture: str
    blocks: int
    width: int
    units: tuple[Span, ...]
    fingerprint: str
    exact: bool
    rows: int
    chunk: int
    cells: int
    dtypes: frozenset[str] = frozenset({"float32"})
    price: None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """How long a step of so many rows, one of each of as many sessions, takes through each unit."""

    rows: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FastFacts:
    """How busy a holder is, and how fast: nanoseconds, measured there.

    There are ``sessions``, of which ``waiting`` wait for a step, and room for ``room`` more tokens
    of sessions of who asks; of these, room for ``reserved`` sessions is kept for nobody else.
    ``batches`` are in ascending order of rows; ``row`` is of a row of a prefill chunk, for each
    unit. ``links`` are the round trips to other peers as this one has measured them.
    """

    digest: str
    sessions: int
    waiting: int
    room: int
    batches: tuple[Batch, ...]
    row: tuple[int, ...]
    links: Mapping[str, int]
    reserved: int = 0

    def batch(self, rows: int) -> Batch:
        """The times of the smallest batch of at least so many rows, or of the largest there is."""
        return next((batch for batch in self.batches if batch.rows >= rows), self.batches[-1])


def provider_key(digest: str) -> str:
    """The key under which holders of blocks of a model provide, and the name of their record."""
    return f"kwaai/spans/1/{digest}"


def topic(digest: str) -> str:
    """Where the fast facts of a model's holders are told."""
    return f"kwaai/spans/1/{digest}/now"


def write_slow(facts: SlowFacts) -> bytes:
    """The body of a record. Errors: :class:`FrameError` where it is too long."""
    return _written(
        {
            "digest": facts.digest,
            "architecture": facts.architecture,
            "blocks": facts.blocks,
            "width": facts.width,
            "units": [[unit.lo, unit.hi] for unit in facts.units],
            "fingerprint": facts.fingerprint,
            "exact": facts.exact,
            "rows": facts.rows,
            "chunk": facts.chunk,
            "cells": facts.cells,
            "dtypes": sorted(facts.dtypes),
            "price": facts.price,
        }
    )


def write_fast(facts: FastFacts) -> bytes:
    """A status answer. Errors: :class:`FrameError` where it is too long."""
    return _written(
        {
            "digest": facts.digest,
            "sessions": facts.sessions,
            "waiting": facts.waiting,
            "room": facts.room,
            "batches": [[batch.rows, list(batch.steps)] for batch in facts.batches],
            "row": list(facts.row),
            "links": dict(facts.links),
            "reserved": facts.reserved,
        }
    )


def _written(fields: dict[str, Any]) -> bytes:
    body = rfc8785.dumps(fields)
    if len(body) > MAX_BYTES:
        raise FrameError(f"an announcement of {len(body)} bytes is too long: at most {MAX_BYTES}")
    return body


def read_slow(body: bytes) -> SlowFacts:
    """Slow facts of a peer; fields that are not known yet are left out.

    Errors: :class:`NotVerified`, which names the field.
    """
    fields = Fields(body)
    blocks = fields.whole("blocks", 1, MAX_BLOCKS)
    dtypes = frozenset(fields.each("dtypes", 16, fields.word)) & DTYPES
    if "float32" not in dtypes:
        fields.wrong("dtypes", "must have float32")
    if fields.get("price") is not None:
        fields.wrong("price", "nothing has a price yet")
    return SlowFacts(
        digest=fields.digest(),
        architecture=fields.word("architecture", fields.get("architecture")),
        blocks=blocks,
        width=fields.whole("width", 1, 1 << 20),
        units=_units(fields, blocks),
        fingerprint=fields.word("fingerprint", fields.get("fingerprint")),
        exact=fields.flag("exact"),
        rows=fields.whole("rows", 1, MAX_ROWS),
        chunk=fields.whole("chunk", 1, MAX_ROWS),
        cells=fields.whole("cells", 1, MAX_TOKENS),
        dtypes=dtypes,
    )


def read_fast(body: bytes, slow: SlowFacts) -> FastFacts:
    """Fast facts of the peer whose slow facts these are.

    Errors: :class:`NotVerified`, which names the field; where the two do not fit too.
    """
    fields = Fields(body)
    if fields.digest() != slow.digest:
        fields.wrong("digest", "is of another model than the slow facts")
    units = len(slow.units)
    sessions_at_most = 1 << 20
    sessions = fields.whole("sessions", 0, sessions_at_most)
    return FastFacts(
        digest=slow.digest,
        sessions=sessions,
        waiting=fields.whole("waiting", 0, 1 << 20),
        room=fields.whole("room", 0, MAX_TOKENS),
        batches=_batches(fields, units),
        row=fields.times("row", fields.get("row"), units),
        links=_links(fields),
        reserved=fields.whole("reserved", 0, sessions_at_most),
    )


def _units(fields: Fields, blocks: int) -> tuple[Span, ...]:
    def unit(name: str, value: object) -> Span:
        lo, hi = fields.pair(name, value)
        lo = fields.bounded(name, lo, 0, blocks - 1)
        return Span(lo, fields.bounded(name, hi, lo + 1, blocks))

    units = fields.each("units", MAX_BLOCKS, unit)
    if not units or any(one.hi > other.lo for one, other in pairwise(units)):
        fields.wrong("units", "must be one or more, in order, and not overlap")
    return units


def _batches(fields: Fields, units: int) -> tuple[Batch, ...]:
    def batch(name: str, value: object) -> Batch:
        rows, steps = fields.pair(name, value)
        return Batch(fields.bounded(name, rows, 1, MAX_ROWS), fields.times(name, steps, units))

    batches = fields.each("batches", MAX_BATCHES, batch)
    if not batches or any(one.rows >= other.rows for one, other in pairwise(batches)):
        fields.wrong("batches", "must be one or more, in ascending order of rows")
    return batches


def _links(fields: Fields) -> Mapping[str, int]:
    links = fields.get("links")
    if not isinstance(links, dict) or len(links) > MAX_CLAIMS:
        fields.wrong("links", f"must be an object of at most {MAX_CLAIMS}")
    return {
        fields.word("links", peer): fields.bounded("links", time, 0, MAX_NS)
        for peer, time in links.items()
    }
