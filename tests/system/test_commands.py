"""The command line, run as a user runs it."""

import json
import subprocess
import sys
from importlib.metadata import version

from real_kwaai import ROOT, Home

LOBES = {"echo", "identity", "libp2p", "llama", "minilm", "models", "router", "smollm2"}


def test_version(home: Home) -> None:
    assert version("kwaai-core") in home.kwaai("--version").stdout
    assert version("kwaai-core") in home.kwaai("version").stdout


def test_every_lobe_is_listed_without_a_node(home: Home) -> None:
    done = home.kwaai("lobes", "--json")
    assert done.returncode == 0, done.stderr
    assert {status["lobe"] for status in json.loads(done.stdout)} == LOBES


def test_commands_that_go_wrong_say_so_in_one_breath(home: Home) -> None:
    (home.folder / "kwaai.toml").write_text("[server]\nprot = 8000\n")
    done = home.kwaai("config", "check")
    assert done.returncode != 0
    assert "prot" in done.stderr
    assert "port" in done.stderr
    assert "Traceback" not in done.stderr


def test_chat_answers_what_is_piped_in(home: Home) -> None:
    greedy = ("--temperature", "0", "--max-tokens", "40", "--lobes", "llama,smollm2")
    done = home.kwaai("chat", *greedy, stdin="Why is the sky blue?")
    assert done.returncode == 0, done.stderr
    assert "sky" in done.stdout


def test_the_examples_run(node: str) -> None:
    for command in (["stream.py", "Say hello."], ["openai_sdk.py", node]):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / command[0], *command[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
