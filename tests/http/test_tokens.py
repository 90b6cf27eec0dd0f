"""/tokenize, /detokenize and /tokenizer_info, as vLLM's clients and lm-eval ask."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import LobeFailed, RequestError, UnsupportedParameter
from kwaai_core.openai.tokens import parse_detokenize, parse_tokenize
from kwaai_core.testing.fakes import CARD, ScriptedExecutor
from kwaai_core.types import TokenIds

from .conftest import FakeNode, PlayedExecutor, Served, post, serving
from .test_api import error_of


class Speaking(FakeNode):
    """A node of an executor that tells of tokens, and of one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.speaking = ScriptedExecutor()

    @property
    def executors(self) -> Any:
        return (PlayedExecutor(), self.speaking)


@pytest.fixture
async def speaking(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(Speaking(), tmp_path) as running:
        yield running


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_text_goes_to_tokens_and_back(speaking: Served, prefix: str) -> None:
    async with speaking.client() as client:
        asked = {"prompt": "Où", "add_special_tokens": False, "return_token_strs": True}
        answer = (await client.post(f"{prefix}/tokenize", json=asked)).json()
        assert answer == {
            "count": 3, "max_model_len": 4096, "tokens": [79, 195, 185],
            "token_strs": ["O", "Ã", "¹"],
        }  # fmt: skip
        back = await client.post(f"{prefix}/detokenize", json={"tokens": answer["tokens"]})
        assert back.json() == {"prompt": "Où"}
        plain = (await client.post(f"{prefix}/tokenize", json={"prompt": "a"})).json()
        assert (plain["tokens"], plain["token_strs"]) == ([256, 97], None)
        info = (await client.get(f"{prefix}/tokenizer_info")).json()
        assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "<turn>", None)
        assert info["chat_template"] and info["model"] == CARD.id
        assert info["model_max_length"] == 4096


async def test_a_conversation_has_tokens_too(speaking: Served) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "model": CARD.id}
    async with speaking.client() as client:
        opened = (await client.post("/tokenize", json=body)).json()
        closed = await client.post("/tokenize", json=body | {"add_generation_prompt": False})
        special = await client.post("/tokenize", json=body | {"add_special_tokens": True})
    assert opened["tokens"] == [257, 97, 257]
    assert closed.json()["tokens"] == [257, 97]
    assert special.json()["tokens"] == [256, 257, 97, 257]


async def test_a_model_without_a_tokenizer_and_one_that_is_not_there(speaking: Served) -> None:
    async with speaking.client() as client:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            mute = await client.post(path, json=body | {"model": "tiny/model"})
            assert "no tokenizer" in error_of(mute, 400, None)["message"]
            none = await client.post(path, json=body | {"model": "nobody"})
            assert CARD.id in error_of(none, 404, "model_not_found")["message"]
        mute = await client.get("/tokenizer_info", params={"model": "tiny/model"})
        error_of(mute, 400, None)
        strange = await client.post("/detokenize", json={"tokens": [258]})
        assert "258" in error_of(strange, 400, None)["message"]


async def test_of_several_models_one_has_to_be_named(tmp_path: Path) -> None:
    node = Speaking()
    other = replace(CARD, id="other")
    node.speaking.cards = (CARD, other)
    async with serving(node, tmp_path) as running, running.client() as client:
        error = error_of(await client.post("/tokenize", json={"prompt": "a"}), 400, None)
        assert CARD.id in error["message"] and "other" in error["message"]
        named = await client.post("/tokenize", json={"prompt": "a", "model": "other"})
        assert named.status_code == 200
        by_digest = await client.get("/tokenizer_info", params={"model": CARD.digest})
        assert by_digest.status_code == 200


@pytest.mark.parametrize(
    "request_of",
    [
        post("/tokenize", {"prompt": "a"}),
        post("/v1/detokenize", {"tokens": [1]}),
        b"GET /tokenizer_info HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
async def test_who_leaves_ends_the_work(tmp_path: Path, request_of: bytes) -> None:
    node = Speaking()
    begun, left = trio.Event(), trio.Event()

    async def load(*given: Any, **more: Any) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            left.set()

    vars(node.speaking).update(tokenize=load, detokenize=load, tokenizer=load)
    async with serving(node, tmp_path, grace_seconds=600) as running:
        async with await running.connect() as connection:
            await connection.send_all(request_of)
            await begun.wait()
        with trio.fail_after(5):
            await left.wait()


async def test_an_executor_that_has_failed_is_said_to_have(served: Served) -> None:
    served.executor.models_error = LobeFailed("fake", "it crashed")
    async with served.client() as client:
        error_of(await client.post("/tokenize", json={"prompt": "a"}), 503, "lobe_failed")


@pytest.mark.parametrize(
    ("body", "param", "kind"),
    [
        ({}, "prompt", RequestError),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt", RequestError),
        ({"prompt": ["a"]}, "prompt", RequestError),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt",
         UnsupportedParameter),
        ({"messages": []}, "messages", RequestError),
        ({"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ 1 }}"},
         "chat_template", UnsupportedParameter),
        ({"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
         "continue_final_message", UnsupportedParameter),
        ({"prompt": "a", "truncate": 3}, "truncate", UnsupportedParameter),
    ],
)  # fmt: skip
def test_what_tokenize_refuses(body: dict[str, Any], param: str, kind: type[RequestError]) -> None:
    with pytest.raises(kind) as refused:
        parse_tokenize(json.dumps(body).encode())
    assert refused.value.param == param


@given(st.lists(st.integers(0, 2**31 - 1), max_size=30))
def test_tokens_arrive_as_they_are(ids: list[int]) -> None:
    assert parse_detokenize(json.dumps({"tokens": ids}).encode()).tokens == TokenIds(tuple(ids))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
names = st.sampled_from(
    ["model", "prompt", "messages", "tokens", "add_special_tokens", "return_token_strs", "tools"]
)


@given(st.dictionaries(names, json_values))
def test_whatever_comes_is_taken_or_refused(body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    for parse in (parse_tokenize, parse_detokenize):
        try:
            parse(data)
        except RequestError as error:
            assert error.message
