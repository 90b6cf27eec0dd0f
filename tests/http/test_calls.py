"""Answers that call tools, as the API writes them and as OpenAI's SDK reads them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from kwaai_core.openai.calls import deltas, whole
from kwaai_core.types import CallPiece, Delta, Usage

from .conftest import CARD, Served, chat_body, events

pytestmark = pytest.mark.filterwarnings("ignore:Async generator '(openai|http):ResourceWarning")


class Weather(BaseModel):
    """The weather in a city."""

    city: str
    days: int


class Answer(BaseModel):
    text: str


TOOL = openai.pydantic_function_tool(Weather, name="weather")
MESSAGES: Any = [{"role": "user", "content": "hi"}]
USAGE = Usage(11, 9)
CALLS = [
    Delta("Let me see.", 4),
    Delta("", 2, calls=(CallPiece(0, "weather"), CallPiece(0, None, '{"city": "Pa'))),
    trio.Event(),
    Delta("", 2, calls=(CallPiece(0, None, 'ris", '), CallPiece(0, None, '"days": 1}'))),
    Delta("", 1, calls=(CallPiece(1, "weather"), CallPiece(1, None, '{"city": "","days":2}'))),
    Delta("", finish="tool_calls", usage=USAGE),
]


def script() -> list[Any]:
    pause = trio.Event()
    pause.set()
    return [pause if isinstance(step, trio.Event) else step for step in CALLS]


async def test_an_answer_with_calls(served: Served) -> None:
    served.executor.script = script()
    async with httpx.AsyncClient(base_url=served.url) as client:
        body = chat_body(tools=[TOOL])
        document = (await client.post("/v1/chat/completions", json=body)).json()
    (choice,) = document["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "Let me see."
    first, second = message["tool_calls"]
    assert first["id"].startswith("call_") and first["id"] != second["id"]
    assert first["type"] == "function"
    assert first["function"] == {"name": "weather", "arguments": '{"city": "Paris", "days": 1}'}
    assert second["function"]["arguments"] == '{"city": "","days":2}'
    assert document["usage"]["completion_tokens"] == 9
    request = served.executor.plays[0].request
    assert request.tools is not None and request.tools.shown[0].name == "weather"


async def test_an_answer_of_calls_alone_has_no_content(served: Served) -> None:
    served.executor.script = script()[1:]
    async with httpx.AsyncClient(base_url=served.url) as client:
        body = chat_body(tools=[TOOL], tool_choice="required")
        document = (await client.post("/v1/chat/completions", json=body)).json()
        assert document["choices"][0]["message"]["content"] is None
        sent = await client.post("/v1/chat/completions", json=body | {"stream": True})
    chunks = [event["choices"][0] for event in events(sent.text)[:-1]]
    assert chunks[0]["delta"] == {"role": "assistant", "content": None}
    begun = [
        entry for chunk in chunks for entry in chunk["delta"].get("tool_calls", []) if "id" in entry
    ]
    assert [(entry["index"], entry["type"]) for entry in begun] == [
        (0, "function"),
        (1, "function"),
    ]
    assert [entry["function"] for entry in begun] == [{"name": "weather", "arguments": ""}] * 2
    assert all("content" not in chunk["delta"] for chunk in chunks[1:])
    assert chunks[-1] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls",
    }  # fmt: skip


async def test_every_choice_has_calls_of_its_own(served: Served) -> None:
    served.executor.script = script()
    async with httpx.AsyncClient(base_url=served.url) as client:
        body = chat_body(tools=[TOOL], n=3)
        document = (await client.post("/v1/chat/completions", json=body)).json()
        sent = await client.post("/v1/chat/completions", json=body | {"stream": True})
    calls = [
        call["id"] for choice in document["choices"] for call in choice["message"]["tool_calls"]
    ]
    assert len(set(calls)) == 6
    found: dict[int, str] = {}
    for event in events(sent.text)[:-1]:
        (choice,) = event["choices"]
        for entry in choice["delta"].get("tool_calls", []):
            found[choice["index"]] = found.get(choice["index"], "") + entry["function"]["arguments"]
    assert found == dict.fromkeys(range(3), '{"city": "Paris", "days": 1}{"city": "","days":2}')


def check(completion: Any) -> None:
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    parsed = [call.function.parsed_arguments for call in choice.message.tool_calls]
    assert parsed == [Weather(city="Paris", days=1), Weather(city="", days=2)]
    assert choice.message.content == "Let me see."


async def test_the_sdk_parses_calls(served: Served) -> None:
    served.executor.script = script()

    def use() -> None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            check(client.chat.completions.parse(model=CARD.id, messages=MESSAGES, tools=[TOOL]))
            with client.chat.completions.stream(
                model=CARD.id, messages=MESSAGES, tools=[TOOL]
            ) as stream:
                kinds = [event.type for event in stream]
                check(stream.get_final_completion())
            assert kinds.count("tool_calls.function.arguments.done") == 2
            assert "tool_calls.function.arguments.delta" in kinds

    await trio.to_thread.run_sync(use)


async def test_the_sdk_parses_calls_on_trio(served: Served) -> None:
    served.executor.script = script()
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        check(await client.chat.completions.parse(model=CARD.id, messages=MESSAGES, tools=[TOOL]))
        async with client.chat.completions.stream(
            model=CARD.id, messages=MESSAGES, tools=[TOOL]
        ) as stream:
            check(await stream.get_final_completion())


async def test_the_sdk_asks_for_a_model_of_pydantic_and_gets_one(served: Served) -> None:
    served.executor.script = [
        Delta('{"text":'),
        Delta(' "x"}'),
        Delta("", finish="stop", usage=USAGE),
    ]
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        parsed = await client.chat.completions.parse(
            model=CARD.id, messages=MESSAGES, response_format=Answer
        )
    assert parsed.choices[0].message.parsed == Answer(text="x")
    schema = served.executor.plays[0].request.schema
    assert schema is not None and '"text"' in schema


pieces = st.lists(
    st.builds(
        CallPiece,
        st.integers(0, 2),
        st.none() | st.text(min_size=1, max_size=3),
        st.text(max_size=4),
    ),
    max_size=8,
)


@given(pieces)
def test_deltas_are_the_pieces(given_pieces: list[CallPiece]) -> None:
    """One for each name, and no two in a row of arguments of one call."""
    found = list(deltas(given_pieces))
    named = [entry for entry in found if "id" in entry]
    assert [entry["function"]["name"] for entry in named] == [  # type: ignore[index]
        piece.name for piece in given_pieces if piece.name is not None
    ]
    rest = [entry for entry in found if "id" not in entry]
    assert "".join(e["function"]["arguments"] for e in rest) == "".join(  # type: ignore[index]
        piece.arguments for piece in given_pieces
    )
    for one, other in pairwise(found):
        assert "id" in one or "id" in other or one["index"] != other["index"]


def test_calls_are_gathered_by_their_number() -> None:
    calls = whole([CallPiece(0, "a"), CallPiece(1, "b", "{"), CallPiece(0, None, "{}")])
    assert [call["function"] for call in calls] == [
        {"name": "a", "arguments": "{}"}, {"name": "b", "arguments": "{"},
    ]  # fmt: skip
