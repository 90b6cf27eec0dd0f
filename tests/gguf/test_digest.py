"""The model digest: its vectors, what it depends on and what not, and its cache."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kwaai_core.digest import cached_digest, model_digest
from kwaai_core.errors import ModelFileError
from kwaai_core.gguf import read_gguf
from kwaai_core.testing.models import Quantisation, Shape, write_random_model
from tests.gguf.vectors import EVERYTHING, TENSORS, VECTORS, Fact, Vector, on_page, sha256

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
        with_fact("tokenizer.chat_template.tool_use", b"{{ tool }}"),
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


def test_progress(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", Shape(vocabulary=20_000))
    file = read_gguf(path)
    total = sum(tensor.nbytes for tensor in file.tensors)
    seen: list[tuple[int, int]] = []
    model_digest(file, lambda done, whole: seen.append((done, whole)))
    done = [one for one, _ in seen]
    assert {whole for _, whole in seen} == {total}
    assert done == sorted(set(done))
    assert done[-1] == total
    assert len(done) > len(file.tensors), "large tensors are hashed in steps"


def test_an_exception_of_progress_ends_it(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        raise Stop

    path = tmp_path / "model.gguf"
    path.write_bytes(EVERY.file())
    with pytest.raises(Stop):
        cached_digest(read_gguf(path), tmp_path / "cache", progress)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(EVERY.file())
    file = read_gguf(path)

    def progress(done: int, total: int) -> None:
        path.write_bytes(EVERY.file() + b"more")

    with pytest.raises(ModelFileError, match="changed while it was read"):
        model_digest(file, progress)


def test_a_file_that_is_cut_short_meanwhile(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", Shape(vocabulary=20_000))
    file = read_gguf(path)
    with pytest.raises(ModelFileError, match="cut short|changed"):
        model_digest(file, lambda done, total: os.truncate(path, file.data_offset))


class Cached:
    """A file, its cache, and how often it was hashed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.gguf"
        self.cache = folder / "cache"
        self.hashed = 0
        self.path.write_bytes(EVERY.file())

    def digest(self) -> str:
        calls = 0

        def progress(done: int, total: int) -> None:
            nonlocal calls
            calls += 1

        found = cached_digest(read_gguf(self.path), self.cache, progress)
        self.hashed += bool(calls)
        return found


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    return Cached(tmp_path)


def test_the_cache_answers(cached: Cached) -> None:
    assert [cached.digest() for _ in range(3)] == [EVERY.digest] * 3
    assert cached.hashed == 1
    assert (cached.cache.stat().st_mode & 0o777) == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"digest"',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"digest": "0" * 64}).encode(),
        json.dumps({"digest": "short"}).encode(),
    ],
)
def test_a_damaged_cache_is_no_error(cached: Cached, damage: bytes) -> None:
    cached.digest()
    (place,) = cached.cache.iterdir()
    place.write_bytes(damage)
    assert cached.digest() == EVERY.digest
    assert cached.hashed == 2
    assert cached.digest() == EVERY.digest
    assert cached.hashed == 2


@pytest.mark.parametrize("said", ["0" * 63, "g" * 64, 7, None])
def test_a_digest_that_is_none_is_computed_anew(cached: Cached, said: object) -> None:
    cached.digest()
    (place,) = cached.cache.iterdir()
    place.write_text(json.dumps(json.loads(place.read_bytes()) | {"digest": said}))
    assert cached.digest() == EVERY.digest
    assert cached.hashed == 2


def test_another_file_at_the_same_path(cached: Cached) -> None:
    cached.digest()
    facts = cached.path.stat()
    other = with_tensor(0, data=bytes(68))(EVERY)
    cached.path.write_bytes(other.file())
    os.utime(cached.path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert cached.digest() == other.digest
    new = cached.path.with_suffix(".new")
    new.write_bytes(EVERY.file())
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    new.replace(cached.path)  # the same size and time, another inode
    assert cached.digest() == EVERY.digest
    assert cached.hashed == 3


def test_a_cache_that_cannot_be_written(cached: Cached) -> None:
    cached.cache.write_text("a file, not a folder")
    assert [cached.digest(), cached.digest()] == [EVERY.digest] * 2
    assert cached.hashed == 2


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    cached = Cached(folder)
    assert [cached.digest(), cached.digest()] == [EVERY.digest] * 2
    assert cached.hashed == 1
