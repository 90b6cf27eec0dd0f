"""Frames: what is sent is read, and nothing else is believed."""

from __future__ import annotations

import struct
from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import FrameError
from kwaai_core.span.frames import (
    HEADER,
    MAX_TEXT,
    TAG_SIZE,
    Flags,
    Frame,
    FrameReader,
    Kind,
    Opening,
    encode,
)
from kwaai_core.testing.toy import ROW, WIDTH
from kwaai_core.types import Span

MOST = 8
U32 = st.integers(0, 2**32 - 1)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(Kind))
    flags, rows = Flags.NONE, draw(st.integers(0, 2**16 - 1))
    payload = draw(st.binary(max_size=100))
    if kind in (Kind.STEP, Kind.RESULT):
        rows = draw(st.integers(1, MOST))
        more = draw(st.sampled_from([Flags.NONE, Flags.SILENT, Flags.LAST]))
        flags = Flags.FLOAT32 | more
        size = rows * ROW
        if kind is Kind.STEP:
            size += (rows + 1) * TAG_SIZE
        elif more:
            size = ROW if more is Flags.LAST else 0
        payload = draw(st.binary(min_size=size, max_size=size))
    return Frame(
        kind,
        draw(st.integers(0, 2**64 - 1)),
        draw(U32),
        draw(U32),
        draw(U32),
        rows,
        flags,
        draw(U32),
        draw(U32),
        payload,
    )


STEP = Frame(Kind.STEP, 7, 1, 2, 3, 2, Flags.FLOAT32, payload=bytes(range(3 * TAG_SIZE + 2 * ROW)))
CLOSE = Frame(Kind.CLOSE, 7, 1)


def reader() -> FrameReader:
    return FrameReader(WIDTH, MOST)


@given(st.lists(frames(), max_size=6), st.lists(st.integers(0, 2000)))
def test_what_is_sent_is_read_in_whatever_pieces(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode(frame) for frame in sent)
    ends = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reading = reader()
    read = [frame for lo, hi in pairwise(ends) for frame in reading.feed(data[lo:hi])]
    assert read == sent


def test_byte_by_byte() -> None:
    reading = reader()
    data = encode(STEP) + encode(CLOSE)
    assert [f for at in range(len(data)) for f in reading.feed(data[at : at + 1])] == [STEP, CLOSE]


def test_the_layout_on_the_wire() -> None:
    data = encode(STEP)
    assert HEADER.size == 40 and len(data) == 40 + len(STEP.payload)
    assert data[:24] == struct.pack("<BBHQIII", Kind.STEP, 1, 2, 7, 1, 2, 3)
    assert data[24:28] == struct.pack("<I", len(STEP.payload))


@given(st.data())
def test_one_damaged_bit_is_never_read_as_a_frame(data: st.DataObject) -> None:
    sent = bytearray(encode(STEP))
    bit = data.draw(st.integers(0, 8 * len(sent) - 1))
    sent[bit // 8] ^= 1 << bit % 8
    try:
        assert reader().feed(bytes(sent)) == []  # it waits for a payload that is longer
    except FrameError:
        pass


def header(kind: int, flags: int, rows: int, size: int) -> bytes:
    checked = HEADER.pack(kind, flags, rows, 1, 1, 1, 1, size, 0, 0, 0)[:-4]
    return checked + struct.pack("<I", crc32(checked))


@pytest.mark.parametrize(
    ("kind", "flags", "rows", "size"),
    [
        (0, 0, 0, 0),
        (99, 0, 0, 0),
        (Kind.CLOSE, 8, 0, 0),
        (Kind.CLOSE, 255, 0, 0),
        (Kind.STEP, 0, 1, 2 * TAG_SIZE + ROW),
        (Kind.STEP, Flags.SILENT, 1, 2 * TAG_SIZE + ROW),
        (Kind.STEP, Flags.FLOAT32, 0, TAG_SIZE),
        (Kind.STEP, Flags.FLOAT32, MOST + 1, (MOST + 2) * TAG_SIZE + (MOST + 1) * ROW),
        (Kind.STEP, Flags.FLOAT32, 1, 2 * TAG_SIZE + ROW + 1),
        (Kind.STEP, Flags.FLOAT32, 1, 2**32 - 1),
        (Kind.RESULT, Flags.FLOAT32, 1, ROW - 4),
        (Kind.RESULT, Flags.FLOAT32, 1, 0),
        (Kind.RESULT, Flags.FLOAT32 | Flags.SILENT, 1, ROW),
        (Kind.RESULT, Flags.FLOAT32 | Flags.LAST, 2, 2 * ROW),
        (Kind.RESULT, Flags.FLOAT32 | Flags.LAST, 1, 0),
        (Kind.STEP, Flags.FLOAT32 | Flags.LAST | Flags.SILENT, 1, 2 * TAG_SIZE + ROW),
        (Kind.OPEN, 0, 0, MAX_TEXT + 1),
        (Kind.HEARTBEAT, 0, 0, 2**32 - 1),
    ],
)
def test_a_header_that_no_honest_peer_sends_is_refused_before_its_payload(
    kind: int, flags: int, rows: int, size: int
) -> None:
    with pytest.raises(FrameError, match="a frame of the unknown kind|rows"):
        reader().feed(header(kind, flags, rows, size))


def test_the_longest_text_is_read() -> None:
    frame = Frame(Kind.FAULT, payload=bytes(MAX_TEXT))
    assert reader().feed(encode(frame)) == [frame]


def test_a_damaged_payload_names_its_kind() -> None:
    data = encode(STEP)
    with pytest.raises(FrameError, match="a STEP frame was damaged"):
        reader().feed(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_frame_that_never_ends_keeps_no_more_than_its_length() -> None:
    reading = reader()
    data = header(Kind.FAULT, 0, 0, MAX_TEXT)
    for _ in range(MAX_TEXT // 16):
        assert reading.feed(data) == []
        data = bytes(16)
    with pytest.raises(FrameError, match="damaged"):
        reading.feed(bytes(16))


def test_times_that_are_too_long_are_cut() -> None:
    frame = Frame(Kind.HEARTBEAT, waited=2**40, computed=2**33)
    (read,) = reader().feed(encode(frame))
    assert read.waited == read.computed == 2**32 - 1


# -- openings


@given(st.integers(0, 2**30), st.integers(1, 999), U32, st.text(max_size=9), st.text(max_size=9))
def test_an_opening_is_read_as_it_was_sent(
    lo: int, blocks: int, tokens: int, sender: str, target: str
) -> None:
    opening = Opening(Span(lo, lo + blocks), tokens >> 1, sender, target)
    assert Opening.decode(opening.encode()) == opening


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"{}",
        b"[0, 4]",
        b"[0, 4, 9, 0, 0]",
        b'[4, 4, 9, "", ""]',
        b'[-1, 4, 9, "", ""]',
        b'[0, 4.0, 9, "", ""]',
        b'[0, true, 9, "", ""]',
        b'[0, 4, 99999999999, "", ""]',
        b'[0, 4, 1e999, "", ""]',
        b"[" * 60_000,
        b"1" * 60_000,
        b'[0, 4, 9, "", "%s"]' % (b"x" * 2000),
    ],
)
def test_an_opening_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError, match="opening"):
        Opening.decode(payload)


@given(st.binary(max_size=200))
def test_any_other_opening_is_refused(payload: bytes) -> None:
    try:
        assert Opening.decode(payload).span.lo >= 0
    except FrameError:
        pass
