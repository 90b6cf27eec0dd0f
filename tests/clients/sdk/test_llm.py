"""Simon Willison's ``llm``: its command line, with a node as one of its models."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import SMOLLM2

LLM = Path(sys.executable).with_name("llm")
MODELS = """\
- model_id: kwaai
  model_name: {model}
  api_base: {url}/v1
- model_id: kwaai-text
  model_name: {model}
  api_base: {url}/v1
  completion: true
- model_id: kwaai-elsewhere
  model_name: nothing
  api_base: {url}/v1
"""
GREEDY = ("-o", "temperature", "0", "-o", "max_tokens", "12")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def llm(node: str, tmp_path: Path) -> Run:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(model=SMOLLM2, url=node))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LLM, *words],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_prompt_streamed_and_whole(llm: Run) -> None:
    ask = ("-m", "kwaai", *GREEDY, "Name three rivers in Europe.")
    streamed = said(llm(*ask))
    assert streamed.strip()
    assert said(llm(*ask, "--no-stream")) == streamed


def test_options_and_a_system_prompt_are_honoured(llm: Run) -> None:
    seeded = ("-m", "kwaai", "-o", "seed", "7", "-o", "temperature", "1.5", "-o", "max_tokens", "9")
    first = said(llm(*seeded, "Say something."))
    assert said(llm(*seeded, "Say something.")) == first
    assert said(llm(*seeded, "-s", "You speak of cheese alone.", "Say something.")) != first
    bias = ("-o", "logit_bias", '{"2": -100, "198": 100}')  # a line break, and no end
    assert said(llm("-m", "kwaai", *GREEDY, *bias, "Hello")).strip() == ""


def test_a_conversation_goes_on(llm: Run) -> None:
    said(llm("-m", "kwaai", *GREEDY, "My name is Gottlieb."))
    said(llm("-c", *GREEDY, "What is my name?"))
    first, second = json.loads(said(llm("logs", "--json")))
    assert first["conversation_id"] == second["conversation_id"]
    # what the node counted: the second prompt has the first exchange in it
    assert second["input_tokens"] > first["input_tokens"] + first["output_tokens"]
    assert "Gottlieb" in second["response"]


def test_a_text_goes_on(llm: Run) -> None:
    assert "Paris" in said(llm("-m", "kwaai-text", *GREEDY, "The capital of France is"))


def test_an_error_is_shown(llm: Run) -> None:
    done = llm("-m", "kwaai-elsewhere", "Hello")
    assert done.returncode != 0
    assert SMOLLM2 in done.stderr  # the models that there are
