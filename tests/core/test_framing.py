"""Frames come out of a stream as they went in, however it was cut; anything else is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import FrameError, KwaaiError, StreamEnded
from kwaai_core.framing import END, FrameReader, framed

LIMIT = 300
frames = st.lists(st.binary(max_size=LIMIT), max_size=8)


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes, cut anywhere; some pieces may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    return [data[lo:hi] for lo, hi in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read(parts: list[bytes]) -> tuple[list[bytes], type[KwaaiError] | None]:
    """All frames that are in the pieces, and the error that came behind them, if one did."""
    reader, found = FrameReader(LIMIT), list[bytes]()
    for part in parts:
        reader.feed(part)
        try:
            while (frame := reader.take()) is not None:
                found.append(frame)
        except (FrameError, StreamEnded) as error:
            with pytest.raises(type(error)):
                reader.take()
            return found, type(error)
    return found, None


@given(frames, st.data())
def test_frames_come_out_as_they_went_in(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(framed(frame, LIMIT) for frame in sent)
    assert read(data.draw(pieces(stream))) == (sent, None)
    assert read(data.draw(pieces(stream + END + b"whatever"))) == (sent, StreamEnded)


@given(frames, st.binary(max_size=2000), st.data())
def test_garbage_gives_what_it_gives_however_it_is_cut(
    sent: list[bytes], garbage: bytes, data: st.DataObject
) -> None:
    stream = b"".join(framed(frame, LIMIT) for frame in sent) + garbage
    whole, error = read([stream])
    assert whole[: len(sent)] == sent
    assert read(data.draw(pieces(stream))) == (whole, error)


@given(st.integers(LIMIT + 1, 0xFFFF_FFFE))
def test_a_length_over_the_limit_is_refused_before_its_bytes_come(size: int) -> None:
    with pytest.raises(FrameError, match=str(size)):
        reader = FrameReader(LIMIT)
        reader.feed(size.to_bytes(4, "big"))
        reader.take()


def test_only_frames_within_the_limit_are_made() -> None:
    assert framed(bytes(LIMIT), LIMIT)[4:] == bytes(LIMIT)
    with pytest.raises(FrameError, match="301 bytes"):
        framed(bytes(LIMIT + 1), LIMIT)
    for limit in (-1, 0xFFFF_FFFF):
        with pytest.raises(ValueError, match="limited"):
            FrameReader(limit)


def test_every_kind_of_buffer_is_a_frame() -> None:
    """A view may have items of several bytes, and gaps between them."""
    numbers = memoryview(bytes(range(16))).cast("I")
    for frame in (b"\1\2", bytearray(b"\1\2"), memoryview(b"\1\2"), numbers, numbers[::2]):
        reader = FrameReader(LIMIT)
        reader.feed(framed(frame, LIMIT))
        assert reader.take() == bytes(frame)
