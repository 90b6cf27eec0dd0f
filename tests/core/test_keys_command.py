"""`kwaai keys`: keys are made, shown and revoked, and a node that runs goes by them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

from .conftest import Kwaai
from .terminal import CTRL_C, kwaai_on_terminal

KEY = re.compile(r"kwaai_laptop_[0-9a-f]{64}\n")


def test_a_key_is_printed_once(kwaai: Kwaai, kwaai_home: Path) -> None:
    code, out, err = kwaai("keys", "create", "laptop")
    assert code == 0
    assert KEY.fullmatch(out)
    assert "nothing can show it again" in err
    secret = out.strip().rsplit("_", 1)[1]
    for command in (["ls"], ["ls", "--json"]):
        code, out, err = kwaai("keys", *command)
        assert (code, err) == (0, "")
        assert "laptop" in out
        assert secret not in out
    for file in (kwaai_home / "state").rglob("*"):
        assert file.is_dir() or secret not in file.read_text()


def test_for_programs(kwaai: Kwaai) -> None:
    limits = ("--requests-per-minute", "60", "--concurrent", "2")
    code, out, _ = kwaai("keys", "create", "laptop", *limits, "--json")
    made = json.loads(out)
    assert code == 0
    assert KEY.fullmatch(made.pop("key") + "\n")
    assert (made["requests_per_minute"], made["concurrent"], made["used"]) == (60, 2, None)
    _, out, _ = kwaai("keys", "ls", "--json")
    assert json.loads(out) == [made]
    _, out, _ = kwaai("keys", "revoke", "laptop", "--json")
    assert json.loads(out) == {"name": "laptop", "revoked": True}
    assert kwaai("keys", "ls", "--json")[:2] == (0, "[]\n")


def test_for_people(kwaai: Kwaai, kwaai_home: Path) -> None:
    assert kwaai("keys", "ls") == (0, "", "no keys: kwaai keys create NAME\n")
    kwaai("keys", "create", "laptop", "--requests-per-minute", "60", "--concurrent", "2")
    kwaai("keys", "create", "phone")
    (kwaai_home / "state/keys/broken.json").write_text("{")
    code, out, _ = kwaai("keys", "ls")
    broken, laptop, phone = out.splitlines()
    assert code == 0
    assert "is damaged, and nobody comes in with this key" in broken
    assert re.fullmatch(r"laptop +made 20\S+ \S+  never used  60 a minute, 2 at a time", laptop)
    assert phone.endswith("never used  no limits")
    assert kwaai("keys", "revoke", "broken") == (0, "revoked broken\n", "")
    kwaai("keys", "revoke", "phone")
    code, out, err = kwaai("keys", "revoke", "laptop")
    assert (code, out) == (0, "revoked laptop\n")
    assert f"remove {kwaai_home}/state/keys" in err
    assert "nobody comes in by the port" in kwaai("keys", "ls")[2]


def test_what_cannot_be_done_is_said(kwaai: Kwaai) -> None:
    kwaai("keys", "create", "laptop")
    code, out, err = kwaai("keys", "create", "laptop")
    assert (code, out, err) == (1, "", "error: there is a key “laptop” already: kwaai keys ls\n")
    code, _, err = kwaai("keys", "create", "My laptop")
    assert code == 2
    assert "must be 1 to 32 of a-z, 0-9 and -" in err
    code, _, err = kwaai("keys", "revoke", "phone")
    assert (code, err) == (1, "error: there is no key “phone”; there are: laptop\n")
    for limit in ("0", "-1", "60001", "x"):
        assert kwaai("keys", "create", "phone", "--concurrent", limit)[0] == 2


def test_other_machines_are_let_in_only_with_a_key(kwaai: Kwaai, kwaai_home: Path) -> None:
    (kwaai_home / "kwaai.toml").write_text('[server]\nhost = "192.0.2.7"\n')
    for command in (["run", "--lobes", ""], ["config", "check"]):
        code, out, err = kwaai(*command)
        assert (code, out) == (2, "")
        assert "192.0.2.7" in err
        assert "kwaai keys create NAME" in err
    kwaai("keys", "create", "laptop")
    assert kwaai("config", "check")[0] == 0


def test_files_of_tls_are_checked_with_everything_else(kwaai: Kwaai, kwaai_home: Path) -> None:
    lines = 'certfile = "/nowhere.pem"\nkeyfile = "/nowhere.key"\nhost = "0.0.0.0"\n'
    (kwaai_home / "kwaai.toml").write_text(f"[server]\n{lines}[log]\nlevel = 1\n")
    code, _, err = kwaai("config", "check")
    assert code == 2
    for part in ("[log] level", "no API key yet", "certfile = /nowhere.pem cannot be read"):
        assert part in err
    assert len(err.splitlines()) == 3


def test_a_node_that_runs_goes_by_them(kwaai: Kwaai, kwaai_home: Path) -> None:
    with kwaai_on_terminal("run", "--lobes", "", "--port", "0") as terminal:
        terminal.wait_for("/v1 (stop")
        (base,) = re.findall(r"http://\S+/v1", terminal.shown)

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.get(f"{base}/models", headers=headers).status_code

        assert status("any") == 200
        _, out, _ = kwaai("keys", "create", "laptop")
        assert (status("any"), status(out.strip())) == (401, 200)
        assert json.loads(kwaai("keys", "ls", "--json")[1])[0]["name"] == "laptop"
        assert kwaai("lobes")[0] == 0  # by the socket no key is needed
        kwaai("keys", "revoke", "laptop")
        assert status(out.strip()) == 401
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 0
