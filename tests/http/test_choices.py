"""Several answers to one call, and the probabilities of their tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import openai
import pytest
import trio
from trio.abc import ReceiveChannel

from kwaai_core.errors import Busy, UpstreamLost
from kwaai_core.openai.batches import MAX_AT_ONCE
from kwaai_core.types import Delta, GenerateRequest, Logprob, TokenIds, TokenLogprob, Usage

from .conftest import CARD, LAST, Served, Step, chat_body, events

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
TOKENS = (
    TokenLogprob(b"Ol", -0.5, (Logprob(b"Ol", -0.5), Logprob(b"\xc3", -2.0))),
    TokenLogprob(b"\xc3", -1.0, (Logprob(b"\xc3", -1.0), Logprob(b"a", -inf))),
    TokenLogprob(b"\xa9!", -0.25),
)


def say_seed(request: GenerateRequest) -> Sequence[Step]:
    seed = request.sampling.seed
    return [Delta(f"seed {seed}", 2), Delta("", finish="stop", usage=Usage(11, 2, 1))]


def say_prompt(request: GenerateRequest) -> Sequence[Step]:
    prompt = request.prompt
    said = str(prompt.ids) if isinstance(prompt, TokenIds) else str(prompt)
    return [Delta(said, 1), Delta("", finish="length", usage=Usage(3, 1))]


def say_tokens(request: GenerateRequest) -> Sequence[Step]:
    if request.logprobs is None:
        return [Delta("Olé!", 3), LAST]
    return [Delta("Ol", 1, logprobs=TOKENS[:1]), Delta("é!", 2, logprobs=TOKENS[1:]), LAST]


async def test_each_choice_has_a_seed_and_the_prompt_counts_once(served: Served) -> None:
    served.executor.script_of = say_seed
    async with served.client() as client:
        answer = (await client.post(CHAT, json=chat_body(n=3, seed=7))).json()
    said = [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]]
    assert said == [(0, "seed 7"), (1, "seed 8"), (2, "seed 9")]
    assert answer["usage"]["prompt_tokens"] == 11
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert answer["kwaai"]["route"]


async def test_each_prompt_has_n_choices_in_its_place(served: Served) -> None:
    served.executor.script_of = say_prompt
    body = {"model": CARD.id, "prompt": ["a", [1, 2]], "n": 2}
    async with served.client() as client:
        answer = (await client.post(TEXT, json=body)).json()
    said = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert said == [(0, "a"), (1, "a"), (2, "(1, 2)"), (3, "(1, 2)")]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (6, 4)


async def test_choices_are_streamed_at_the_same_time_and_end_once(served: Served) -> None:
    turns = [trio.Event(), trio.Event()]

    def script(request: GenerateRequest) -> Sequence[Step]:
        number = (request.sampling.seed or 0) - 5
        return [
            Delta(f"begin {number}", 1), turns[number], Delta(" end", 1),
            Delta("", finish="stop", usage=Usage(11, 2)),
        ]  # fmt: skip

    served.executor.script_of = script
    turns[1].set()
    seen = list[tuple[int, str | None]]()
    body = chat_body(n=2, seed=5, stream=True, stream_options={"include_usage": True})
    async with (
        served.client() as client,
        client.stream("POST", CHAT, json=body) as response,
    ):
        text = ""
        async for line in response.aiter_lines():
            text += line + "\n"
            if '"index":1' in line and '"finish_reason":"stop"' in line:
                turns[0].set()  # the first cannot go on before the second has ended
    *chunks, counted, done = events(text)
    assert done == "[DONE]"
    for chunk in chunks:
        (choice,) = chunk["choices"]
        seen.append((choice["index"], choice["delta"].get("content", choice["finish_reason"])))
        assert chunk["usage"] is None and "kwaai" not in chunk
        assert chunk["id"] == chunks[0]["id"]
    assert [said for index, said in seen if index == 0] == ["", "begin 0", " end", "stop"]
    assert [said for index, said in seen if index == 1] == ["", "begin 1 end", "stop"]
    assert counted["choices"] == []
    assert counted["usage"]["completion_tokens"] == 4
    assert counted["kwaai"]["route"]


async def test_the_facts_are_with_the_choice_that_ends_last(served: Served) -> None:
    served.executor.script_of = say_seed
    async with served.client() as client:
        response = await client.post(CHAT, json=chat_body(n=3, stream=True))
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert ["kwaai" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum(bool(c["choices"][0]["finish_reason"]) for c in chunks) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_as_many_choices_as_may_be_asked_for_do_not_fill_a_queue(
    served: Served, stream: bool
) -> None:
    under_way = 0

    @asynccontextmanager
    async def counted(request: GenerateRequest) -> AsyncIterator[ReceiveChannel[Delta]]:
        nonlocal under_way
        if under_way == MAX_AT_ONCE:
            raise Busy("too many")
        under_way += 1
        try:
            async with generate(request) as deltas:
                yield deltas
        finally:
            under_way -= 1

    generate = served.executor.generate
    served.executor.generate = counted  # type: ignore[method-assign]
    async with served.client() as client:
        response = await client.post(CHAT, json=chat_body(n=128, stream=stream))
    assert response.status_code == 200
    if stream:
        *chunks, done = events(response.text)
        ended = [one["choices"][0] for one in chunks if one["choices"][0]["finish_reason"]]
        assert done == "[DONE]"
    else:
        ended = response.json()["choices"]
    assert sorted(choice["index"] for choice in ended) == [*range(128)]


async def test_a_choice_that_fails_ends_the_others(served: Served) -> None:
    never, begun = trio.Event(), trio.Event()

    def script(request: GenerateRequest) -> Sequence[Step]:
        if request.sampling.seed == 1:
            return [begun, UpstreamLost("the peer is gone")]
        return [Delta("b", 1), never, LAST]

    served.executor.script_of = script
    async with served.client() as client:
        body = chat_body(n=2, seed=1, stream=True)
        async with client.stream("POST", CHAT, json=body) as response:
            text = ""
            async for line in response.aiter_lines():
                text += line + "\n"
                begun.set()
        assert events(text)[-1]["error"]["code"] == "upstream_lost"
        whole = await client.post(CHAT, json=body | {"stream": False})
        assert whole.status_code == 502
    for played in served.executor.plays:
        with trio.fail_after(5):
            await played.left.wait()


async def test_a_choice_that_is_refused_at_once_is_an_error_of_the_call(served: Served) -> None:
    served.executor.entering = Busy("too many", retry_after=3)
    async with served.client() as client:
        for stream in (True, False):
            response = await client.post(CHAT, json=chat_body(n=2, stream=stream))
            assert (response.status_code, response.headers["retry-after"]) == (429, "3")


async def test_probabilities_in_a_chat(served: Served) -> None:
    served.executor.script_of = say_tokens
    async with served.client() as client:
        body = chat_body(logprobs=True, top_logprobs=2)
        answer = (await client.post(CHAT, json=body)).json()
        streamed = events((await client.post(CHAT, json=body | {"stream": True})).text)
    logprobs = answer["choices"][0]["logprobs"]
    first, second, third = logprobs["content"]
    assert first == {
        "token": "Ol", "logprob": -0.5, "bytes": [79, 108],
        "top_logprobs": [
            {"token": "Ol", "logprob": -0.5, "bytes": [79, 108]},
            {"token": "\ufffd", "logprob": -2.0, "bytes": [0xC3]},
        ],
    }  # fmt: skip
    assert second["top_logprobs"][1]["logprob"] == -9999.0
    assert (third["bytes"], third["top_logprobs"]) == ([0xA9, 33], [])
    told = [chunk["choices"][0]["logprobs"] for chunk in streamed[:-1]]
    assert [entry for one in told if one for entry in one["content"]] == logprobs["content"]
    assert served.executor.plays[0].request.logprobs == 2


async def test_probabilities_in_a_completion(served: Served) -> None:
    served.executor.script_of = say_tokens
    body = {"model": CARD.id, "prompt": "x", "logprobs": 2}
    async with served.client() as client:
        answer = (await client.post(TEXT, json=body)).json()
        streamed = events((await client.post(TEXT, json=body | {"stream": True})).text)
        plain = (await client.post(TEXT, json=body | {"logprobs": None})).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["Ol", "bytes:\\xc3", "bytes:\\xa9\\x21"],
        "token_logprobs": [-0.5, -1.0, -0.25],
        "top_logprobs": [
            {"bytes:\\xc3": -2.0, "Ol": -0.5},
            {"a": -9999.0, "bytes:\\xc3": -1.0},
            {},
        ],
        "text_offset": [0, 2, 2],
    }
    told = [chunk["choices"][0]["logprobs"] for chunk in streamed[:-1]]
    offsets = [offset for one in told if one for offset in one["text_offset"]]
    assert offsets == logprobs["text_offset"]
    assert plain["choices"][0]["logprobs"] is None


async def test_an_echo_comes_before_the_answer_in_one_count_of_characters(served: Served) -> None:
    prompt = (TokenLogprob(b"\xc3", None), TokenLogprob(b"\xa9 ", -3.0, (Logprob(b" ", -0.5),)))

    def script(request: GenerateRequest) -> Sequence[Step]:
        assert request.echo and request.max_tokens == 2
        ending = (TokenLogprob(b"b", -1.0), TokenLogprob(b"", -0.25))
        return [Delta("é ", logprobs=prompt), Delta("b", 1, logprobs=ending), LAST]

    served.executor.script_of = script
    body = {"model": CARD.id, "prompt": [1, 2], "echo": True, "logprobs": 1, "max_tokens": 2}
    async with served.client() as client:
        answer = (await client.post(TEXT, json=body)).json()
        streamed = events((await client.post(TEXT, json=body | {"stream": True})).text)
    (choice,) = answer["choices"]
    assert choice["text"] == "é b"
    assert choice["logprobs"] == {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9\\x20", "b", ""],
        "token_logprobs": [None, -3.0, -1.0, -0.25],
        "top_logprobs": [None, {" ": -0.5}, {}, {}],
        "text_offset": [0, 0, 2, 3],
    }
    told = [chunk["choices"][0]["logprobs"] for chunk in streamed[:-1]]
    for key, values in choice["logprobs"].items():
        assert [value for one in told if one for value in one[key]] == values


async def test_the_sdk_reads_an_echo(served: Served) -> None:
    tokens = (TokenLogprob(b"a", None), TokenLogprob(b"b", -1.5))
    served.executor.script = [Delta("ab", logprobs=tokens), LAST]

    def use() -> Any:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            return client.completions.create(
                model=CARD.id, prompt="ab", echo=True, logprobs=0, max_tokens=0
            )

    answer = await trio.to_thread.run_sync(use)
    logprobs = answer.choices[0].logprobs
    assert (answer.choices[0].text, logprobs.tokens) == ("ab", ["a", "b"])
    assert logprobs.token_logprobs == [None, -1.5]


@pytest.mark.parametrize("n", [1, 2])
async def test_the_sdk_reads_choices_and_probabilities(served: Served, n: int) -> None:
    served.executor.script_of = say_tokens

    def use() -> Any:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            return client.chat.completions.create(
                model=CARD.id, messages=[{"role": "user", "content": "hi"}], n=n,
                logprobs=True, top_logprobs=1,
            )  # fmt: skip

    answer = await trio.to_thread.run_sync(use)
    assert [choice.index for choice in answer.choices] == list(range(n))
    for choice in answer.choices:
        assert bytes(b for one in choice.logprobs.content for b in one.bytes).decode() == "Olé!"
