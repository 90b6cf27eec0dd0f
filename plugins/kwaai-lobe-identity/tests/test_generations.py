"""The keys over time: made once, rotated in one step, never lost and never exchanged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kwaai_core import ConfigError, RequestError
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.generations import exported, find, load, restored, rotated
from kwaai_lobe_identity.keyfile import KeyFile
from kwaai_lobe_identity.keys import Key
from kwaai_lobe_identity.succession import digest_of


def unlocked() -> None:
    """The passphrase of keys that have none."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "identity")


def contents(folder: Folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.suffix}


def test_the_first_run_makes_two_keys_and_the_next_run_none(folder: Folder) -> None:
    assert find(folder) is None
    made = load(folder, unlocked)
    before = contents(folder)
    assert sorted(before) == ["history.json", "key-0.jwk", "key-1.jwk"]
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {0o600}
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert load(folder, unlocked) == made
    assert contents(folder) == before


def test_the_next_key_is_committed_to_and_not_told(folder: Folder) -> None:
    made = load(folder, unlocked)
    following = KeyFile.parse(made.next_path.read_bytes())
    assert made.history[-1].says.digest == digest_of(following.did)
    assert following.did not in made.history[-1].jws
    assert made.history[-1].says.next == ""


def test_a_rotation_takes_the_key_that_was_committed_to(folder: Folder) -> None:
    first = load(folder, unlocked)
    before, following = contents(folder), KeyFile.parse(first.next_path.read_bytes())
    second = rotated(folder, unlocked, 1_000)
    assert (second.did, second.names) == (following.did, (following.did, first.did))
    assert second.history[0].says.next == second.did
    third = rotated(folder, unlocked, 2_000)
    assert third.names == (third.did, second.did, first.did)
    assert load(folder, unlocked) == third
    after = contents(folder)
    assert {name: after[name] for name in before if name != "history.json"} == {
        name: before[name] for name in before if name != "history.json"
    }


def test_many_rotations(folder: Folder) -> None:
    for now in range(1, 21):
        last = rotated(folder, unlocked, now)
    assert load(folder, unlocked) == last
    assert len(last.names) == 17


def test_the_next_key_may_be_kept_elsewhere(folder: Folder, tmp_path: Path) -> None:
    made = load(folder, unlocked)
    made.next_path.rename(tmp_path / "stick")
    assert load(folder, unlocked) == made
    with pytest.raises(ConfigError, match="put it back first"):
        rotated(folder, unlocked, 1)
    KeyFile.of(Key.generate(), None)
    folder.create("key-1.jwk", KeyFile.of(Key.generate(), None).content)
    with pytest.raises(ConfigError, match="not the key that this identity has committed to"):
        rotated(folder, unlocked, 1)
    made.next_path.unlink()
    (tmp_path / "stick").rename(made.next_path)
    assert rotated(folder, unlocked, 1).names[1] == made.did


def test_a_key_that_is_gone_is_not_made_anew(folder: Folder) -> None:
    made = load(folder, unlocked)
    made.path.unlink()
    with pytest.raises(ConfigError, match="the key in use, is gone: restore it"):
        load(folder, unlocked)
    assert not made.path.exists()


def test_another_s_key_in_its_place(folder: Folder) -> None:
    made = load(folder, unlocked)
    folder.replace("key-0.jwk", KeyFile.of(Key.generate(), None).content)
    with pytest.raises(ConfigError, match=f"should be {made.did}"):
        load(folder, unlocked)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"successions": []}', b"\xff", b"[" * 9999])
def test_a_damaged_history(folder: Folder, damage: bytes) -> None:
    load(folder, unlocked)
    folder.replace("history.json", damage)
    with pytest.raises(ConfigError, match=r"history.json cannot be used: .*: restore it"):
        load(folder, unlocked)
    assert folder.read("history.json") == damage


def test_a_history_with_a_gap(folder: Folder) -> None:
    rotated(folder, unlocked, 1)
    third = rotated(folder, unlocked, 2)
    for kept in ((0, 2), (0, 1), (1, 0, 2)):
        statements = [third.history[number].jws for number in kept]
        folder.replace("history.json", json.dumps({"successions": statements}).encode())
        with pytest.raises(ConfigError, match="history.json cannot be used"):
            load(folder, unlocked)


def test_a_history_that_is_gone(folder: Folder) -> None:
    made = load(folder, unlocked)
    (folder.path / "history.json").unlink()
    assert load(folder, unlocked) == made, "a first commitment can be made again"
    rotated(folder, unlocked, 1)
    (folder.path / "history.json").unlink()
    with pytest.raises(ConfigError, match="is gone, and these keys have one"):
        load(folder, unlocked)


def test_with_a_passphrase(folder: Folder) -> None:
    asked = []

    def passphrase() -> bytes:
        asked.append(1)
        return b"words"

    made = load(folder, passphrase)
    asked.clear()
    assert load(folder, passphrase) == made
    assert asked == [], "what is public needs none"
    assert made.key(passphrase).did == made.did
    with pytest.raises(ConfigError, match=r"key-0.jwk cannot be opened: the passphrase is wrong"):
        made.key(lambda: b"other")
    before = contents(folder)
    with pytest.raises(ConfigError, match="cannot be opened"):
        rotated(folder, lambda: b"other", 1)
    after = contents(folder)
    assert after["history.json"] == before["history.json"]
    (folder.path / "key-2.jwk").unlink()
    assert rotated(folder, passphrase, 1).file.locked


def test_an_export_becomes_the_same_identity(folder: Folder, tmp_path: Path) -> None:
    first = load(folder, unlocked)
    rotated(folder, unlocked, 1)
    content = exported(load(folder, unlocked))
    elsewhere = Folder(tmp_path / "elsewhere")
    there = restored(elsewhere, content)
    assert contents(elsewhere) == contents(folder)
    assert there.names == (there.did, first.did)
    with pytest.raises(RequestError, match="has an identity already"):
        restored(elsewhere, content)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"7", b'{"history.json": 7}', b'{"history.json": "{}"}', b"[" * 9999],
)
def test_what_is_no_export(folder: Folder, content: bytes) -> None:
    with pytest.raises(RequestError, match="no export"):
        restored(folder, content)
    assert contents(folder) == {}


def test_an_export_with_a_path_in_it(folder: Folder, tmp_path: Path) -> None:
    files = json.loads(exported(load(folder, unlocked)))
    for name in ("../evil", "/tmp/evil", "key-9.jwk", "circle.json"):
        with pytest.raises(RequestError, match="none of an identity"):
            restored(Folder(tmp_path / "new"), json.dumps(files | {name: "x"}).encode())


KILLED = """
import os, signal, sys
from pathlib import Path
from kwaai_lobe_identity import folder, generations

state, at, rotate = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "rotate"
place, done = folder._sync, []

def kill(path):
    done.append(1)
    if len(done) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    place(path)

def write(path, data, write=folder._write):
    write(path, data[: len(data) // 2] if len(done) + 1 == at else data)
    kill(path.parent)

folder._sync, folder._write = kill, write
home = folder.Folder(state)
generations.rotated(home, lambda: None, 1) if rotate else generations.load(home, lambda: None)
"""


@pytest.mark.parametrize("at", range(1, 7))
def test_a_kill_in_the_first_run_costs_nothing(folder: Folder, at: int) -> None:
    """In the middle of each of three files, and after each before its name is durable."""
    run = [sys.executable, "-c", KILLED, folder.path, str(at), "make"]
    done = subprocess.run(run, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {name: data for name, data in contents(folder).items() if name.startswith("key-")}
    made = load(folder, unlocked)
    assert {name: contents(folder)[name] for name in before} == before
    assert made.key(unlocked).did == made.did
    assert rotated(folder, unlocked, 1).names[1] == made.did


@pytest.mark.parametrize("at", range(1, 5))
def test_a_kill_in_a_rotation_leaves_the_old_identity_or_the_new(folder: Folder, at: int) -> None:
    made = load(folder, unlocked)
    following = KeyFile.parse(made.next_path.read_bytes()).did
    run = [sys.executable, "-c", KILLED, folder.path, str(at), "rotate"]
    done = subprocess.run(run, capture_output=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    now = load(folder, unlocked)
    assert now.names in ((made.did,), (following, made.did))
    again = rotated(folder, unlocked, 2)
    assert again.names[1:] == now.names
    assert again.key(unlocked).did == again.did


def test_first_runs_at_the_same_time_make_one_identity(folder: Folder) -> None:
    program = (
        "import sys; from pathlib import Path; from kwaai_lobe_identity import folder, generations;"
        "print(generations.load(folder.Folder(Path(sys.argv[1])), lambda: None).did)"
    )
    run = [sys.executable, "-c", program, folder.path]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert said == {load(folder, unlocked).did + "\n"}
    assert not [name for name in os.listdir(folder.path) if name.endswith(".part")]
