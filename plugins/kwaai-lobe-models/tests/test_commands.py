"""`kwaai models`, run as a user runs it."""

from __future__ import annotations

import os
import pty
import resource
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from kwaai_core.gguf import read_gguf
from kwaai_core.gguf.digest import model_digest


def test_from_the_first_to_the_last(kwaai, write) -> None:
    path = write("My Tiny_Model.Q8_0.gguf")
    digest = model_digest(read_gguf(path))
    assert kwaai("ls") == ""
    assert kwaai.json("ls") == []
    assert kwaai("add", path) == f"my-tiny-model-q8-0  {digest}\n"
    assert f"added           {datetime.now():%Y-%m}" in kwaai("show", "my-tiny-model-q8-0")
    assert kwaai("ls").startswith("my-tiny-model-q8-0  ")
    assert kwaai("ls").endswith(f" MB  {digest[:12]}  {path}\n")
    shown = kwaai("show", "my-tiny-model-q8-0")
    assert digest in shown
    assert "ready" in shown
    for name in (digest, digest[:6]):
        assert kwaai.json("show", name) == kwaai.json("ls")[0]
    assert (
        kwaai("rm", digest[:8])
        == f"my-tiny-model-q8-0 is no longer offered; {path} is still there\n"
    )
    assert path.exists()
    assert kwaai.json("ls") == []


def test_without_models_it_says_how_to_add_one_and_how_to_see_all(kwaai) -> None:
    process = kwaai.start("ls")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    added, all_ = err.splitlines()
    assert added.startswith("no models were added: kwaai models add FILE")
    socket = kwaai.folder / "state" / "node.sock"
    assert all_.endswith(f": curl --unix-socket {socket} http://localhost/v1/models")


def test_json(kwaai, write) -> None:
    path = write("tiny.gguf")
    added = kwaai.json("add", path, "--id", "Me/tiny:v1")
    facts = path.stat()
    assert added == {
        "id": "Me/tiny:v1",
        "digest": model_digest(read_gguf(path)),
        "path": str(path),
        "architecture": "llama",
        "blocks": 1,
        "context_length": 4096,
        "size": facts.st_size,
        "mtime": facts.st_mtime_ns,
        "inode": facts.st_ino,
        "added": added["added"],
        "condition": "ready",
    }
    assert kwaai.json("ls") == [added]


def test_a_relative_path_is_remembered_as_a_whole_one(kwaai, write, monkeypatch) -> None:
    path = write("tiny.gguf")
    monkeypatch.chdir(path.parent)
    assert kwaai.json("add", "tiny.gguf")["path"] == str(path)


def test_nothing_is_said_of_hashing_where_nobody_watches(kwaai, write) -> None:
    process = kwaai.start("add", write("tiny.gguf"))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_file_that_cannot_grow_is_no_bug(kwaai, write) -> None:
    path = write("tiny.gguf")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # which the command inherits
    try:
        process = kwaai.start("add", path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: File too large: ")
    assert f"(the state folder is {kwaai.folder / 'state'})" in err
    assert len(err.splitlines()) == 1
    assert kwaai("add", path).startswith("tiny  ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"GGUF", "beyond the end of the file"),
        (b"PK\3\4 an archive", "does not begin with GGUF"),
    ],
)
def test_bad_files(kwaai, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert said in kwaai("add", path, fails=1)
    assert kwaai.json("ls") == []


def test_what_is_no_file(kwaai, tmp_path: Path) -> None:
    assert "No such file" in kwaai("add", tmp_path / "nowhere.gguf", fails=1)
    assert "not a regular file" in kwaai("add", tmp_path, fails=1)
    os.mkfifo(tmp_path / "pipe.gguf")
    assert "not a regular file" in kwaai("add", tmp_path / "pipe.gguf", fails=1)


def test_a_truncated_file(kwaai, write) -> None:
    path = write("tiny.gguf")
    os.truncate(path, path.stat().st_size - 1)
    assert "truncated" in kwaai("add", path, fails=1)


def test_wrong_words(kwaai) -> None:
    for words in (["add"], ["show"], ["rm"], ["nonsense"], ["ls", "--nonsense"]):
        process = kwaai.start(*words)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "Usage:" in err


def test_duplicates(kwaai, write) -> None:
    kwaai("add", write("tiny.gguf"))
    said = kwaai("add", write("other.gguf"), fails=1)
    assert "this model is there already, as tiny" in said
    assert "kwaai models rm tiny" in said
    assert "another model with the id tiny" in kwaai("add", write("a/tiny.gguf", 1), fails=1)
    assert kwaai.json("add", write("a/tiny.gguf", 1), "--id", "tiny-2")["id"] == "tiny-2"
    assert [entry["id"] for entry in kwaai.json("ls")] == ["tiny", "tiny-2"]


@pytest.mark.parametrize("id_", ["a b", "a\nb", "\x1b[2J", "/a", "-a", "ä", "a" * 129])
def test_ids_that_nobody_could_type(kwaai, write, id_: str) -> None:
    assert "cannot be an id" in kwaai("add", write("tiny.gguf"), f"--id={id_}", fails=1)
    assert kwaai.json("ls") == []


def test_a_file_with_no_letters_in_its_name(kwaai, write) -> None:
    assert kwaai.json("add", write("__.gguf"))["id"] == "model"


def test_names_that_are_not_there(kwaai, write) -> None:
    said = "there is no model “tiny” among those that were added (none)"
    assert said in kwaai("show", "tiny", fails=1)
    digest = kwaai.json("add", write("tiny.gguf"))["digest"]
    for command in ("show", "rm"):
        assert "were added (tiny)" in kwaai(command, "other", fails=1)
        assert "there is no model" in kwaai(command, digest[:5], fails=1)


def test_files_that_vanish_change_and_come_back(kwaai, write) -> None:
    path = write("tiny.gguf")
    kwaai("add", path)
    away = path.rename(path.with_name("away"))
    assert kwaai.json("show", "tiny")["condition"] == "missing"
    assert kwaai("ls").endswith("  missing\n")
    away.rename(path)
    assert kwaai.json("show", "tiny")["condition"] == "ready"
    os.utime(path, ns=(1, 1))
    assert kwaai("ls").endswith("  changed\n")
    path.unlink()
    assert kwaai("rm", "tiny").endswith("is gone\n")


def test_a_file_that_moved_is_added_in_its_own_place(kwaai, write) -> None:
    path = write("tiny.gguf")
    kwaai("add", path)
    moved = path.rename(path.with_name("moved.gguf"))
    assert kwaai("add", moved).startswith("tiny  ")
    (entry,) = kwaai.json("ls")
    assert (entry["id"], entry["path"], entry["condition"]) == ("tiny", str(moved), "ready")


def test_a_file_that_moved_has_another_id_only_when_told_so(kwaai, write) -> None:
    path = write("tiny.gguf")
    kwaai("add", path)
    moved = path.rename(path.with_name("moved.gguf"))
    process = kwaai.start("add", moved, "--id", "other")
    out, err = process.communicate(timeout=60)
    assert out.startswith("other  ")
    assert err == f"tiny was {path}; it is {moved}, and is called other now\n"
    assert [entry["id"] for entry in kwaai.json("ls")] == ["other"]


def test_the_files_of_the_folder_are_listed(kwaai, write, tmp_path: Path) -> None:
    for number, name in enumerate(("a.gguf", "B.GGUF", "not.bin")):
        write(f"folder/{name}", number)
    (tmp_path / "folder/bad.gguf").write_bytes(b"bad")
    (tmp_path / "folder/deep.gguf").mkdir()
    kwaai.configure(f'[models]\nfolder = "{tmp_path}/folder"\n')
    assert [entry["id"] for entry in kwaai.json("ls")] == ["b", "a"]
    assert kwaai.json("show", "a")["path"] == str(tmp_path / "folder/a.gguf")
    assert "kwaai models add" not in kwaai("ls")
    (tmp_path / "folder/bad.gguf").unlink()
    (tmp_path / "folder/deep.gguf").rmdir()
    assert f"it lies in {tmp_path}/folder" in kwaai("rm", "a", fails=1)
    assert "there is no model “c”" in kwaai("rm", "c", fails=1)
    kwaai("add", tmp_path / "folder/a.gguf", "--id", "mine")
    assert [entry["id"] for entry in kwaai.json("ls")] == ["mine", "b"]


def test_a_folder_that_is_not_there(kwaai, tmp_path: Path) -> None:
    kwaai.configure(f'[models]\nfolder = "{tmp_path}/nowhere"\n')
    assert "[models] folder" in kwaai("ls", fails=2)


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", "{}", '{"models": 7}', '{"models": [7]}', '{"models": [{"id": "a"}]}'],
)
def test_a_damaged_index(kwaai, write, damage: str) -> None:
    path = write("tiny.gguf")
    kwaai("add", path)
    index = kwaai.state / "models.json"
    index.write_text(damage)
    for words in (["ls"], ["show", "tiny"], ["rm", "tiny"], ["add", path]):
        assert f"{index} is damaged" in kwaai(*words, fails=2)
    assert index.read_text() == damage


def test_an_index_with_values_of_other_types(kwaai, write) -> None:
    kwaai("add", write("tiny.gguf"))
    index = kwaai.state / "models.json"
    for right, wrong in (('"blocks": 1', '"blocks": "1"'), ('"id": "tiny"', '"id": 7')):
        sound = index.read_text()
        assert right in sound
        index.write_text(sound.replace(right, wrong))
        assert "is damaged" in kwaai("ls", fails=2)
        index.write_text(sound)


def test_adding_at_the_same_time_loses_nothing(kwaai, write) -> None:
    paths = [write(f"tiny-{number}.gguf", number) for number in range(6)]
    for process in [kwaai.start("add", path) for path in paths]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (out, err)
    assert {entry["path"] for entry in kwaai.json("ls")} == set(map(str, paths))


def test_the_same_file_at_the_same_time_is_added_once(kwaai, write) -> None:
    path = write("tiny.gguf")
    processes = [kwaai.start("add", path, "--id", f"tiny-{number}") for number in range(3)]
    codes = []
    for process in processes:
        process.communicate(timeout=120)
        codes.append(process.returncode)
    assert sorted(codes) == [0, 1, 1]
    assert len(kwaai.json("ls")) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from kwaai_lobe_models.index import Index, describe

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

state, path, moment = sys.argv[1:]
if moment == "hashing":
    describe(Path(path), "", Path(state) / "digests", kill)
entry = describe(Path(path), "", Path(state) / "digests")
setattr(*{"writing": (os, "fsync", kill), "replacing": (Path, "replace", kill)}[moment])
Index(Path(state)).add(entry)
"""


@pytest.mark.parametrize("moment", ["hashing", "writing", "replacing"])
def test_a_kill_while_adding_leaves_a_sound_index(kwaai, write, moment: str) -> None:
    kwaai("add", write("first.gguf"))
    second = write("second.gguf", 1)
    arguments = [sys.executable, "-c", KILLED, kwaai.state, second, moment]
    killed = subprocess.run(arguments, capture_output=True, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [entry["id"] for entry in kwaai.json("ls")] == ["first"]
    kwaai("add", second)
    assert [entry["id"] for entry in kwaai.json("ls")] == ["first", "second"]


def test_a_bar_on_a_terminal(kwaai, write, tmp_path: Path) -> None:
    shown, code = on_terminal(kwaai, "add", write("tiny.gguf"))
    assert code == 0
    assert "100%" in shown
    (tmp_path / "bad.gguf").write_bytes(b"bad")
    shown, code = on_terminal(kwaai, "add", tmp_path / "bad.gguf")
    assert code == 1
    assert shown.count("\n") == 1
    assert "%" not in shown


def on_terminal(kwaai, *words: object) -> tuple[str, int]:
    """What a command shows on a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    process = kwaai.start(*words, output=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass  # the last process has closed it
    finally:
        os.close(ours)
    return shown.decode(), process.wait(60)


def test_a_state_folder_that_cannot_be_used(kwaai, write) -> None:
    (kwaai.folder / "state").write_text("a file")
    assert "cannot be used" in kwaai("add", write("tiny.gguf"), fails=2)
