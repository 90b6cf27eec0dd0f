"""The command line in this process: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kwaai_core.cli import main

from .conftest import Install, Kwaai

LOBE = """
import click
from kwaai_core import Offer, hookimpl

@hookimpl
def provide_store():
    return Offer("mine", print)

@hookimpl
def add_commands(cli):
    @cli.command("{command}")
    def command():
        {body}
"""


def test_help_imports_nothing_heavy(kwaai_home: Path) -> None:
    heavy = "{'trio', 'starlette', 'httpx', 'llama_cpp', 'numpy', 'hypercorn'}"
    script = (
        "import atexit, sys; from kwaai_core.cli import main; "
        f"atexit.register(lambda: print({heavy} & set(sys.modules), file=sys.stderr)); main(['-h'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "Usage:" in done.stdout
    assert done.stderr == "set()\n"


@pytest.mark.parametrize("command", [["--help"], ["run", "-h"], ["chat", "-h"], ["config", "-h"]])
def test_help_is_no_error(kwaai: Kwaai, command: list[str]) -> None:
    code, out, err = kwaai(*command)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: ")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["rnu"], "pip install kwaai-lobe-"),
        (["run", "--port", "70000"], "70000 is not in the range"),
        (["run", "--prot", "1"], "No such option '--prot'"),
        (["config", "show", "x"], "Got unexpected extra argument"),
    ],
)
def test_wrong_usage_ends_with_2(kwaai: Kwaai, command: list[str], complaint: str) -> None:
    code, out, err = kwaai(*command)
    assert (code, out) == (2, "")
    assert complaint in err


def test_a_wrong_setting_ends_with_2_and_one_line(kwaai: Kwaai, kwaai_home: Path) -> None:
    (kwaai_home / "kwaai.toml").write_text("[server]\nprot = 1\n")
    file = kwaai_home / "kwaai.toml"
    line = f"error: {file}: [server] prot: there is no such key; did you mean “port”?\n"
    for command in ("config check", "config show", "run --port 0", "lobes", "chat -p hi"):
        assert kwaai(*command.split()) == (2, "", line)


def test_everything_that_is_wrong_is_said_at_once(
    kwaai: Kwaai, kwaai_home: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        "@dataclass(frozen=True)\nclass Settings:\n    size: int = 1\n"
        "    def __post_init__(self):\n        if self.size > 9: raise ValueError('too large')\n"
    )
    hook = "@hookimpl\ndef provide_store():\n    return Offer('mine', print, Settings)\n"
    head = "from dataclasses import dataclass\nfrom kwaai_core import Offer, hookimpl\n"
    install("mine", head + settings + hook)
    monkeypatch.setenv("KWAAI_LOG_LEVEL", "loud")
    (kwaai_home / "kwaai.toml").write_text(
        'prot = 9\nlobes = ["mien"]\n[mine]\nsize = 10\n'
        '[server]\nhost = "0.0.0.0"\n[chat]\nmodle = 1\nmodel = 2\n'
    )
    for command in (["config", "check"], ["run"]):
        code, out, err = kwaai(*command)
        assert (code, out) == (2, "")
        lines = err.splitlines()
        assert all(line.startswith("error: ") for line in lines)
        for said in ("prot", "“mien”", "too large", "0.0.0.0", "“model”", "= 2", "'loud'"):
            assert sum(said in line for line in lines) == 1, (said, err)
        assert len(lines) == 7


@pytest.mark.parametrize("words", [["config", "check"], ["lobes"], ["run"]])
def test_a_settings_file_that_is_not_there(
    kwaai: Kwaai, kwaai_home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    file = kwaai_home / "elsewhere.toml"
    monkeypatch.setenv("KWAAI_CONFIG", str(file))
    code, out, _ = kwaai("config", "path")
    assert code == 0
    assert f"settings {file}  (does not exist; KWAAI_CONFIG names it)" in out.splitlines()
    code, _, err = kwaai(*words)
    assert code == 2
    assert "does not exist: write it, or unset the variable" in err


def test_where_the_settings_are_is_said_of_a_file_that_is_broken(
    kwaai: Kwaai, kwaai_home: Path
) -> None:
    (kwaai_home / "kwaai.toml").write_text("[server\n")
    assert kwaai("config", "path")[0] == 0
    assert kwaai("config", "check")[0] == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["config", "show", "--json"], 2, "did you mean “port”?"),
        (["lobes", "--json", "more"], 2, "unexpected extra argument"),
        (["peers", "ls", "--json"], 1, "no node runs here"),
        (["chat", "--json", "-p", ""], 2, "the prompt is empty"),
    ],
)
def test_with_json_an_error_is_an_object_on_stderr(
    kwaai: Kwaai, kwaai_home: Path, words: list[str], code: int, said: str
) -> None:
    if code == 2:
        (kwaai_home / "kwaai.toml").write_text("[server]\nprot = 1\n")
    ended, out, err = kwaai(*words)
    assert (ended, out) == (code, "")
    (error,) = json.loads(err).values()
    assert said in error["message"]


def test_an_unknown_lobe_ends_with_2(kwaai: Kwaai, install: Install) -> None:
    install("mine", LOBE.format(command="x", body="pass"))
    code, _, err = kwaai("run", "--lobes", "mien")
    assert code == 2
    assert "no lobe “mien” is installed; did you mean “mine”?" in err


def test_a_bug_is_a_line_and_ends_with_70(kwaai: Kwaai, install: Install) -> None:
    install("mine", LOBE.format(command="burst", body="raise ZeroDivisionError('oops')"))
    code, out, err = kwaai("burst")
    assert (code, out) == (70, "")
    assert err == (
        "error: this is a bug in kwaai: ZeroDivisionError('oops') (KWAAI_STRICT=1 shows where)\n"
    )


def test_strict_shows_where_a_bug_is(
    kwaai: Kwaai, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KWAAI_STRICT", "1")
    install("mine", LOBE.format(command="burst", body="raise ZeroDivisionError('oops')"))
    with pytest.raises(ZeroDivisionError):
        main(["burst"])


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("KeyboardInterrupt", 130),
        ("click.Abort", 130),
        ("SystemExit(5)", 5),
        ("click.exceptions.Exit(3)", 3),
    ],
)
def test_how_a_command_may_end(kwaai: Kwaai, install: Install, raised: str, code: int) -> None:
    install("mine", LOBE.format(command="end", body=f"raise {raised}"))
    ended, out, err = kwaai("end")
    assert (ended, out, err.strip()) == (code, "", "")


def test_a_command_that_returns_ends_with_0(kwaai: Kwaai, install: Install) -> None:
    install("mine", LOBE.format(command="fine", body="click.echo('hello')"))
    assert kwaai("fine") == (0, "hello\n", "")


def test_without_the_commands_of_a_broken_lobe_kwaai_goes_on(
    kwaai: Kwaai, install: Install
) -> None:
    source = (
        "from kwaai_core import hookimpl\n@hookimpl\ndef add_commands(cli):\n    raise OSError('x')"
    )
    install("broken", source)
    code, out, err = kwaai("version")
    assert code == 0
    assert "lobe broken 1.5" in out
    assert err == "lobe broken: its commands are left out: OSError: x\n"


def test_versions(kwaai: Kwaai, install: Install) -> None:
    install("mine", LOBE.format(command="x", body="pass"))
    code, out, _ = kwaai("version", "--json")
    assert code == 0
    assert json.loads(out)["lobe mine"] == "1.5"
    assert "kwaai-core" in json.loads(out)


def test_lobes_are_shown_with_their_cause(kwaai: Kwaai, install: Install) -> None:
    install("mine", LOBE.format(command="x", body="pass"))
    install("broken", "raise OSError('no disk')\ndef provide_trust(): ...")
    code, out, _ = kwaai("lobes", "--json")
    assert code == 0
    shown = {status["lobe"]: status for status in json.loads(out)}
    assert shown["mine"] == {
        "lobe": "mine",
        "version": "1.5",
        "role": "store",
        "offer": "mine",
        "state": "idle",
        "cause": "no node runs",
        "facts": {},
    }
    assert (shown["broken"]["role"], shown["broken"]["state"]) == ("trust", "failed")
    cause = "OSError: no disk at site/testing_lobe_broken.py:1; KWAAI_STRICT=1 shows more"
    assert shown["broken"]["cause"] == cause
    code, out, _ = kwaai("lobes")
    (line,) = [line for line in out.splitlines() if line.startswith("broken")]
    assert line.split() == ["broken", "1.5", "trust", "failed", *cause.split()]


def test_lobes_that_a_run_leaves_out_say_so(
    kwaai: Kwaai, install: Install, kwaai_home: Path
) -> None:
    (kwaai_home / "kwaai.toml").write_text("lobes = []\n")
    install("mine", LOBE.format(command="x", body="pass"))
    _, out, _ = kwaai("lobes", "--json")
    (mine,) = [status for status in json.loads(out) if status["lobe"] == "mine"]
    assert mine["cause"] == "not among the lobes in kwaai.toml"


def test_settings_are_shown_with_their_source(
    kwaai: Kwaai, kwaai_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kwaai_home / "kwaai.toml"
    file.write_text("[server]\nport = 9\n")
    monkeypatch.setenv("KWAAI_LOG_LEVEL", "debug")
    _, out, _ = kwaai("config", "show", "--json")
    shown = json.loads(out)
    assert shown["server"]["port"] == {"value": 9, "source": str(file)}
    assert shown["log"]["level"] == {"value": "debug", "source": "KWAAI_LOG_LEVEL"}
    assert shown["server"]["host"] == {"value": "127.0.0.1", "source": "default"}
    _, out, _ = kwaai("config", "show")
    assert f"port = 9  # {file}" in out.splitlines()


def test_what_is_shown_can_be_written_to_the_file(
    kwaai: Kwaai, kwaai_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kwaai_home / "kwaai.toml").write_text('lobes = ["mine"]\n[roles]\nrouter = "mine"\n')
    _, out, _ = kwaai("config", "show")
    shown = tomllib.loads(out)
    assert (shown["lobes"], shown["roles"]) == (["mine"], {"router": "mine"})
    assert shown["server"]["port"] == 8000
    monkeypatch.setenv("KWAAI_LOBES", "other, another")
    _, out, _ = kwaai("config", "show", "--json")
    assert json.loads(out)["lobes"] == {"value": ["other", "another"], "source": "KWAAI_LOBES"}
    (kwaai_home / "kwaai.toml").write_text("")
    monkeypatch.delenv("KWAAI_LOBES")
    _, out, _ = kwaai("config", "show")
    assert "lobes" not in tomllib.loads(out)


def test_where_the_settings_are(kwaai: Kwaai, kwaai_home: Path) -> None:
    file = kwaai_home / "kwaai.toml"
    assert kwaai("config", "path")[1] == f"settings {file}\nstate    {kwaai_home / 'state'}\n"
    assert kwaai("config", "check") == (0, f"{file}: all good\n", "")


def test_a_table_of_no_lobe_is_a_warning(kwaai: Kwaai, kwaai_home: Path) -> None:
    (kwaai_home / "kwaai.toml").write_text("[elsewhere]\nkey = 1\n")
    code, _, err = kwaai("config", "check")
    assert code == 0
    assert err.startswith("warning: ")
    assert "[elsewhere] belongs to no installed lobe" in err


def test_a_conflict_of_roles_is_found_by_the_check(kwaai: Kwaai, install: Install) -> None:
    hook = "@hookimpl\ndef provide_trust():\n    return Offer('x', print)\n"
    for name in ("one", "two"):
        install(name, f"from kwaai_core import Offer, hookimpl\n{hook}")
    code, _, err = kwaai("config", "check")
    assert code == 2
    assert 'the line: trust = "one"' in err


def test_without_a_key_only_loopback_is_listened_on(kwaai: Kwaai) -> None:
    code, out, err = kwaai("run", "--host", "0.0.0.0", "--lobes", "")
    assert (code, out) == (2, "")
    assert "0.0.0.0" in err
    assert "Traceback" not in err


def test_a_pipe_that_nobody_reads_is_no_bug(kwaai_home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "kwaai_core", "config", "show"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_one_prompt_is_enough(kwaai: Kwaai) -> None:
    code, _, err = kwaai("chat", "echo", "hello", "-p", "hello")
    assert code == 2
    assert "two prompts" in err


def test_colour_is_for_terminals_that_want_it(
    kwaai: Kwaai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click._compat.isatty", lambda stream: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31merror:" in kwaai("run", "--host", "0.0.0.0", "--lobes", "")[2]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in kwaai("run", "--host", "0.0.0.0", "--lobes", "")[2]


def test_chat_without_a_prompt_or_a_model_says_what_to_do(
    kwaai: Kwaai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    code, _, err = kwaai("chat", "--lobes", "")
    assert code == 2
    assert "standard input is empty: give a prompt with -p" in err


def test_a_prompt_that_was_read_as_the_model_is_named(
    kwaai: Kwaai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, err = kwaai("chat", "hello", "--lobes", "")
    assert (code, out) == (2, "")
    assert "standard input is empty, and “hello” was read as MODEL" in err
    assert 'a prompt alone goes with -p: kwaai chat -p "hello"' in err
