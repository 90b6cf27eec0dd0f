"""Frames of a span link: a fixed header of 40 bytes, then the payload. All integers little-endian.

::

    kind u8 | flags u8 | rows u16 | session u64 | epoch u32 | step u32 | position u32 |
    size u32 | waited u32 | computed u32 | check u32        then ``size`` bytes

``check`` is the CRC-32 of all else in the frame, so that a damaged frame is told from a wrong one.
``waited`` and ``computed`` are microseconds. What the other fields mean depends on the kind; those
that have no meaning in it are 0.

=========  =========  =====================================================================
kind       from       meaning
=========  =========  =====================================================================
OPEN       owner      make room for a session; payload: :class:`Opening` as JSON
OPENED     host       there is room, and nothing in it; answers OPEN
STEP       owner      ``rows`` rows from ``position`` on; payload: tags, then hidden states
RESULT     host       the output of a step; payload: hidden states, none if SILENT, one if LAST
FENCE      owner      from now on this epoch; what was still under way is dropped
FENCED     host       the fence stands; ``position`` rows are held; payload: the tag there
CLOSE      owner      forget the session
FAULT      host       why a frame was refused: ``rows`` is a :class:`FaultCode`, ``position`` a
                      length or milliseconds; payload: words
HEARTBEAT  host       ``step`` calls finished, ``computed`` in the one under way
DRAIN      host       this host leaves: move the sessions elsewhere
=========  =========  =====================================================================
"""

from __future__ import annotations

import json
import struct
from enum import STRICT, IntEnum, IntFlag
from typing import NamedTuple
from zlib import crc32

from kwaai_core.errors import FrameError
from kwaai_core.types import Span

PROTOCOL = "/kwaai/span/1"
HEADER = struct.Struct("<BBHQIIIIIII")
TAG_SIZE = 8
MAX_TEXT = 1 << 16
"""The longest payload, in bytes, of a frame that carries no hidden states."""

_LONGEST_OPENING = 1024
_CHECKED = HEADER.size - 4
_CHECK = struct.Struct("<I")


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    OPENED = 2
    STEP = 3
    RESULT = 4
    FENCE = 5
    FENCED = 6
    CLOSE = 7
    FAULT = 8
    HEARTBEAT = 9
    DRAIN = 10


class Flags(IntFlag, boundary=STRICT):
    """Of STEP and RESULT. FLOAT32 is the type of the hidden states, the only one there is yet."""

    NONE = 0
    FLOAT32 = 1
    SILENT = 2
    """Fill the KV cache; nobody needs the output."""
    LAST = 4
    """Fill the KV cache; the output of the last row is all that is needed."""


class FaultCode(IntEnum):
    """Whose fault it is that a host refused a frame."""

    NEED_REPLAY = 1
    """The host holds only the first ``position`` rows of what the step builds on."""
    REQUEST = 2
    """The frame is wrong; the same one will be refused again."""
    CAPACITY = 3
    """No room now; ``position`` is after how many milliseconds to try again."""
    HOST = 4
    """The host itself failed."""


class Frame(NamedTuple):
    """One frame; see the module for what its fields mean."""

    kind: Kind
    session: int = 0
    epoch: int = 0
    step: int = 0
    position: int = 0
    rows: int = 0
    flags: Flags = Flags.NONE
    waited: int = 0
    computed: int = 0
    payload: bytes = b""


class Opening(NamedTuple):
    """What a session needs of a host: the blocks, and room for so many tokens.

    ``sender`` and ``target`` are peer ids: who sends the steps, and where outputs go. Empty is
    the owner, for both, and nothing else is accepted yet.
    """

    span: Span
    tokens: int
    sender: str = ""
    target: str = ""

    def encode(self) -> bytes:
        """As the payload of OPEN."""
        span, *rest = self
        return json.dumps([span.lo, span.hi, *rest]).encode()

    @classmethod
    def decode(cls, payload: bytes) -> Opening:
        """Errors: :class:`FrameError`."""
        try:  # a long one would take the time of others' steps
            words = payload if len(payload) <= _LONGEST_OPENING else b""
            lo, hi, tokens, sender, target = json.loads(words)
        except (ValueError, TypeError, RecursionError):
            raise FrameError("an OPEN frame has no opening in it") from None
        numbers = all(type(n) is int and 0 <= n < 1 << 31 for n in (lo, hi, tokens))
        if not (numbers and isinstance(sender, str) and isinstance(target, str) and lo < hi):
            raise FrameError("an OPEN frame has no sensible opening in it")
        return cls(Span(lo, hi), tokens, sender, target)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame, ready to be sent."""
    payload = frame.payload
    head = HEADER.pack(
        frame.kind,
        frame.flags,
        frame.rows,
        frame.session,
        frame.epoch,
        frame.step,
        frame.position,
        len(payload),
        min(frame.waited, 0xFFFFFFFF),
        min(frame.computed, 0xFFFFFFFF),
        0,
    )[:_CHECKED]
    return b"".join((head, _CHECK.pack(crc32(payload, crc32(head))), payload))


class FrameReader:
    """Bytes in, frames out. ``width`` is of a hidden state, ``most_rows`` of one step.

    Errors of :meth:`feed`: :class:`FrameError` for whatever no honest peer sends; the link is of
    no use then, since nobody knows where the next frame begins.
    """

    def __init__(self, width: int, most_rows: int) -> None:
        self._row = 4 * width
        self._most = most_rows
        self._rest = bytearray()
        self._wanted = HEADER.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with these bytes."""
        frames: list[Frame] = []
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return frames
            data = bytes(self._rest)
            self._rest.clear()
        at, end = 0, len(data)
        while end - at >= HEADER.size:
            kind, flags, rows, size = self._admitted(data, at)
            after = at + HEADER.size + size
            if after > end:
                self._wanted = HEADER.size + size
                break
            frames.append(self._frame(data, at, kind, flags, rows, size))
            at = after
        else:
            self._wanted = HEADER.size
        self._rest += data[at:]
        return frames

    def _admitted(self, data: bytes, at: int) -> tuple[Kind, Flags, int, int]:
        """Of a header, before its payload is here: what decides how long that may be."""
        number, bits, rows = struct.unpack_from("<BBH", data, at)
        (size,) = _CHECK.unpack_from(data, at + 24)
        try:
            kind, flags = Kind(number), Flags(bits)
        except ValueError:
            raise FrameError(f"a frame of the unknown kind {number}, flags {bits}") from None
        if kind is Kind.STEP or kind is Kind.RESULT:
            both = Flags.SILENT | Flags.LAST
            if not 0 < rows <= self._most or not flags & Flags.FLOAT32 or flags & both == both:
                raise FrameError(f"a {kind.name} of {rows} rows, flags {bits}")
            fits = size == self._size(kind, flags, rows)
        else:
            fits = size <= MAX_TEXT
        if not fits:
            raise FrameError(f"a {kind.name} of {rows} rows has {size} bytes")
        return kind, flags, rows, size

    def _size(self, kind: Kind, flags: Flags, rows: int) -> int:
        if kind is Kind.STEP:
            return (rows + 1) * TAG_SIZE + rows * self._row
        if flags & Flags.SILENT:
            return 0
        return self._row if flags & Flags.LAST else rows * self._row

    def _frame(self, data: bytes, at: int, kind: Kind, flags: Flags, rows: int, size: int) -> Frame:
        start = at + HEADER.size
        _, _, _, session, epoch, step, position, _, waited, computed, check = HEADER.unpack_from(
            data, at
        )
        payload = data[start : start + size]
        if crc32(payload, crc32(data[at : at + _CHECKED])) != check:
            raise FrameError(f"a {kind.name} frame was damaged on its way")
        return Frame(kind, session, epoch, step, position, rows, flags, waited, computed, payload)
