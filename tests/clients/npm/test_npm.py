"""OpenAI's own client for JavaScript, in Node.js; what it is asked to do is in ``ask.mjs``."""

import json
import shutil
import subprocess
from collections.abc import Callable
from operator import mul
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import SMOLLM2

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js here"),
    pytest.mark.skipif(
        not (HERE / "node_modules").is_dir(),
        reason="the npm packages are not installed: tox -e npm-openai does it",
    ),
]


@pytest.fixture
def ask(node: str) -> Callable[[str], Any]:
    def asking(what: str) -> Any:
        done = subprocess.run(
            ["node", "ask.mjs", node, what], cwd=HERE, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return asking


def test_models(ask: Callable[[str], Any]) -> None:
    answer = ask("models")
    assert SMOLLM2 in answer["listed"]
    assert answer["found"] == SMOLLM2


def test_streams_say_the_same_as_whole_answers(ask: Callable[[str], Any]) -> None:
    whole, streamed, helped = ask("chat"), ask("stream"), ask("helper")
    assert whole["text"]
    assert whole["usage"]["completion_tokens"] == streamed["usage"]["completion_tokens"] == 12
    assert whole["kwaai"]["route"][0]["lo"] == 0
    assert streamed["text"] == whole["text"]
    assert (helped["text"], helped["final"]) == (whole["text"], whole["text"])
    assert helped["finish"] == "length"


def test_completions(ask: Callable[[str], Any]) -> None:
    france, italy = ask("completion")
    assert "Paris" in france["text"]
    assert "Rome" in italy["text"]
    assert "".join(france["tokens"]) == france["text"]


def test_embeddings(ask: Callable[[str], Any]) -> None:
    house, other, sharks = ask("embeddings")
    assert len(house) == 384
    assert sum(map(mul, house, other)) > 0.8 > sum(map(mul, house, sharks))


def test_responses(ask: Callable[[str], Any]) -> None:
    said = ask("responses")
    assert said["text"] == said["whole"] != ""


def test_what_is_aborted_is_no_longer_computed(
    ask: Callable[[str], Any], at_work: Callable[[bool], None]
) -> None:
    assert ask("abort")["kind"] == "APIUserAbortError"
    at_work(False)


def test_errors(ask: Callable[[str], Any], at_work: Callable[[bool], None]) -> None:
    said = ask("errors")
    found = {key: tuple(said[key].get(part) for part in ("kind", "status", "code")) for key in said}
    assert found == {
        "model": ("NotFoundError", 404, "model_not_found"),
        "name": ("BadRequestError", 400, "unsupported_parameter"),
        "range": ("BadRequestError", 400, None),
        "path": ("NotFoundError", 404, None),
        "context": ("BadRequestError", 400, "context_length_exceeded"),
        "time": ("APIConnectionTimeoutError", None, None),
    }
    assert said["name"]["param"] == "beams"
    at_work(False)
