"""What the reader refuses: each way in which a file can be wrong, alone."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from kwaai_core.errors import ModelFileError
from kwaai_core.gguf import MAX_ELEMENTS, MAX_HEADER, MAX_STRING, TENSOR_TYPES, read_gguf
from tests.gguf.writer import CODES, ORDINARY, Described, Model, ample, array, model, scalar, string

REMOVED = set(range(64)) - set(TENSOR_TYPES)
TWO = (Described(b"a", data=bytes(128)), Described(b"b", data=bytes(128)))


def read(folder: Path, content: Model | bytes) -> None:
    path = folder / "model.gguf"
    path.write_bytes(bytes(content))
    read_gguf(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (model(magic=b"GGML"), "begin with GGUF"),
        (b"GGU", "the magic goes beyond the end"),
        (b"GGUF\3\0", "the version goes beyond the end"),
        (model(version=0), "version is 0"),
        (model(version=1), "version is 1"),
        (model(version=4), "version is 4"),
        (model(order=">"), "big-endian"),
        (model(tensor_count=2**63), "the number of tensors is 9223372036854775808"),
        (model(tensor_count=2**16 + 1), "the number of tensors"),
        (model(tensor_count=0, tensors=()), "0 tensors"),
        (model(pair_count=2**63), "the number of metadata pairs"),
        (model(pair_count=2**14 + 1), "the number of metadata pairs"),
        (model(tensor_count=2), "a tensor's name is empty"),
        (model(pair_count=5), "not printable|beyond the end|unknown type"),
    ],
)
def test_headers(tmp_path: Path, content: Model | bytes, reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ({"": scalar("uint8", 1)}, "a key is empty"),
        ({"x\n": scalar("uint8", 1)}, "not printable"),
        ({"x\x1b[2J": scalar("uint8", 1)}, "not printable"),
        ({"k" * 4097: scalar("uint8", 1)}, "length of a key is 4097"),
        ({"x": struct.pack("<I", 13)}, "x has the unknown type 13"),
        ({"x": struct.pack("<I", 2**32 - 1)}, "unknown type 4294967295"),
        ({"x": struct.pack("<IIQ", 9, 13, 0)}, "unknown type 13"),
        ({"x": struct.pack("<IIQ", 9, 9, 0)}, "array of arrays"),
        ({"x": struct.pack("<IB", 7, 2)}, "neither 0 nor 1"),
        ({"x": struct.pack("<IIQ", 9, 7, 4) + b"\0\1\2\1"}, "neither 0 nor 1"),
        ({"x": array("uint8", [], 2**62)}, "the length of x"),
        ({"x": array("uint64", [], 2**61)}, "the length of x"),
        ({"x": array("uint8", [], MAX_ELEMENTS + 1)}, "the length of x"),
        ({"x": array("string", [], MAX_ELEMENTS // 2)}, "string of x"),
        ({"x": array("float64", [], MAX_ELEMENTS // 2)}, "goes beyond the end"),
        ({"x": struct.pack("<IQ", 8, MAX_STRING + 1)}, "string of x is too long"),
        ({"x": struct.pack("<IQ", 8, 2**64 - 1)}, "string of x is too long"),
        ({"x": struct.pack("<IQ", 8, 2**20)}, "string of x"),
        ({"x": struct.pack("<IIQQ", 9, 8, 2, 0) + struct.pack("<Q", 2**64 - 8)}, "string of x"),
    ],
)
def test_metadata(tmp_path: Path, pairs: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read(tmp_path, model(pairs))


def test_a_key_that_is_not_utf_8(tmp_path: Path) -> None:
    sound = model({"abc": scalar("uint8", 1)})
    with pytest.raises(ModelFileError, match="a key is not UTF-8"):
        read(tmp_path, bytes(sound).replace(b"abc", b"a\xffc"))


def test_a_key_that_occurs_twice(tmp_path: Path) -> None:
    sound = model()
    with pytest.raises(ModelFileError, match="the key general.architecture occurs twice"):
        read(tmp_path, replace(sound, pairs=(*sound.pairs, sound.pairs[0])))


@pytest.mark.parametrize(
    ("alignment", "said"),
    [
        (scalar("uint32", 0), "is 0"),
        (scalar("uint32", 3), "is 3"),
        (scalar("uint32", 4), "is 4"),
        (scalar("uint32", 48), "is 48"),
        (scalar("uint32", 2**31), "is 2147483648"),
        (scalar("uint64", 32), "not a power"),
        (scalar("int32", 32), "not a power"),
        (scalar("string", b"32"), "not a power"),
        (array("uint32", [32]), "not a power"),
    ],
)
def test_alignment(tmp_path: Path, alignment: bytes, said: str) -> None:
    with pytest.raises(ModelFileError, match=f"general.alignment.*{said}"):
        read(tmp_path, model({"general.alignment": alignment}))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (Described(b""), "name is empty"),
        (Described(b"a\0b"), "not printable"),
        (Described(b"\xff"), "name is not UTF-8"),
        (Described(b"n" * 64), "length of a tensor's name is 64"),
        (Described(shape=(1, 1, 1, 1, 1)), "5 dimensions"),
        (Described(shape=(0,), data=b""), "has the shape"),
        (Described(shape=(32, 0), data=b""), "has the shape"),
        (Described(shape=(2**63,)), "a dimension of"),
        (Described(shape=(2**40, 2**40, 2**40, 2**40)), "has the shape"),
        (Described(shape=(2**32, 2**32)), "has the shape"),
        (Described(shape=(2**31, 2**17)), "beyond the end of the file: it is truncated"),
        (Described(shape=(33,), kind=8), "has the shape"),
        (Described(shape=(255,), kind=12), "has the shape"),
        (Described(shape=(16, 2), kind=2), "has the shape"),
        (Described(offset=32), "is at 32, and should be at 0"),
        (Described(offset=2**64 - 32), "offset of"),
        (Described(shape=(33,)), "truncated"),
    ],
)
def test_tensors(tmp_path: Path, tensor: Described, reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        read(tmp_path, model(tensors=(tensor,)))


@pytest.mark.parametrize("kind", sorted(REMOVED | {2**31, 2**32 - 1}))
def test_types_that_are_removed_or_unknown(tmp_path: Path, kind: int) -> None:
    with pytest.raises(ModelFileError, match=f"unknown or removed type {kind} "):
        read(tmp_path, model(tensors=(Described(kind=kind),)))


@pytest.mark.parametrize("offset", [0, 64, 96, 127, 129, 160, 256])
def test_gaps_and_overlaps(tmp_path: Path, offset: int) -> None:
    read(tmp_path, model(tensors=TWO))
    tensors = (TWO[0], replace(TWO[1], offset=offset))
    with pytest.raises(ModelFileError, match=f"b is at {offset}, and should be at 128"):
        read(tmp_path, model(tensors=tensors))


def test_tensors_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the tensor a occurs twice"):
        read(tmp_path, model(tensors=(TWO[0], TWO[0])))


def test_every_truncation(tmp_path: Path) -> None:
    whole = bytes(ample())
    read(tmp_path, whole)
    for length in range(1, len(whole)):
        with pytest.raises(ModelFileError, match=rf"truncated.*it has {length} bytes"):
            read(tmp_path, whole[:length])


def test_a_header_beyond_its_limit(tmp_path: Path) -> None:
    # sparse: it takes no room on the disk
    path = tmp_path / "sparse.gguf"
    long = struct.pack("<IQ", 8, MAX_STRING - 100)
    count = MAX_HEADER // MAX_STRING + 2
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1, count))
        for number in range(count):
            file.write(string(b"x%d" % number) + long)
            file.seek(MAX_STRING - 100, os.SEEK_CUR)
        file.truncate()
    with pytest.raises(ModelFileError, match="string of x8|bytes that a header may have"):
        read_gguf(path)


def test_many_arrays_have_one_limit(tmp_path: Path) -> None:
    half = array("uint8", [], MAX_ELEMENTS // 2) + bytes(MAX_ELEMENTS // 2)
    one = array("uint8", [1])
    ordinary = len(ORDINARY)
    rest = array("uint8", [0] * (MAX_ELEMENTS // 2 - ordinary))
    read(tmp_path, model({"x": half, "y": rest}))
    with pytest.raises(ModelFileError, match=f"z makes more than {MAX_ELEMENTS} values in all"):
        read(tmp_path, model({"x": half, "y": rest, "z": one}))


@pytest.mark.parametrize("what", ["block_count", "embedding_length", "context_length"])
def test_hyper_parameters(tmp_path: Path, what: str) -> None:
    key = f"llama.{what}"
    with pytest.raises(ModelFileError, match=f"{key} is missing"):
        read(tmp_path, model(without=key))
    for kind in CODES:
        if kind != "uint32":
            with pytest.raises(ModelFileError, match=f"{key} is missing, or not a single uint32"):
                read(tmp_path, model({key: scalar(kind, 1)}))
    for value in (scalar("string", b"1"), array("uint32", [1]), array("uint32", [])):
        with pytest.raises(ModelFileError, match=f"{key} is missing, or not a single uint32"):
            read(tmp_path, model({key: value}))
    for number in (0, 2**31, 2**32 - 1):
        with pytest.raises(ModelFileError, match=f"{key} is {number}, out of range"):
            read(tmp_path, model({key: scalar("uint32", number)}))


def test_more_blocks_than_anyone_has(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="4097 blocks"):
        read(tmp_path, model({"llama.block_count": scalar("uint32", 4097)}))


@pytest.mark.parametrize(
    "named",
    [
        scalar("string", b""),
        scalar("string", b"lla\nma"),
        scalar("string", b"\xff"),
        scalar("string", "läma".encode()),
        scalar("string", b"l" * 65),
        scalar("uint32", 1),
        array("string", [b"llama"]),
    ],
)
def test_architectures(tmp_path: Path, named: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"general\.architecture"):
        read(tmp_path, model({"general.architecture": named}))


def test_no_architecture(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"general\.architecture"):
        read(tmp_path, model(without="general.architecture"))


@pytest.mark.parametrize("template", [scalar("uint32", 1), array("string", [b"a"])])
def test_a_template_that_is_not_a_string(tmp_path: Path, template: bytes) -> None:
    with pytest.raises(ModelFileError, match="chat_template is not a string"):
        read(tmp_path, model({"tokenizer.chat_template": template}))


def test_one_part_of_a_split_file(tmp_path: Path) -> None:
    read(tmp_path, model({"split.count": scalar("uint16", 1)}))
    with pytest.raises(ModelFileError, match="merge them with llama-gguf-split --merge"):
        read(tmp_path, model({"split.count": scalar("uint16", 2)}))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("/", "not a regular file"),
        ("/nowhere/model.gguf", "No such file"),
        ("/a\0b", "null"),
    ],
)
def test_what_is_no_file(path: str, reason: str) -> None:
    with pytest.raises(ModelFileError, match=f"cannot be read as a model: .*{reason}"):
        read_gguf(Path(path))


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="it is empty"):
        read(tmp_path, b"")


def test_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_gguf(pipe)


def test_refusals_leave_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for content in (b"", b"GGUF", bytes(model(version=1))):
        with pytest.raises(ModelFileError):
            read(tmp_path, content)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_place_is_told(tmp_path: Path) -> None:
    sound = model({"x": array("string", [b"a" * 10, b"b" * 10])})
    header = sound.header()
    second = header.index(b"b" * 10)
    with pytest.raises(ModelFileError, match=rf"a string of x .*\(at byte {second}\)"):
        read(tmp_path, header[: second + 5])
    with pytest.raises(ModelFileError, match=rf"a string of x .*\(at byte {second - 8}\)"):
        read(tmp_path, header[: second - 1])
