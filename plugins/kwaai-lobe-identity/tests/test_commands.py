"""`kwaai identity`, run as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from kwaai_core.testing import ed25519
from kwaai_lobe_identity.names import document


def test_from_nothing(kwaai: Any) -> None:
    nothing = kwaai.json("path")
    assert nothing == {"folder": str(kwaai.state), "key": None, "next_key": None}
    assert "none yet" in kwaai("path")
    assert not kwaai.state.exists(), "`path` makes nothing"
    shown = kwaai.json("show")
    key = json.loads((kwaai.state / "key-0.jwk").read_text())
    assert shown["did"] == ed25519.did_key(ed25519.key_of_peer(shown["peer_id"]))
    assert shown["document"] == document(shown["did"])
    assert shown["owner"] is None
    assert (shown["groups"], shown["formerly"], shown["frozen"]) == ([], [], False)
    assert kwaai.json("show") == shown
    text = kwaai("show")
    assert shown["did"] in text
    assert shown["peer_id"] in text
    assert "nobody yet" in text
    assert kwaai.json("path") == {
        "folder": str(kwaai.state),
        "key": str(kwaai.state / "key-0.jwk"),
        "next_key": str(kwaai.state / "key-1.jwk"),
    }
    assert key["d"] not in json.dumps(shown)


def test_the_next_key_on_a_stick(kwaai: Any, tmp_path: Any) -> None:
    before = kwaai.json("show")
    (kwaai.state / "key-1.jwk").rename(tmp_path / "stick")
    assert "kept elsewhere" in kwaai("path")
    assert kwaai.json("show") == before
    assert "put it back first" in kwaai("rotate", fails=2)


def test_rotate(kwaai: Any) -> None:
    before = kwaai.json("show")["did"]
    first = kwaai.json("rotate")
    assert first["formerly"] == [before]
    assert kwaai("rotate").splitlines()[0] == first["did"]
    shown = kwaai.json("show")
    assert shown["formerly"] == [first["did"], before]
    assert f"formerly {before}" in kwaai("show")


def test_a_key_in_use_is_not_rotated(kwaai: Any) -> None:
    before = kwaai.json("show")["did"]
    running = kwaai.start("--port", "0", "--lobes", "identity", program="run")
    try:
        assert "listens" in running.stdout.readline()
        assert "stop it first" in kwaai("rotate", fails=1)
        assert kwaai.json("show")["did"] == before, "and this needs no node, and hinders none"
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    assert kwaai.json("rotate")["formerly"] == [before]


def test_export_and_restore(kwaai: Any, other: Any, tmp_path: Any) -> None:
    kwaai("rotate")
    shown = kwaai.json("show")
    file = tmp_path / "backup"
    assert kwaai.json("export", file) == {"did": shown["did"], "file": str(file), "locked": False}
    assert file.stat().st_mode & 0o777 == 0o600
    content = file.read_bytes()
    assert "never overwritten" in kwaai("export", file, fails=1)
    assert file.read_bytes() == content
    assert shown["did"] in other("restore", file)
    for key in ("did", "formerly", "document"):
        assert other.json("show")[key] == shown[key]
    assert "has an identity already" in other("restore", file, fails=1)
    assert "cannot be read" in other("restore", tmp_path / "nowhere", fails=1)


def test_an_export_says_that_it_is_not_locked(kwaai: Any, tmp_path: Any) -> None:
    process = kwaai.start("export", tmp_path / "backup")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert str(tmp_path / "backup") in out
    assert "keep the file secret" in err


def test_with_a_passphrase(kwaai: Any, passphrase: Any) -> None:
    kwaai.configure(f'[identity]\npassphrase_file = "{passphrase("words")}"\n')
    shown = kwaai.json("show")
    assert shown["locked"]
    assert '"d"' not in (kwaai.state / "key-0.jwk").read_text()
    passphrase("other")
    assert kwaai.json("show") == shown, "what is public needs none"
    assert "passphrase is wrong" in kwaai("rotate", fails=2)
    passphrase("words")
    assert kwaai.json("rotate")["formerly"] == [shown["did"]]
    kwaai.configure("")
    assert kwaai.json("show")["locked"]
    assert "is locked: a passphrase is needed" in kwaai("rotate", fails=2)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", '{"kty": "OKP"}', "\x00"])
def test_a_damaged_key_is_an_error_and_left_alone(kwaai: Any, damage: str) -> None:
    kwaai.json("show")
    key = kwaai.state / "key-0.jwk"
    key.write_text(damage)
    for words in (["show"], ["path"], ["rotate"], ["export", kwaai.folder / "x"]):
        assert f"{key} cannot be used" in kwaai(*words, fails=2)
    assert key.read_text() == damage


def test_a_key_that_others_may_read(kwaai: Any) -> None:
    kwaai.json("show")
    (kwaai.state / "key-0.jwk").chmod(0o644)
    assert "chmod 600" in kwaai("show", fails=2)


def test_a_state_folder_that_cannot_be_used(kwaai: Any) -> None:
    (kwaai.folder / "state").write_text("a file")
    assert "cannot be" in kwaai("show", fails=2)


def test_an_owner(kwaai: Any, other: Any, passphrase: Any) -> None:
    words = ("--passphrase-file", passphrase("words"))
    did = kwaai.json("show")["did"]
    assert "owner create" in other("owner", "sign", did, *words, fails=1)
    made = other.json("owner", "create", "--name", "Kwaai Foundation", "--organisation", *words)
    assert (made["name"], made["kind"]) == ("Kwaai Foundation", "organisation")
    assert "never overwritten" in other("owner", "create", "--name", "Eve", *words, fails=1)
    credential = other("owner", "sign", did, "--days", 30, *words)
    assert credential.count("\n") == 1
    attached = kwaai.json("owner", "attach", credential.strip())
    assert {key: attached[key] for key in made} == made
    assert kwaai.json("show")["owner"] == attached
    assert "Kwaai Foundation (organisation, did:key:" in kwaai("show")
    assert "not for this node" in other("owner", "attach", credential.strip(), fails=1)
    by_peer = other("owner", "sign", kwaai.json("show")["peer_id"], *words)
    assert "answers for this node until" in kwaai("owner", "attach", "-", typed=by_peer)


def test_owners_that_cannot_be(kwaai: Any, passphrase: Any) -> None:
    words = ("--passphrase-file", passphrase(""))
    assert "first line is empty" in kwaai("owner", "create", "--name", "Ada", *words, fails=2)
    assert "on a terminal" in kwaai("owner", "create", "--name", "Ada", fails=2)
    words = ("--passphrase-file", passphrase("words"))
    assert "cannot be a name" in kwaai("owner", "create", "--name", "\x1b[2J", *words, fails=1)
    kwaai("owner", "create", "--name", "Ada", *words)
    assert "not the name" in kwaai("owner", "sign", "nobody", *words, fails=1)
    other = ("--passphrase-file", passphrase("other"))
    did = kwaai.json("show")["did"]
    assert "passphrase is wrong" in kwaai("owner", "sign", did, *other, fails=2)


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "[" * 5000, "\u00e9", "-"])
def test_what_is_no_credential(kwaai: Any, text: str) -> None:
    assert "cannot be taken" in kwaai("owner", "attach", "--", text, fails=1)
    assert kwaai.json("show")["owner"] is None


def test_a_passphrase_is_asked_for_on_a_terminal_and_not_shown(kwaai: Any) -> None:
    ours, theirs = pty.openpty()
    words = ("owner", "create", "--name", "Ada")
    process = kwaai.start(*words, stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    for _ in range(2):  # the second time to confirm; what is typed before it is asked for is lost
        asked = b""
        while not asked.endswith(b": "):
            asked += os.read(ours, 4096)
        os.write(ours, b"secret words\n")
        shown += asked
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, shown
    assert b"secret" not in shown
    assert out.startswith("Ada is did:key:")
    assert '"d"' not in (kwaai.state / "owner-key.jwk").read_text()


def test_revoke(kwaai: Any, town: Any) -> None:
    kwaai.json("show")
    founder = town.open("one/state/lobes/identity")
    town.now = time.time() - 10
    group = town.let_in("one/state/lobes/identity", "ada")
    town.let_in("one/state/lobes/identity", "bob")
    assert kwaai.json("show")["groups"] == [{"founder": founder.did, "name": "home"}]
    (ada,) = town("ada")
    assert "no longer in home" in kwaai("revoke", ada.peer_id)
    assert town.common("one/state/lobes/identity", "ada") == ()
    assert town.common("one/state/lobes/identity", "bob") == (group,)


def test_revoking_what_is_not_there(kwaai: Any, other: Any) -> None:
    did = other.json("show")["did"]
    assert "founded no group home" in kwaai("revoke", did, fails=1)
    assert "not the name" in kwaai("revoke", "nobody", fails=1)


def test_wrong_words(kwaai: Any) -> None:
    for words in (["nonsense"], ["show", "x"], ["export"], ["owner", "sign"], ["owner", "create"]):
        assert "Usage:" in kwaai(*words, fails=2)


def test_no_command_loads_trio(kwaai: Any) -> None:
    program = (
        "import sys; from kwaai_core.cli import cli\n"
        "from kwaai_lobe_identity.commands import identity\n"
        "try:\n    identity(['show'], standalone_mode=False)\n"
        "finally:\n    print('trio' in sys.modules)"
    )
    environment = os.environ | {"KWAAI_STATE": str(kwaai.folder / "state")}
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
