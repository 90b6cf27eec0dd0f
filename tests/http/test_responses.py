"""/v1/responses: what is taken, what is refused by name, and what the SDK makes of the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.errors import (
    Busy,
    ContextLengthExceeded,
    RequestError,
    RequestTooLarge,
    UnsupportedParameter,
    UpstreamLost,
)
from kwaai_core.openai import ResponseCall, parse_response
from kwaai_core.types import (
    CallPiece,
    Delta,
    Intent,
    Logprob,
    Message,
    Sampling,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)

from .conftest import CARD, LAST, FakeNode, Served, post, read_until, serving
from .test_api import error_of
from .test_tokens import json_values

PATH = "/v1/responses"
GET: dict[str, Any] = {"type": "function", "name": "get"}
CUT = Delta("", finish="length", usage=Usage(11, 3, 2))


def body(**more: Any) -> dict[str, Any]:
    return {"model": CARD.id, "input": "hi"} | more


def parsed(**more: Any) -> ResponseCall:
    return parse_response(json.dumps(body(**more)).encode())


def refusal(**more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(**more)
    return caught.value


def named_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream, each with its name, which its data repeats."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append((event["type"], event))
    return found


# -- what is taken


def test_a_text_is_the_users() -> None:
    call = parsed()
    assert call.request.prompt == (Message("user", "hi"),)
    assert (call.request.intent, call.request.sampling) == (Intent(CARD.id), Sampling())
    assert (call.request.max_tokens, call.request.logprobs) == (None, None)
    assert (call.stream, call.timing, dict(call.repeated)) == (False, False, {})


def test_everything_honoured_arrives() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
            {"type": "output_text", "text": "b", "annotations": [], "logprobs": []},
            {"type": "output_text", "text": "c", "annotations": []},
        ]},
        {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
    ]  # fmt: skip
    call = parsed(
        input=items, instructions="Be brief.", max_output_tokens=7, temperature=0, top_p=0.5,
        seed=3, stop="x", text={"format": {"type": "text"}, "verbosity": None},
        truncation="disabled",
        metadata={"a": "b"}, stream=True, store=True, user="u", tools=[], tool_choice="auto",
        include=["message.output_text.logprobs"], top_logprobs=2, background=False,
        previous_response_id=None, reasoning={"effort": "none"}, parallel_tool_calls=False,
        stream_options={"include_obfuscation": False}, kwaai={"exact": True, "timing": True},
    )  # fmt: skip
    assert call.request.prompt == (
        Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b\nc"),
        Message("developer", "d"),
    )  # fmt: skip
    assert call.request.intent == Intent(CARD.id, exact=True)
    assert call.request.sampling == Sampling(temperature=0.0, top_p=0.5, seed=3)
    assert (call.request.stop, call.request.max_tokens) == (("x",), 7)
    assert (call.request.logprobs, call.stream, call.timing) == (2, True, True)
    assert call.repeated["instructions"] == "Be brief." and call.repeated["metadata"] == {"a": "b"}


@pytest.mark.parametrize(
    ("more", "logprobs"),
    [
        ({}, None),
        ({"include": []}, None),
        ({"include": ["reasoning.encrypted_content"]}, None),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"top_logprobs": 3}, 3),
        ({"top_logprobs": 0}, None),
    ],
)
def test_probabilities_are_told_where_they_are_asked_for(
    more: dict[str, Any], logprobs: int | None
) -> None:
    assert parsed(**more).request.logprobs == logprobs


def test_a_form_of_the_answer_is_a_schema() -> None:
    given: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": given, "strict": True}
    assert json.loads(parsed(text={"format": form}).request.schema or "") == given
    assert json.loads(parsed(text={"format": {"type": "json_object"}}).request.schema or "") == {
        "type": "object"
    }
    assert parsed(text={"format": {"type": "text"}}).request.schema is None


@pytest.mark.parametrize(
    ("choice", "allowed", "required"),
    [
        (None, (0, 1), False), ("auto", (0, 1), False), ("required", (0, 1), True),
        ({"type": "function", "name": "add"}, (1,), True),
        ({"type": "allowed_tools", "mode": "required", "tools": [GET]}, (0,), True),
    ],
)  # fmt: skip
def test_tools_stand_beside_their_type(choice: Any, allowed: Any, required: bool) -> None:
    add = {"type": "function", "name": "add", "description": "It adds.", "strict": True,
           "parameters": {"type": "object"}}  # fmt: skip
    choice = (
        choice
        if not isinstance(choice, dict) or "tools" not in choice
        else choice | {"tools": [{"type": "function", "name": "get"}]}
    )
    tools = parsed(tools=[GET, add], tool_choice=choice).request.tools
    assert tools is not None
    assert [tool.name for tool in tools.shown] == ["get", "add"]
    assert tools.shown[1] == Tool("add", "It adds.", '{"type": "object"}', strict=True)
    assert (tools.allowed, tools.required) == (allowed, required)


def test_calls_and_their_outputs_are_turns() -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so"},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "get", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "get", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "function_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "43"}]},
    ]  # fmt: skip
    calls = (ToolCall("c1", "get", "{}"), ToolCall("c2", "get", '{"a": 1}'))
    assert parsed(input=items).request.prompt == (
        Message("user", "hi"), Message("assistant", "so", tool_calls=calls),
        Message("tool", "42", tool_call_id="c1"), Message("tool", "43", tool_call_id="c2"),
    )  # fmt: skip


# -- what is refused, by name


@pytest.mark.parametrize(
    ("more", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "no response is kept"),
        ({"conversation": "conv_1"}, "conversation", "no conversation is kept"),
        ({"prompt": {"id": "p"}}, "prompt", "no prompt is kept"),
        ({"background": True}, "background", "leave it out"),
        ({"truncation": "auto"}, "truncation", "never drops"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "leave it out"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "leave it out"),
        ({"include": ["file_search_call.results"]}, "include[0]", "file_search_call"),
        ({"include": [7]}, "include[0]", "no string"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input[0]", "leave the item out"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0]", "only text"),
        ({"max_tokens": 5}, "max_tokens", "no parameter"),
        ({"messages": []}, "messages", "no parameter messages"),
        ({"n": 2}, "n", "no parameter n"),
        ({"stream_options": {"include_usage": True}}, "stream_options.include_usage", "no param"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(more: dict[str, Any], param: str, says: str) -> None:
    error = refusal(**more)
    assert isinstance(error, UnsupportedParameter)
    assert error.param == param and says in error.message


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"model": None}, "model"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ({"instructions": 7}, "instructions"),
        ({"stream": "yes"}, "stream"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [GET, GET]}, "tools[1].name"),
        ({"tools": [GET], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        (
            {"tools": [GET], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
        ),
        ({"tools": [GET], "top_logprobs": 1}, "include"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "description": 7}}},
            "text.format.description",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
            "input[0].arguments",
        ),
        ({"input": [{"type": "function_call_output", "output": "1"}]}, "input[0].call_id"),
        ({"kwaai": {"min_tier": "king"}}, "kwaai.min_tier"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], param: str) -> None:
    error = refusal(**more)
    assert not isinstance(error, UnsupportedParameter)
    assert error.param == param


def test_so_many_items_and_no_more() -> None:
    many = json.dumps(body(input=[{"role": "user", "content": "a"}] * 3)).encode()
    assert len(parse_response(many, max_messages=3).request.prompt) == 3  # type: ignore[arg-type]
    with pytest.raises(RequestTooLarge):
        parse_response(many, max_messages=2)


fields = st.sampled_from(
    ["input", "instructions", "text", "tools", "include", "metadata", "reasoning", "truncation",
     "stream", "max_output_tokens", "kwaai", "store", "conversation", "top_logprobs"]
)  # fmt: skip


@given(st.dictionaries(fields, json_values))
def test_whatever_comes_is_taken_or_refused(more: dict[str, Any]) -> None:
    try:
        parsed(**more)
    except RequestError as error:
        assert error.message


roles = st.sampled_from(["system", "developer", "user", "assistant"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(roles, texts), min_size=1, max_size=5), st.booleans())
def test_a_conversation_arrives_in_order(said: list[tuple[str, str]], parts: bool) -> None:
    items = [
        {"role": role, "content": [{"type": "input_text", "text": text}] if parts else text}
        for role, text in said
    ]
    prompt = parsed(input=items).request.prompt
    assert isinstance(prompt, tuple)
    assert [(message.role, message.content) for message in prompt] == said


# -- answers


async def test_a_response(served: Served) -> None:
    asked = body(metadata={"a": "b"}, instructions="x", max_output_tokens=9, store=True)
    async with served.client() as client:
        response = await client.post(PATH, json=asked)
    answer = response.json()
    assert response.headers["x-kwaai-route"] == "local:0-4"
    (item,) = answer["output"]
    assert item["id"].startswith("msg_") and answer["id"].startswith("resp_")
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    text = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    assert item["content"] == [text]
    assert answer["usage"] == {
        "input_tokens": 11, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 14,
    }  # fmt: skip
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    assert (answer["model"], answer["metadata"]) == (CARD.id, {"a": "b"})
    assert (answer["store"], answer["instructions"]) == (False, "x")
    assert (answer["max_output_tokens"], answer["temperature"]) == (9, 0.8)
    assert answer["kwaai"] == {"route": [{"peer": "local", "lo": 0, "hi": 4}]}
    assert served.executor.plays[0].request.max_tokens == 9


async def test_one_that_was_cut_says_so(served: Served) -> None:
    served.executor.script = [Delta("Hel", 3), CUT]
    async with served.client() as client:
        answer = (await client.post(PATH, json=body())).json()
        streamed = named_events((await client.post(PATH, json=body(stream=True))).text)
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    kind, last = streamed[-1]
    assert (kind, last["response"]["status"]) == ("response.incomplete", "incomplete")


async def test_a_stream_is_the_response_event_by_event(served: Served) -> None:
    gate = trio.Event()
    served.executor.script = [Delta("Hel", 1), gate, Delta("lo", 1), LAST]
    text = ""
    async with (
        served.client() as client,
        client.stream("POST", PATH, json=body(stream=True)) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for line in response.aiter_lines():
            text += line + "\n"
            if '"delta":"Hel"' in line:
                gate.set()
    found = named_events(text)
    assert [kind for kind, _ in found] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added", "response.output_text.delta", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for _, event in found] == list(range(len(found)))
    by_kind = dict(found)
    created, completed = by_kind["response.created"], by_kind["response.completed"]["response"]
    assert created["response"]["status"] == "in_progress" and created["response"]["output"] == []
    assert completed["id"] == created["response"]["id"]
    assert [e["delta"] for kind, e in found if kind == "response.output_text.delta"] == [
        "Hel",
        "lo",
    ]
    assert by_kind["response.output_text.done"]["text"] == "Hello"
    item = by_kind["response.output_item.done"]["item"]
    assert completed["output"] == [item]
    assert {e["item_id"] for _, e in found if "item_id" in e} == {item["id"]}
    assert completed["usage"]["total_tokens"] == 14 and completed["kwaai"]["route"]
    assert "[DONE]" not in text


async def test_a_stream_that_fails_says_so_in_an_event(served: Served) -> None:
    gate = trio.Event()
    served.executor.script = [Delta("Hel", 1), gate, UpstreamLost("the peer is gone")]
    text = ""
    async with (
        served.client() as client,
        client.stream("POST", PATH, json=body(stream=True)) as response,
    ):
        async for line in response.aiter_lines():
            text += line + "\n"
            gate.set()
    found = named_events(text)
    kind, event = found[-1]
    assert kind == "response.failed"
    assert event["sequence_number"] == len(found) - 1
    assert event["response"]["status"] == "failed"
    error = {"code": "upstream_lost", "message": "the peer is gone", "param": None}
    assert event["response"]["error"] == error
    assert event["response"]["output"][0]["content"][0]["text"] == "Hel"


async def test_what_fails_at_once_is_a_status(served: Served) -> None:
    async with served.client() as client:
        for stream in (False, True):
            served.executor.entering = Busy("too many", retry_after=3)
            response = await client.post(PATH, json=body(stream=stream))
            error_of(response, 429, "rate_limit_exceeded")
            served.executor.entering = ContextLengthExceeded(99, 64, param="messages")
            response = await client.post(PATH, json=body(stream=stream))
            assert error_of(response, 400, "context_length_exceeded")["param"] == "input"
        response = await client.post(PATH, json=body(model="nobody"))
        error_of(response, 404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_ends_the_work(served: Served, stream: bool) -> None:
    served.executor.script = [Delta("Hel", 1), trio.Event()]
    async with await served.connect() as connection:
        await connection.send_all(post(PATH, body(stream=stream)))
        played = await served.executor.play()
        await played.entered.wait()
        if stream:
            await read_until(connection, b'"delta":"Hel"')
    with trio.fail_after(5):
        await played.left.wait()


async def test_pings_come_while_there_is_nothing_to_say(node: FakeNode, tmp_path: Path) -> None:
    gate = trio.Event()
    node.executor.script = [gate, Delta("x", 1), LAST]
    async with (
        serving(node, tmp_path, ping_seconds=0.05) as running,
        await running.connect() as connection,
    ):
        await connection.send_all(post(PATH, body(stream=True), "connection: close"))
        begun = await read_until(connection, b": ping")
        assert b"response.created" in begun
        gate.set()
        await read_until(connection, b"response.completed")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "resp_1"), ("DELETE", "resp_1"), ("POST", "resp_1/cancel"), ("GET", "r/input_items")],
)
async def test_no_response_is_kept(served: Served, method: str, path: str) -> None:
    async with served.client() as client:
        response = await client.request(method, f"{PATH}/{path}")
        assert "keeps none" in error_of(response, 404, None)["message"]
        error_of(await client.get(PATH), 405, None)


async def test_probabilities_are_told_token_by_token(served: Served) -> None:
    tokens = (TokenLogprob(b"Hel", -0.5, (Logprob(b"Hel", -0.5),)), TokenLogprob(b"lo", -1.0))
    served.executor.script = [
        Delta("Hel", 1, logprobs=tokens[:1]), Delta("lo", 1, logprobs=tokens[1:]), LAST,
    ]  # fmt: skip
    async with served.client() as client:
        answer = (await client.post(PATH, json=body(top_logprobs=1))).json()
        streamed = named_events(
            (await client.post(PATH, json=body(top_logprobs=1, stream=True))).text
        )
    told = answer["output"][0]["content"][0]["logprobs"]
    assert told[0] == {
        "token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108],
        "top_logprobs": [{"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108]}],
    }  # fmt: skip
    deltas = [e for kind, e in streamed if kind == "response.output_text.delta"]
    assert [one for event in deltas for one in event["logprobs"]] == told
    assert dict(streamed)["response.output_text.done"]["logprobs"] == told


CALLS = [
    Delta("", 1, calls=(CallPiece(0, "get"),)), Delta("", 1, calls=(CallPiece(0, None, '{"a"'),)),
    Delta("", 1, calls=(CallPiece(0, None, ": 1}"), CallPiece(1, "get", "{}"))),
    Delta("", finish="tool_calls", usage=Usage(11, 3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("said", ["", "Well."])
async def test_calls_are_items_of_their_own(served: Served, said: str) -> None:
    served.executor.script = [Delta(said, 1), *CALLS] if said else CALLS
    async with served.client() as client:
        answer = (await client.post(PATH, json=body(tools=[GET]))).json()
        streamed = named_events((await client.post(PATH, json=body(tools=[GET], stream=True))).text)
    texts, calls = answer["output"][: bool(said)], answer["output"][bool(said) :]
    assert [item["content"][0]["text"] for item in texts] == [said] * bool(said)
    assert [(c["type"], c["name"], c["arguments"], c["status"]) for c in calls] == [
        ("function_call", "get", '{"a": 1}', "completed"),
        ("function_call", "get", "{}", "completed"),
    ]
    assert len({item["id"] for item in calls} | {item["call_id"] for item in calls}) == 4
    assert (answer["status"], answer["tools"]) == ("completed", [GET])
    assert [event["sequence_number"] for _, event in streamed] == list(range(len(streamed)))
    done = [e["item"] for kind, e in streamed if kind == "response.output_item.done"]
    last = streamed[-1][1]["response"]
    assert last["output"] == done and last["tools"] == [GET]
    places = [e["output_index"] for kind, e in streamed if kind == "response.output_item.added"]
    assert places == list(range(len(done)))
    arguments = dict[str, str]()
    for kind, event in streamed:
        if kind == "response.function_call_arguments.delta":
            arguments[event["item_id"]] = arguments.get(event["item_id"], "") + event["delta"]
    assert [arguments[item["id"]] for item in done[bool(said) :]] == ['{"a": 1}', "{}"]
    found = openai.types.responses.Response.model_validate(answer)
    for by_alias in (False, True):  # with a null for every field that the SDK knows
        again = [item.model_dump(by_alias=by_alias) for item in found.output]
        prompt = parsed(input=again).request.prompt
        assert isinstance(prompt, tuple) and len(prompt) == 1
        assert [call.arguments for call in prompt[0].tool_calls] == ['{"a": 1}', "{}"]


async def test_only_the_last_item_of_an_answer_is_cut(served: Served) -> None:
    served.executor.script = [
        Delta("Well.", 1), *CALLS[:-1], Delta("", finish="length", usage=Usage(11, 3, 2)),
    ]  # fmt: skip
    async with served.client() as client:
        whole = (await client.post(PATH, json=body(tools=[GET]))).json()
        streamed = named_events((await client.post(PATH, json=body(tools=[GET], stream=True))).text)
    for answer in (whole, streamed[-1][1]["response"]):
        assert answer["status"] == "incomplete"
        found = [item["status"] for item in answer["output"]]
        assert found == ["completed", "completed", "incomplete"]


# -- the SDK


async def test_the_sdk_reads_calls_and_objects(served: Served) -> None:
    class Answer(pydantic.BaseModel):
        a: int

    def use() -> tuple[Any, Any, Any]:
        tool: Any = {"type": "function", "name": "get", "parameters": {}, "strict": True}
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            served.executor.script = CALLS
            with client.responses.stream(model=CARD.id, input="hi", tools=[tool]) as stream:
                kinds = [event.type for event in stream]
                called = stream.get_final_response()
            turn: Any = [
                *called.output,
                {
                    "type": "function_call_output",
                    "output": "1",
                    "call_id": called.output[0].call_id,
                },
            ]
            served.executor.script = [Delta('{"a": 7}', 3), LAST]
            parsed = client.responses.parse(model=CARD.id, input=turn, text_format=Answer)
            return kinds, called, parsed

    kinds, called, parsed = await trio.to_thread.run_sync(use)
    assert kinds.count("response.function_call_arguments.done") == 2
    assert [item.arguments for item in called.output] == ['{"a": 1}', "{}"]
    assert parsed.output_parsed == Answer(a=7)
    request = served.executor.plays[-1].request
    assert request.schema is not None and json.loads(request.schema)["properties"]["a"]
    assert isinstance(request.prompt, tuple) and len(request.prompt[0].tool_calls) == 2


async def test_the_sdk_reads_a_response_and_its_stream(served: Served) -> None:
    def use() -> tuple[Any, list[Any], Any]:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            whole = client.responses.create(model=CARD.id, input="hi", instructions="be brief")
            events = list(client.responses.create(model=CARD.id, input="hi", stream=True))
            turn: Any = [*whole.output, {"role": "user", "content": "and?"}]
            with client.responses.stream(model=CARD.id, input=turn) as stream:
                kinds = [event.type for event in stream]
                final = stream.get_final_response()
            assert "response.output_text.delta" in kinds
            with pytest.raises(openai.NotFoundError, match="keeps none"):
                client.responses.retrieve(whole.id)
            with pytest.raises(openai.NotFoundError, match="keeps none"):
                client.responses.delete(whole.id)
            with pytest.raises(openai.BadRequestError, match="whole conversation"):
                client.responses.create(model=CARD.id, input="hi", previous_response_id=whole.id)
            return whole, events, final

    whole, events, final = await trio.to_thread.run_sync(use)
    assert whole.output_text == final.output_text == "Hello"
    assert whole.usage.input_tokens_details.cached_tokens == 2
    assert events[-1].response.output_text == "Hello"
    prompt = served.executor.plays[-1].request.prompt
    assert prompt == (Message("assistant", "Hello"), Message("user", "and?"))


async def test_the_sdk_reads_responses_on_trio(served: Served) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key="x", max_retries=0
    ) as client:
        whole = await client.responses.create(model=CARD.id, input="hi")
        async with client.responses.stream(model=CARD.id, input="hi") as stream:
            deltas = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            final = await stream.get_final_response()
    assert whole.output_text == final.output_text == "".join(deltas) == "Hello"


async def test_the_sdk_is_told_of_a_failure(served: Served) -> None:
    gate = trio.Event()
    served.executor.script = [Delta("Hel", 1), gate, UpstreamLost("the peer is gone")]

    def use() -> Any:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            found = []
            for event in client.responses.create(model=CARD.id, input="hi", stream=True):
                found.append(event)
                trio.from_thread.run_sync(gate.set)
            return found[-1]

    last = await trio.to_thread.run_sync(use)
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert last.response.error.message == "the peer is gone"
