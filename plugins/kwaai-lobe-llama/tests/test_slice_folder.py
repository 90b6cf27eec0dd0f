"""The folder of slices: what is in use stays, and of the rest what was used last."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from io import BufferedReader
from pathlib import Path

import pytest

from kwaai_core import ModelFileError, Span
from kwaai_core.gguf import read_gguf
from kwaai_lobe_llama import slice_folder
from kwaai_lobe_llama.slice_digest import write_digest
from kwaai_lobe_llama.slice_folder import SliceFolder
from kwaai_lobe_llama.slicing import FORMAT, slice_span

Make = Callable[[Path], Path]


def making(name: str, size: int = 10) -> Make:
    """Makes a file of the current format where there is none yet."""

    def make(folder: Path) -> Path:
        path = folder / f"{name}-v{FORMAT}-0-1.gguf"
        if not path.exists():
            path.write_bytes(bytes(size))
            write_digest(path, sha256(bytes(size)).hexdigest())
        return path

    return make


def names(folder: SliceFolder) -> list[str]:
    there = {path.stem: path for path in folder.path.iterdir()}  # a slice and its digest are one
    return sorted(name.partition("-")[0] for name in there)


def use(folder: SliceFolder, *each: str) -> None:
    for name in each:
        with folder.using(making(name)):
            pass


def test_what_was_not_used_for_the_longest_time_makes_room(tmp_path: Path) -> None:
    folder = SliceFolder(tmp_path, most=30)
    use(folder, "a", "b", "c", "a", "d")
    assert names(folder) == ["a", "c", "d"]
    assert folder.size() == 30


def test_what_is_in_use_stays_however_old_it_is(tmp_path: Path) -> None:
    folder, other = SliceFolder(tmp_path, most=10), SliceFolder(tmp_path, most=10)
    with folder.using(making("a")) as a:
        use(other, "b", "c", "d")
        assert a.exists()
        assert names(folder) == ["a", "d"]  # d was in use when room was last made
    use(folder, "e")
    assert names(folder) == ["e"]


def test_what_another_version_has_left_goes_first(tmp_path: Path) -> None:
    folder = SliceFolder(tmp_path, most=1000)
    old = tmp_path / f"x-v{FORMAT - 1}-0-1.gguf"
    old.write_bytes(bytes(10))
    (tmp_path / "notes.txt").write_text("not a slice")
    use(folder, "a")
    assert names(folder) == ["a", "notes"]


def test_a_slice_that_goes_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    folder = SliceFolder(tmp_path, most=1000)
    made: list[Path] = []

    def make(path: Path) -> Path:
        made.append(making("a")(path))
        if len(made) == 1:
            made[0].unlink()
        return made[-1]

    with folder.using(make) as path:
        assert path.exists()
    assert len(made) == 2


def test_what_a_user_of_a_slice_raises_is_passed_on(tmp_path: Path) -> None:
    folder = SliceFolder(tmp_path, most=1000)
    with pytest.raises(FileNotFoundError, match="of the user"), ExitStack() as stack:
        stack.enter_context(folder.using(making("a")))
        raise FileNotFoundError("of the user")


def flip(path: Path, at: int) -> None:
    """Change one bit of a file, with the time that it had."""
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def damage(path: Path) -> None:
    flip(path, path.stat().st_size - 1)


def damage_digest(path: Path) -> None:
    flip(path.with_suffix(".sha256"), 0)


def lose_digest(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("harm", [damage, damage_digest, lose_digest])
def test_a_slice_that_is_not_what_was_written_is_made_again(
    qwen2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    make = partial(slice_span, read_gguf(qwen2), "d1ce" * 16, Span(0, 2))
    with SliceFolder(tmp_path, most=1 << 30).using(make) as path:
        written, made = path.read_bytes(), path.stat().st_ino
    with SliceFolder(tmp_path, most=1 << 30).using(make) as path:
        assert path.stat().st_ino == made
    harm(path)
    assert not caplog.records
    with SliceFolder(tmp_path, most=1 << 30).using(make) as path:
        assert path.read_bytes() == written
    (record,) = caplog.records
    assert str(path) in record.message


def test_a_slice_is_compared_once_by_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, compare = list[Path](), slice_folder.is_as_written

    def counted(path: Path, file: BufferedReader) -> bool:
        compared.append(path)
        return compare(path, file)

    monkeypatch.setattr(slice_folder, "is_as_written", counted)
    folder = SliceFolder(tmp_path, most=1000)
    use(folder, "a", "b", "a")
    assert len(compared) == 2
    (tmp_path / compared[0].name).unlink()
    use(folder, "a", "b", "a")  # another file of that name
    assert len(compared) == 3


def test_a_disk_that_keeps_nothing_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    folder = SliceFolder(tmp_path, most=1000)

    def make(path: Path) -> Path:
        damage(made := making("a")(path))
        return made

    with pytest.raises(ModelFileError, match="disk"), folder.using(make):
        pass


def test_what_makes_room_takes_its_digest_with_it(tmp_path: Path) -> None:
    folder = SliceFolder(tmp_path, most=10)
    use(folder, "a", "b")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gguf", ".sha256"]
