"""`kwaai run`: it says where it listens, and ends when it is told to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Install, Kwaai
from .terminal import CTRL_C, kwaai_on_terminal

LOBE = """
from contextlib import asynccontextmanager
from kwaai_core import Offer, hookimpl

@asynccontextmanager
async def open_(host):
    import trio
    {before}
    yield
    {after}

@hookimpl
def provide_store():
    return Offer("slow", open_)
"""
FOR_EVER = "print('now', flush=True); await trio.sleep_forever()"
STUBBORN = f"trio.CancelScope(shield=True).__enter__(); {FOR_EVER}"


def test_ctrl_c_ends_it(kwaai_home: Path) -> None:
    with kwaai_on_terminal("run", "--lobes", "", "--port", "0") as terminal:
        terminal.wait_for("kwaai listens on http://127.0.0.1:")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.shown
    assert not (kwaai_home / "state" / "node.sock").exists()


def test_with_nothing_to_answer_with_it_says_so(kwaai_home: Path) -> None:
    with kwaai_on_terminal("run", "--lobes", "", "--port", "0") as terminal:
        terminal.wait_for("WARNING no executor is installed: pip install kwaai-lobe-llama")
        terminal.wait_for("listens on")


def test_a_lobe_that_cannot_be_imported_is_told(kwaai_home: Path, install: Install) -> None:
    install("broken", "import nowhere_to_be_found\n# provide_executor")
    with kwaai_on_terminal("run", "--lobes", "broken", "--port", "0") as terminal:
        terminal.wait_for("ERROR   lobe broken (failed): ModuleNotFoundError: ")
        terminal.wait_for("at site/testing_lobe_broken.py:1")
        terminal.wait_for("listens on")


def test_a_signal_ends_it(kwaai_home: Path) -> None:
    with kwaai_on_terminal("run", "--lobes", "", "--port", "0") as terminal:
        terminal.wait_for("listens on")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait_for_end() == 0


def test_it_ends_at_once_while_a_lobe_opens(kwaai_home: Path, install: Install) -> None:
    install("slow", LOBE.format(before=FOR_EVER, after="pass"))
    with kwaai_on_terminal("run", "--lobes", "slow", "--port", "0") as terminal:
        terminal.wait_for("now")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 0
    assert "listens" not in terminal.shown


def test_the_second_ctrl_c_waits_for_nobody(kwaai_home: Path, install: Install) -> None:
    install("slow", LOBE.format(before="pass", after=STUBBORN))
    with kwaai_on_terminal("run", "--lobes", "slow", "--port", "0") as terminal:
        terminal.wait_for("listens on")
        terminal.type(CTRL_C)
        terminal.wait_for("now")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 130


def test_commands_see_the_node_that_runs(kwaai: Kwaai, install: Install, kwaai_home: Path) -> None:
    broken = "raise OSError('no disk')"
    install("slow", LOBE.format(before=broken, after="pass"))
    with kwaai_on_terminal("run", "--lobes", "slow", "--port", "0") as terminal:
        terminal.wait_for("listens on http://127.0.0.1:")
        terminal.wait_for("/v1")
        _, out, _ = kwaai("lobes", "--json")
        (slow,) = [status for status in json.loads(out) if status["lobe"] == "slow"]
        assert (slow["state"], slow["cause"]) == (
            "failed",
            "OSError: no disk at site/testing_lobe_slow.py:8",
        )
        code, _, err = kwaai("run", "--lobes", "", "--port", "0")
        assert code == 1
        assert f"(process {terminal.process.pid})" in err
        port = re.findall(r":(\d+)/v1", terminal.shown)[0]
        (kwaai_home / "other").mkdir()
        other = {"KWAAI_STATE": str(kwaai_home / "other")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(*other.popitem())
            code, _, err = kwaai("run", "--lobes", "", "--port", port)
        assert code == 2
        assert re.search(rf"port {port}: .* by \S+ \(process {terminal.process.pid}\)", err)
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 0
    code, _, err = kwaai("lobes", "--json")
    assert code == 0


def test_the_log_can_be_json(kwaai_home: Path, install: Install) -> None:
    install("slow", LOBE.format(before="raise OSError('no disk')", after="pass"))
    (kwaai_home / "kwaai.toml").write_text("[elsewhere]\nkey = 1\n")
    command = [sys.executable, "-m", "kwaai_core", "run", "--lobes", "slow", "--port", "0"]
    with subprocess.Popen(
        [*command, "--log-format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.terminate()
        bound = json.loads(first)
        warning, error, no_executor, stopping = map(json.loads, process.stderr)
        assert not process.stdout.read()
    assert process.returncode == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", bound["url"])
    assert bound["message"] == f"kwaai listens on {bound['url']}"
    assert (warning["level"], error["level"]) == ("warning", "error")
    assert "[elsewhere] belongs to no installed lobe" in warning["message"]
    assert error["message"].startswith("lobe slow (failed): OSError: no disk at site/")
    assert no_executor["message"].startswith("no executor is installed")
    assert stopping["message"].startswith("stopping: ")
