"""The folder of slices: what is in use stays, and of the rest what was used last."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kwaai_lobe_llama.slice_folder import SliceFolder
from kwaai_lobe_llama.slicing import FORMAT

Make = Callable[[Path], Path]


def making(name: str, size: int = 10) -> Make:
    """Makes a file of the current format where there is none yet."""

    def make(folder: Path) -> Path:
        path = folder / f"{name}-v{FORMAT}-0-1.gguf"
        if not path.exists():
            path.write_bytes(bytes(size))
        return path

    return make


def names(folder: SliceFolder) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.path.iterdir())


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
    assert names(folder) == ["a", "notes.txt"]


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
