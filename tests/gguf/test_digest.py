"""The model digest: what `docs/reference/model-digest.md` says, and what it depends on."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import model_digest
from kwaai_core.testing.models import Quantisation, Shape, write_random_model
from tests.gguf.vectors import EVERYTHING, TENSORS, VECTORS, Fact, Vector, on_page, sha256
from tests.gguf.writer import Model

EVERY = VECTORS[1]
Change = Callable[[Vector], Vector]


def digest(folder: Path, content: bytes | Vector) -> str:
    path = folder / "model.gguf"
    path.write_bytes(content.file() if isinstance(content, Vector) else content)
    return model_digest(read_gguf(path))


def with_fact(key: str, value: object, kind: str = "") -> Change:
    """Another value, and another type if it is given, for a key; None takes it out."""

    def change(vector: Vector) -> Vector:
        assert any(fact.key == key for fact in vector.facts)
        changed = [
            replace(fact, value=value, kind=kind or fact.kind) if fact.key == key else fact
            for fact in vector.facts
        ]
        return replace(vector, facts=[f for f in changed if f.value is not None])

    return change


def with_tensor(number: int, **changes: object) -> Change:
    def change(vector: Vector) -> Vector:
        tensors = list(vector.tensors)
        tensors[number] = replace(tensors[number], **changes)  # type: ignore[arg-type]
        return replace(vector, tensors=tensors)

    return change


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_another_implementation_agrees(tmp_path: Path, vector: Vector) -> None:
    assert digest(tmp_path, vector) == vector.digest


def test_the_page_has_the_vectors(tmp_path: Path) -> None:
    assert [vector.written() for vector in VECTORS] == on_page()


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_the_page_s_vectors_are_right(tmp_path: Path, number: int) -> None:
    written = on_page()[number]
    assert sha256(written["tokenizer"]) == written["document"]["tokenizer"]
    assert sha256(written["document"]) == written["digest"]
    file = base64.b64decode("".join(written["file"]))
    assert digest(tmp_path, file) == written["digest"]


@pytest.mark.parametrize(
    "change",
    [
        lambda vector: replace(vector, facts=EVERYTHING[::-1]),
        lambda vector: replace(vector, tensors=TENSORS[::-1]),
        with_fact("general.name", b"another note"),
        with_fact("general.name", None),
        with_fact("general.file_type", 1),
        with_fact("other.block_count", None),
        lambda vector: replace(vector, facts=[*EVERYTHING, Fact("general.url", "string", b"x")]),
        with_fact("tokenizer.chat_template.tool_use", b"{{ tool }}"),
    ],
)
def test_what_does_not_count(tmp_path: Path, change: Change) -> None:
    assert digest(tmp_path, change(EVERY)) == EVERY.digest


@pytest.mark.parametrize(
    "change",
    [
        with_fact("llama.context_length", 65),
        with_fact("llama.one.int8", -128, "int16"),
        with_fact("llama.one.int8", [-128]),
        with_fact("llama.one.float32", 1.0000001e-5),
        with_fact("llama.one.string", b"\x81"),
        with_fact("llama.one.string", b"80"),
        with_fact("llama.some.uint16", None),
        with_fact("llama.some.uint16", [], "int16"),
        with_fact("tokenizer.chat_template", b"{{ message }}"),
        with_fact("tokenizer.chat_template", None),
        with_fact("tokenizer.ggml.tokens", [b"a", b"", b"\xff\xfe", b"\xc3\x9f"]),
        with_fact("tokenizer.ggml.scores", [0.0, 0.0, float("inf")]),
        with_fact("tokenizer.ggml.merges", None),
        with_fact("tokenizer.ggml.bos_token_id", 2),
        with_tensor(0, data=bytes(68)),
        with_tensor(0, name=b"token_embd.bias"),
        with_tensor(0, shape=(64,)),
        with_tensor(1, kind=26),
        with_tensor(2, shape=(2, 3)),
        lambda vector: replace(vector, tensors=TENSORS[:2]),
    ],
)
def test_what_counts(tmp_path: Path, change: Change) -> None:
    assert digest(tmp_path, change(EVERY)) != EVERY.digest


def test_the_file_s_name_and_what_follows_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "another name.gguf"
    path.write_bytes(EVERY.file() + bytes(100))
    assert model_digest(read_gguf(path)) == EVERY.digest


def test_quantisations_and_seeds_are_models_of_their_own(tmp_path: Path) -> None:
    def of(quantisation: Quantisation, seed: int) -> str:
        path = tmp_path / "model.gguf"
        write_random_model(path, Shape(blocks=1), quantisation=quantisation, seed=seed, name="x")
        return model_digest(read_gguf(path))

    assert len({of("Q8_0", 0), of("Q4_0", 0), of("F16", 0), of("Q8_0", 1)}) == 4
    assert of("Q8_0", 0) == of("Q8_0", 0)


def test_a_template_that_is_empty_is_none(tmp_path: Path) -> None:
    none = with_fact("tokenizer.chat_template", None)(EVERY)
    empty = with_fact("tokenizer.chat_template", b"")(EVERY)
    assert digest(tmp_path, none) == digest(tmp_path, empty)


def test_floats_count_to_the_last_bit(tmp_path: Path) -> None:
    """Zero and minus zero are equal, and nan is not equal to itself; their bytes decide."""
    values = [0.0, -0.0, float("nan"), float("inf")]
    changes = [with_fact("llama.one.float64", value) for value in values]
    assert len({digest(tmp_path, change(EVERY)) for change in changes}) == len(values)
    assert digest(tmp_path, changes[2](EVERY)) == digest(tmp_path, changes[2](EVERY))


def test_version_and_alignment_do_not_count(tmp_path: Path) -> None:
    facts = (*EVERYTHING, Fact("general.alignment", "uint32", 128))
    pairs = tuple(fact.pair for fact in facts)
    other = bytes(Model(pairs, TENSORS, version=2, alignment=128))
    assert digest(tmp_path, other) == EVERY.digest
