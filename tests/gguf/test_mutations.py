"""Whatever is done to a file: a model, or a ModelFileError, in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kwaai_core.errors import ModelFileError
from kwaai_core.gguf import GgufFile, read_gguf
from kwaai_core.gguf.digest import model_digest
from tests.gguf.writer import ample, array, model

WHOLE = bytes(ample())
SMALL = bytes(model())
HEADER = len(ample().header())
MEBIBYTE = 1 << 20
# what a length, a count or an offset is when somebody means harm
NUMBERS = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A sound file after some accidents, most of them before the data."""
    data = bytearray(draw(st.sampled_from([WHOLE, SMALL])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(HEADER, len(data))) | st.integers(0, len(data)))
        match draw(
            st.sampled_from(["flip", "number", "insert", "remove", "copy", "cut", "extend"])
        ):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                data[at : at + 8] = struct.pack("<Q", draw(NUMBERS | st.integers(0, 2**64 - 1)))
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case "remove":
                del data[at : at + draw(st.integers(1, 40))]
            case "copy":
                other = draw(st.integers(0, len(data)))
                data[at : at + 16] = data[other : other + 16]
            case "cut":
                del data[at:]
            case "extend":
                data += draw(st.binary(max_size=40))
            case _:
                pass
    return bytes(data)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated") / "model.gguf"


def outcome(place: Path, data: bytes) -> GgufFile | None:
    place.write_bytes(data)
    try:
        file = read_gguf(place)
    except ModelFileError as error:
        assert str(place) in str(error)
        assert len(str(error)) < 10_000
        return None
    assert_within(file, len(data))
    return file


def assert_within(file: GgufFile, size: int) -> None:
    """All that was promised of a checked file."""
    assert len(model_digest(file)) == 64
    assert file.architecture and 0 < file.blocks <= 4096 and file.context_length > 0
    for tensor in file.tensors:
        assert tensor.nbytes > 0
        assert 0 < tensor.offset <= tensor.offset + tensor.nbytes <= size
    for value in file.metadata.values():
        assert len(value.numbers()) + len(list(value.strings())) == value.count


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated())
@example(WHOLE)
@example(SMALL)
@example(b"")
def test_mutations(place: Path, data: bytes) -> None:
    outcome(place, data)


@settings(deadline=None)
@given(data=st.binary(max_size=300))
def test_anything_after_the_magic(place: Path, data: bytes) -> None:
    assert outcome(place, b"GGUF" + data) is None


@settings(deadline=None)
@given(at=st.integers(0, 8 * len(WHOLE) - 1))
def test_one_bit(place: Path, at: int) -> None:
    data = bytearray(WHOLE)
    data[at // 8] ^= 1 << at % 8
    file = outcome(place, bytes(data))
    assert at // 8 < HEADER or file is not None


@settings(deadline=None)
@given(at=st.integers(0, HEADER - 8), number=NUMBERS)
def test_a_number_anywhere_costs_no_memory(place: Path, at: int, number: int) -> None:
    place.write_bytes(WHOLE[:at] + struct.pack("<Q", number) + WHOLE[at + 8 :])
    tracemalloc.start()
    try:
        outcome(place, place.read_bytes())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MEBIBYTE


def test_arrays_of_nothing_cost_what_they_weigh(place: Path) -> None:
    count = 1 << 17
    data = bytes(model({"x": array("string", [], count) + bytes(8 * count)}))
    place.write_bytes(data)
    tracemalloc.start()
    try:
        read_gguf(place)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data)
