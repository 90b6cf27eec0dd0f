"""Key files: what is written is read, and what is damaged is refused and left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core import ConfigError, NotVerified, RequestError
from kwaai_lobe_identity.folder import Folder
from kwaai_lobe_identity.keyfile import KeyFile, read_key_file
from kwaai_lobe_identity.keys import Key

KEY, OTHER = Key(bytes(range(32))), Key(bytes(range(1, 33)))
PLAIN = KeyFile.of(KEY, None)
LOCKED = KeyFile.of(KEY, b"passphrase")


def changed(file: KeyFile, **changes: object) -> bytes:
    return json.dumps(json.loads(file.content) | changes).encode()


@pytest.mark.parametrize(("file", "passphrase"), [(PLAIN, None), (LOCKED, b"passphrase")])
def test_what_is_written_is_read(file: KeyFile, passphrase: bytes | None) -> None:
    again = KeyFile.parse(file.content)
    assert again == file
    assert again.did == KEY.did
    assert again.open(passphrase).seed == KEY.seed


def test_nothing_of_a_locked_key_is_in_the_open() -> None:
    plain = json.loads(PLAIN.content)["d"]
    assert plain not in LOCKED.content.decode()
    assert KEY.seed not in LOCKED.content
    assert LOCKED.content != KeyFile.of(KEY, b"passphrase").content, "the salt is fresh"


@pytest.mark.parametrize("passphrase", [None, b"", b"wrong", b"passphrase "])
def test_another_passphrase(passphrase: bytes | None) -> None:
    with pytest.raises(NotVerified, match="passphrase"):
        LOCKED.open(passphrase)


def test_an_empty_passphrase_locks_nothing() -> None:
    with pytest.raises(RequestError, match="empty"):
        KeyFile.of(KEY, b"")


def test_a_public_key_exchanged_for_another_s() -> None:
    theirs = json.loads(KeyFile.of(OTHER, None).content)["x"]
    with pytest.raises(NotVerified, match="not of one pair"):
        KeyFile.parse(changed(PLAIN, x=theirs)).open(None)
    with pytest.raises(NotVerified, match="unknown way"):
        KeyFile.parse(changed(LOCKED, x=theirs)).open(b"passphrase")


@pytest.mark.parametrize(
    "changes",
    [
        {"kty": "EC"},
        {"crv": "X25519"},
        {"x": "AAAA"},
        {"x": None},
        {"d": 7},
        {"d": json.loads(PLAIN.content)["d"], "jwe": "a.b.c.d.e"},
        {"more": 1},
    ],
    ids=str,
)
def test_other_keys_than_ours(changes: dict[str, object]) -> None:
    with pytest.raises(NotVerified, match="a key file is malformed"):
        KeyFile.parse(changed(PLAIN, **changes))


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_junk(content: bytes) -> None:
    with pytest.raises(NotVerified):
        KeyFile.parse(content)


@given(st.integers(0, len(PLAIN.content) - 1), st.integers(0, 255))
def test_a_damaged_byte_is_seen_or_changes_nothing(at: int, byte: int) -> None:
    damaged = PLAIN.content[:at] + bytes([byte]) + PLAIN.content[at + 1 :]
    try:
        assert KeyFile.parse(damaged).open(None).seed == KEY.seed
    except NotVerified:
        pass


@pytest.mark.parametrize("jwe", ["", "....", "a.b.c.d.e", "[]", "\u00e9", "[" * 1000])
def test_a_damaged_lock(jwe: str) -> None:
    with pytest.raises(NotVerified):
        KeyFile.parse(changed(LOCKED, jwe=jwe)).open(b"passphrase")


def test_files_that_others_may_read_are_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.create("key", PLAIN.content)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_key_file(folder, "key") == PLAIN
    for mode in (0o640, 0o604, 0o660):
        (tmp_path / "key").chmod(mode)
        with pytest.raises(ConfigError, match=r"chmod 600 .*/key"):
            read_key_file(folder, "key")


def test_a_file_is_made_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.create("key", b"one")
    with pytest.raises(RequestError, match="never overwritten"):
        folder.create("key", b"two")
    assert folder.read("key") == b"one"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = Folder(tmp_path / "file" / "folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        folder.create("key", b"")
    with pytest.raises(ConfigError, match="cannot be used"), folder.locked():
        pass
    with pytest.raises(ConfigError, match="cannot be read"):
        Folder(tmp_path).read(".")
