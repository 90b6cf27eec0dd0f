"""How a digest is computed: its progress, files that change meanwhile, and what is remembered."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import trio

from kwaai_core.errors import ModelFileError
from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import cached_digest, model_digest
from kwaai_core.testing.models import Shape, write_random_model
from tests.gguf.writer import Described, ample, model


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


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    cached = Cached(folder)
    assert cached() == cached()
    assert cached.computed == 1
