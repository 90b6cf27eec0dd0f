"""The model digest is what `docs/reference/model-digest.md` says, and no more than that."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kwaai_core.digest import cached_digest, model_digest
from kwaai_core.errors import ModelFileError
from kwaai_core.gguf import read_gguf
from kwaai_core.testing.models import Shape, write_random_model
from tests.gguf.writer import Described, Model, Pair, ample, array, model, scalar

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "model-digest.md"
FILE, TOKENIZER, DOCUMENT, DIGEST = re.findall(r"```\w+\n(.*?)\n```", PAGE.read_text(), re.DOTALL)


def digest(folder: Path, content: Model | bytes) -> str:
    path = folder / "model.gguf"
    path.write_bytes(bytes(content))
    return model_digest(read_gguf(path))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_vector_of_the_page(tmp_path: Path) -> None:
    assert digest(tmp_path, base64.b64decode(FILE)) == DIGEST


def test_the_page_agrees_with_itself() -> None:
    document = json.loads(DOCUMENT)
    assert sha256(DOCUMENT.encode()) == DIGEST
    assert document["tokenizer"] == sha256(TOKENIZER.encode())
    assert document["template"] == sha256(b"{{ messages }}")
    hashes = {name: hashed for name, _, _, hashed in document["tensors"]}
    assert hashes["token_embd.weight"] == sha256(bytes(range(256)))
    assert str(len(base64.b64decode(FILE))) in PAGE.read_text()


def changed(edit: Callable[[dict[str, bytes]], object]) -> Model:
    """The ample model with other pairs."""
    sound = ample()
    pairs = {pair.key.decode(): pair.value for pair in sound.pairs}
    edit(pairs)
    return replace(sound, pairs=tuple(Pair(key.encode(), value) for key, value in pairs.items()))


def test_what_does_not_count(tmp_path: Path) -> None:
    first = digest(tmp_path, ample())
    notes = {"general.name": scalar("string", b"other"), "llamas.x": scalar("uint8", 1)}
    assert digest(tmp_path, changed(lambda pairs: pairs.update(notes))) == first
    backwards = replace(ample(), pairs=ample().pairs[::-1], tensors=ample().tensors[::-1])
    assert digest(tmp_path, backwards) == first
    aligned = changed(lambda pairs: pairs.update({"general.alignment": scalar("uint32", 128)}))
    assert digest(tmp_path, replace(aligned, alignment=128)) == first
    assert digest(tmp_path, replace(ample(), version=2)) == first
    assert digest(tmp_path, bytes(ample()) + b"more") == first


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.context_length", scalar("uint32", 65)),
        ("llama.new", scalar("uint8", 0)),
        ("llama.one.uint8", scalar("int8", 1)),
        ("llama.one.float32", scalar("float32", 1 + 2**-23)),
        ("llama.one.uint64", scalar("uint64", 2**63 + 1)),
        ("llama.one.bool", scalar("bool", False)),
        ("llama.some.uint32", array("uint32", [0, 1])),
        ("llama.one.int32", array("int32", [1])),
        ("tokenizer.ggml.tokens", array("string", [b"a", b"", b"\xff\xfd", "ß".encode()])),
        ("tokenizer.chat_template", scalar("string", b"{{ message }}")),
        ("tokenizer.chat_template.tools", scalar("string", b"{{ tools }}")),
    ],
)
def test_metadata_that_counts(tmp_path: Path, key: str, value: bytes) -> None:
    other = changed(lambda pairs: pairs.update({key: value}))
    assert digest(tmp_path, other) != digest(tmp_path, ample())


def test_a_template_that_is_empty_is_none(tmp_path: Path) -> None:
    none = changed(lambda pairs: pairs.pop("tokenizer.chat_template"))
    empty = changed(lambda pairs: pairs.update({"tokenizer.chat_template": scalar("string", b"")}))
    assert digest(tmp_path, none) == digest(tmp_path, empty) != digest(tmp_path, ample())


@pytest.mark.parametrize(
    "tensor",
    [
        Described(b"other"),
        Described(shape=(16, 2)),
        Described(kind=26),
        Described(data=bytes(127) + b"\1"),
    ],
)
def test_tensors_that_count(tmp_path: Path, tensor: Described) -> None:
    assert digest(tmp_path, model(tensors=(tensor,))) != digest(tmp_path, model())


def test_floats_count_to_the_last_bit(tmp_path: Path) -> None:
    """Zero and minus zero are equal, and nan is not equal to itself; their bytes decide."""
    values = [0.0, -0.0, float("nan"), float("inf")]
    found = {digest(tmp_path, model({"llama.x": scalar("float64", value)})) for value in values}
    assert len(found) == len(values)
    nan = model({"llama.x": scalar("float64", float("nan"))})
    assert digest(tmp_path, nan) == digest(tmp_path, nan)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", Shape(embedding=512, vocabulary=20_000))
    file, seen = read_gguf(path), list[tuple[int, int]]()
    model_digest(file, lambda done, total: seen.append((done, total)))
    size = sum(tensor.nbytes for tensor in file.tensors)
    assert seen[-1] == (size, size)
    assert {total for _, total in seen} == {size}
    steps = [done - before for (before, _), (done, _) in zip([(0, 0), *seen], seen, strict=False)]
    assert sum(steps) == size
    assert all(0 < step <= 1 << 22 for step in steps)


async def test_a_thread_can_be_cancelled(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", Shape())
    file, started, calls = read_gguf(path), trio.Event(), 0
    seen = threading.Event()

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        trio.from_thread.run_sync(started.set)
        seen.wait(10)
        trio.from_thread.check_cancelled()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, model_digest, file, progress)
        await started.wait()
        nursery.cancel_scope.cancel()
        seen.set()
    assert calls == 1


def test_a_file_that_changed_since_it_was_checked(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(ample()))
    file = read_gguf(path)
    path.write_bytes(bytes(ample()) + b"more")
    with pytest.raises(ModelFileError, match="changed while it was read"):
        model_digest(file)
    path.unlink()
    with pytest.raises(ModelFileError, match="No such file"):
        model_digest(file)


def test_a_file_that_is_cut_short_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(ample()))

    def cut(done: int, total: int) -> None:
        os.truncate(path, 100)

    with pytest.raises(ModelFileError, match="cut short while it was read"):
        model_digest(read_gguf(path), cut)


def test_a_file_that_changes_while_its_last_tensor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(model()))
    with pytest.raises(ModelFileError, match="changed while it was read"):
        model_digest(read_gguf(path), lambda done, total: os.utime(path, (1, 1)))


class Cached:
    """A file, a folder that remembers its digest, and how often that was computed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.gguf"
        self.path.write_bytes(bytes(model()))
        self.folder = folder / "deep" / "digests"
        self.computed = 0

    def __call__(self) -> str:
        return cached_digest(read_gguf(self.path), self.folder, self._count)

    def _count(self, done: int, total: int) -> None:
        self.computed += done == total


@pytest.fixture
def cached(tmp_path: Path) -> Cached:
    return Cached(tmp_path)


def test_a_digest_is_computed_once(cached: Cached) -> None:
    assert cached() == cached() == model_digest(read_gguf(cached.path))
    assert cached.computed == 1
    assert [path.suffix for path in cached.folder.iterdir()] == [".json"]
    assert cached.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["size", "mtime", "inode", "path"])
def test_each_change_of_a_file_is_noticed(cached: Cached, what: str) -> None:
    first, facts = cached(), cached.path.stat()
    content = bytes(model(tensors=(Described(data=bytes(127) + b"\1"),)))
    other = cached.path.with_name("other.gguf")
    match what:
        case "size":
            cached.path.write_bytes(content + b"more")
            os.utime(cached.path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        case "mtime":
            cached.path.write_bytes(content)
            os.utime(cached.path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        case "inode":
            other.write_bytes(content)
            os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            other.replace(cached.path)
        case "path":
            other.write_bytes(content)
            cached.path = other
    assert cached() == model_digest(read_gguf(cached.path)) != first
    assert cached.computed == 2
    assert len(list(cached.folder.iterdir())) == (2 if what == "path" else 1)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\0" * 200, b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"digest": "abc"}'],
)
def test_a_damaged_memory_is_replaced(cached: Cached, damage: bytes) -> None:
    first = cached()
    (place,) = cached.folder.iterdir()
    sound = place.read_bytes()
    place.write_bytes(damage)
    assert cached() == first
    assert place.read_bytes() == sound


@pytest.mark.parametrize("digest", ['"x"', '"' + "F" * 64 + '"', "1", "null", '"' + "0" * 65 + '"'])
def test_what_cannot_be_a_digest_is_not_believed(cached: Cached, digest: str) -> None:
    first = cached()
    (place,) = cached.folder.iterdir()
    place.write_text(place.read_text().replace(f'"{first}"', digest))
    assert cached() == first


def test_a_folder_that_cannot_be_written_costs_only_time(cached: Cached) -> None:
    cached.folder.parent.write_text("a file where the folder should be")
    assert cached() == cached()
    assert cached.computed == 2
