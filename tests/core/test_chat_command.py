"""`kwaai chat`: one question or a dialogue, with a node of its own or with the one that runs."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from .conftest import Install, Kwaai
from .terminal import CTRL_C, CTRL_D, kwaai_on_terminal

LOBE = """
from contextlib import asynccontextmanager
from kwaai_core import Offer, WorkerLost, hookimpl

@asynccontextmanager
async def open_(host):
    import trio
    from kwaai_core.testing import ScriptedExecutor
    {body}

@hookimpl
def provide_executor():
    return Offer("fake", open_)
"""
COUNTING = """
    class Counting(ScriptedExecutor):
        def answer(self, request):
            roles = " ".join(message.role for message in request.prompt)
            self.script = [f"<{roles}>"] if len(self.plays) > 1 else ["Hel", "lo", trio.Event()]
            return super().answer(request)
    yield Counting()
"""
BARE = """
    from kwaai_core import ModelCard
    yield ScriptedExecutor(cards=[ModelCard("bare", blocks=1)])
""".strip()
SOCKET = re.compile(r"socket:\[(\d+)\]")
SAYS = "One two three four five"


@pytest.fixture
def fake(install: Install) -> None:
    install("fake", LOBE.format(body="yield ScriptedExecutor()"))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "words", [("fake/model", "how", "many?"), ("-p", "how many?"), ("fake/model", "-p", "how")]
)
def test_one_question_has_one_answer(kwaai: Kwaai, words: tuple[str, ...]) -> None:
    assert kwaai("chat", "--lobes", "fake", *words) == (0, f"{SAYS}\n", "")


@pytest.mark.usefixtures("fake")
def test_a_prompt_in_the_place_of_a_model(kwaai: Kwaai) -> None:
    code, out, err = kwaai("chat", "--lobes", "fake", "why", "is it #7?")
    assert (code, out) == (1, "")
    assert 'kwaai chat -p "why is it #7?"' in err


@pytest.mark.usefixtures("fake")
def test_the_question_may_come_from_standard_input(
    kwaai: Kwaai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("how many?\n"))
    assert kwaai("chat", "--lobes", "fake") == (0, f"{SAYS}\n", "")


@pytest.mark.usefixtures("fake")
def test_json_has_the_text_and_the_facts(kwaai: Kwaai) -> None:
    command = ("chat", "--lobes", "fake", "--json", "-s", "Be brief.", "-n", "2", "-p", "how many?")
    code, out, err = kwaai(*command)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["text"], told["finish_reason"], told["model"]) == (
        "One two",
        "length",
        "fake/model",
    )
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (4, 2)
    assert told["seconds"] > 0


@pytest.mark.usefixtures("fake")
def test_an_unknown_model_is_answered_with_those_there_are(kwaai: Kwaai) -> None:
    code, out, err = kwaai("chat", "--lobes", "fake", "other", "hello")
    assert (code, out) == (1, "")
    assert err.startswith("error: there is no model “other” here; available: fake/model; a prompt")


@pytest.mark.usefixtures("fake")
def test_an_unknown_model_of_the_settings_says_where_its_name_is(
    kwaai: Kwaai, kwaai_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = kwaai_home / "kwaai.toml"
    file.write_text('[chat]\nmodel = "nope"\n')
    code, _, err = kwaai("chat", "--lobes", "fake", "-p", "hello")
    assert code == 1
    assert err.startswith("error: there is no model “nope” here; available: fake/model; ")
    assert err.endswith(f"; [chat] model names it, in {file}\n")
    monkeypatch.setenv("KWAAI_CHAT_MODEL", "neither")
    assert "“neither”" in (err := kwaai("chat", "--lobes", "fake", "-p", "hello")[2])
    assert err.endswith("; [chat] model names it, in KWAAI_CHAT_MODEL\n")


@pytest.mark.parametrize("words", [["-p", ""], ["-p", " \n"], ["fake/model", ""]])
def test_an_empty_prompt_is_refused(kwaai: Kwaai, words: list[str]) -> None:
    code, out, err = kwaai("chat", *words)
    assert (code, out) == (2, "")
    assert "the prompt is empty: give a prompt with -p" in err


def test_without_a_model_it_is_said_what_to_install(kwaai: Kwaai) -> None:
    code, _, err = kwaai("chat", "--lobes", "", "-p", "hello")
    assert code == 1
    assert "there is no model here: pip install" in err


def test_an_answer_that_breaks_off_is_a_failure(kwaai: Kwaai, install: Install) -> None:
    broken = "yield ScriptedExecutor(['One', WorkerLost('the worker died')])"
    install("fake", LOBE.format(body=broken))
    code, out, err = kwaai("chat", "--lobes", "fake", "-p", "hello")
    assert (code, out) == (1, "One\n")
    assert err.endswith("error: the worker died\n")


def test_a_lobe_that_cannot_open_is_named(kwaai: Kwaai, install: Install) -> None:
    install("fake", LOBE.format(body="raise OSError('no disk')\n    yield"))
    code, out, err = kwaai("chat", "--lobes", "fake", "fake/model", "hello")
    assert (code, out) == (1, "")
    assert "error: the lobe “fake” failed: OSError: no disk" in err


def test_in_a_dialogue_ctrl_c_stops_the_answer(kwaai_home: Path, install: Install) -> None:
    install("fake", LOBE.format(body=COUNTING.strip()))
    with kwaai_on_terminal("chat", "--lobes", "fake", "--system", "Be brief.") as terminal:
        terminal.wait_for("> ")
        terminal.type("how many?\n")
        terminal.wait_for("Hello")
        terminal.type(CTRL_C)
        terminal.wait_for("> ")
        terminal.type("and now?\n")
        terminal.wait_for("<system user assistant user>")
        terminal.wait_for("> ")
        terminal.press_until(CTRL_C, "(Ctrl-D ends)")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_c_ends_a_single_question(kwaai_home: Path, install: Install) -> None:
    install("fake", LOBE.format(body=COUNTING.strip()))
    with kwaai_on_terminal("chat", "--lobes", "fake", "fake/model", "how many?") as terminal:
        terminal.wait_for("Hello")
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 130
    assert "Traceback" not in terminal.shown


def test_a_dialogue_ends_when_its_node_is_gone(kwaai_home: Path, install: Install) -> None:
    install("fake", LOBE.format(body=COUNTING.strip()))
    with kwaai_on_terminal("run", "--lobes", "fake", "--port", "0") as node:
        node.wait_for("listens on")
        with kwaai_on_terminal("chat") as dialogue:
            dialogue.wait_for("> ")
            dialogue.type("how many?\n")
            dialogue.wait_for("Hello")
            node.process.kill()
            assert dialogue.wait_for_end() == 1
    assert "Hello\r\nerror: the node here" in dialogue.shown
    assert "does not answer any more, it has ended: kwaai run" in dialogue.shown
    assert "Error" not in dialogue.shown
    assert "Traceback" not in dialogue.shown


def test_a_dialogue_outlives_an_answer_that_its_node_ends(
    kwaai_home: Path, install: Install
) -> None:
    install("fake", LOBE.format(body=COUNTING.strip()))
    (kwaai_home / "kwaai.toml").write_text("[server]\ngrace_seconds = 0\n")
    with kwaai_on_terminal("run", "--lobes", "fake", "--port", "0") as node:
        node.wait_for("listens on")
        with kwaai_on_terminal("chat") as dialogue:
            dialogue.wait_for("> ")
            dialogue.type("how many?\n")
            dialogue.wait_for("Hello")
            node.type(CTRL_C)
            dialogue.wait_for("\r\nerror: this node is shutting down")
            dialogue.wait_for("> ")
            assert node.wait_for_end() == 0
            dialogue.type("and now?\n")
            assert dialogue.wait_for_end() == 1
    assert dialogue.shown.endswith("it has ended: kwaai run\r\n")


def test_a_node_of_its_own_opens_no_port(kwaai_home: Path, install: Install) -> None:
    install("fake", LOBE.format(body=COUNTING.strip()))
    with kwaai_on_terminal("chat", "--lobes", "fake") as dialogue:
        dialogue.wait_for("> ")
        dialogue.type("how many?\n")
        dialogue.wait_for("Hello")
        theirs = Path(f"/proc/{dialogue.process.pid}/fd").iterdir()
        sockets = {match[1] for fd in theirs if (match := SOCKET.match(os.readlink(fd)))}
        tables = [Path("/proc/net", table).read_text() for table in ("tcp", "tcp6")]
    assert sockets
    assert not sockets & {line.split()[9] for line in "".join(tables).splitlines()}


def test_a_bug_of_an_executor_is_told_as_the_lobes(kwaai: Kwaai, install: Install) -> None:
    bug = "class Buggy(ScriptedExecutor):\n        def generate(self, request):\n"
    bug += "            return request.nonsense\n    yield Buggy()"
    install("fake", LOBE.format(body=bug))
    code, out, err = kwaai("chat", "--lobes", "fake", "-p", "hello")
    assert (code, out) == (1, "")
    assert err == (
        "error: the lobe “fake” failed: AttributeError: 'GenerateRequest' object has no attribute "
        "'nonsense' at site/testing_lobe_fake.py:11\n"
    )


def test_a_model_without_weights_does_not_stand_in_for_a_lobe_that_failed(
    kwaai: Kwaai, install: Install
) -> None:
    install("able", LOBE.format(body=BARE).replace('"fake"', '"able"'))
    install("fake", LOBE.format(body="raise OSError('no disk')\n    yield"))
    code, out, err = kwaai("chat", "--lobes", "able,fake", "-p", "hello")
    assert (code, out) == (1, "")
    assert err.startswith("error: the lobe “fake” failed: OSError: no disk")
    assert err.count("no disk") == 1
    assert kwaai("chat", "--lobes", "able", "-p", "hello")[:2] == (0, f"{SAYS}\n")


EMBEDDER = """
from contextlib import asynccontextmanager
from kwaai_core import Offer, hookimpl

@asynccontextmanager
async def open_(host):
    from kwaai_core.testing import FakeEmbedder
    yield FakeEmbedder()

@hookimpl
def provide_embedder():
    return Offer("vectors", open_)
"""


def test_a_model_that_makes_vectors_is_not_talked_to(kwaai: Kwaai, install: Install) -> None:
    install("vectors", EMBEDDER)
    install("fake", LOBE.format(body=BARE))
    assert kwaai("chat", "--lobes", "vectors,fake", "-p", "hello")[:2] == (0, f"{SAYS}\n")
    code, _, err = kwaai("chat", "--lobes", "vectors,fake", "fake/embedder", "hello")
    assert code == 1
    assert "/v1/embeddings" in err
    code, _, err = kwaai("chat", "--lobes", "vectors", "-p", "hello")
    assert code == 1
    assert "pip install kwaai-lobe-llama" in err


def test_a_lobe_that_cannot_be_imported_is_named_before_any_advice(
    kwaai: Kwaai, install: Install
) -> None:
    install("fake", "import nowhere_to_be_found\n# provide_executor")
    code, out, err = kwaai("chat", "--lobes", "fake", "-p", "hello")
    assert (code, out) == (1, "")
    assert "the lobe “fake” failed: ModuleNotFoundError" in err


def test_input_that_is_not_utf8_is_refused(kwaai: Kwaai, monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ("strict", "surrogateescape"):
        raw = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00"), "utf-8", errors)
        monkeypatch.setattr("sys.stdin", raw)
        code, out, err = kwaai("chat", "-n", "5")
        assert (code, out) == (2, "")
        assert "standard input is not UTF-8" in err
