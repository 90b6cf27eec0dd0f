"""The OpenAPI document says what the app and its parsers do, all of it and no more."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kwaai_core.errors import RequestError, UpstreamLost
from kwaai_core.http.keys import Keys
from kwaai_core.openai import (
    openapi,
    parse_chat,
    parse_completion,
    parse_embeddings,
    parse_response,
)
from kwaai_core.openai.bodies import REQUESTS
from kwaai_core.openai.describe import OPERATIONS
from kwaai_core.openai.described import Watched
from kwaai_core.openai.fields import Fields
from kwaai_core.openai.tokens import parse_detokenize, parse_tokenize
from kwaai_core.testing import EMBEDDER, FakeEmbedder
from kwaai_core.types import (
    CallPiece,
    Delta,
    Hop,
    HopTiming,
    Logprob,
    Report,
    Span,
    TokenLogprob,
    Usage,
)

from .conftest import CARD, LAST, FakeNode, Served, chat_body, events, serving
from .drawn import JSON, damaged, of_schema
from .test_tokens import Speaking

LOCAL = {("GET", "/lobes"), ("GET", "/peers"), ("POST", "/peers/{command}")}
PARSERS = {
    "ChatRequest": parse_chat,
    "CompletionRequest": parse_completion,
    "EmbeddingsRequest": parse_embeddings,
    "ResponseRequest": parse_response,
    "TokenizeText": parse_tokenize,
    "TokenizeMessages": parse_tokenize,
    "DetokenizeRequest": parse_detokenize,
}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
LEAST: dict[str, dict[str, Any]] = {
    "ChatRequest": chat_body(),
    "CompletionRequest": {"model": "m", "prompt": "hi"},
    "EmbeddingsRequest": {"model": "m", "input": "hi"},
    "ResponseRequest": {"model": "m", "input": "hi"},
    "TokenizeText": {"prompt": "hi"},
    "TokenizeMessages": {"messages": [{"role": "user", "content": "hi"}]},
    "DetokenizeRequest": {"tokens": []},
}
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("ChatRequest", "top_logprobs"): {"logprobs": True},
    ("ChatRequest", "tool_choice"): {"tools": [{"type": "function", "function": FUNCTION}]},
    ("ResponseRequest", "tool_choice"): {"tools": [{"type": "function"} | FUNCTION]},
}
"""What some fields need beside them."""
BETWEEN_FIELDS = (
    "differ: give only one", "needs logprobs", "limit of 128 choices", "so it must be n or 1",
    "may call tools", "needs tools", "no tool is called so", "as another is already",
    "must be JSON, an object",
)  # fmt: skip
"""In the messages about what no schema here says: rules between fields, and JSON in strings."""

SCHEMAS = {name: request(2048) for name, request in REQUESTS.items()}
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in SCHEMAS.items()}
FIELDS = {
    (field, json.dumps(schema)): name
    for name in reversed(PARSERS)  # a field that several have alike is read by the same reader
    for field, schema in SCHEMAS[name]["properties"].items()  # type: ignore[attr-defined]
}


def refusal(name: str, body: Mapping[str, Any]) -> str:
    """What the parser has against a body; nothing where it takes it."""
    try:
        PARSERS[name](json.dumps(body).encode())
    except RequestError as error:
        return error.message
    return ""


def between_fields(refused: str) -> bool:
    return any(rule in refused for rule in BETWEEN_FIELDS)


def field_of(name: str, field: str) -> dict[str, Any]:
    found: Any = SCHEMAS[name]
    return dict(found["properties"][field])


def borders(schema: Any) -> Iterator[int | float]:
    """The numbers at and beyond the ends of every range in a schema."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            yield from borders(value)
    if isinstance(schema, dict) and "maximum" in schema:
        low, high = schema["minimum"], schema["maximum"]
        yield from (low, high, low - 1, high + 1, low - 0.001, high + 0.001, low + 0.5)


async def fetch(served: Served, *, local: bool = False, **headers: str) -> dict[str, Any]:
    async with served.local_client() if local else served.client() as client:
        answer = await client.get("/openapi.json", headers=headers)
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    OpenAPIV31SpecValidator(found).validate()
    return found


def operations(found: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, item in found["paths"].items() for method in item}


async def test_every_route_is_in_it_and_nothing_else(served: Served) -> None:
    assert operations(await fetch(served)) == OPERATIONS.keys() - LOCAL
    assert operations(await fetch(served, local=True)) == OPERATIONS.keys()


async def test_every_operation_has_a_name_of_its_own(node: FakeNode, tmp_path: Path) -> None:
    """Clients are made with them, so they stay: who changes one breaks those."""

    async def ask(request: Request) -> Response:
        return Response()

    lobes = [Route("/ask-it/{n:int}", ask), Route("/ask-it/{n:int}", ask, methods=["PUT"])]
    node.routes = [("own", lobes)]
    async with serving(node, tmp_path) as served:
        found = await fetch(served, local=True)
    named = {
        (method.upper(), path): operation["operationId"]
        for path, item in found["paths"].items()
        for method, operation in item.items()
    }
    assert len({*named.values()}) == len(named) == len(OPERATIONS) + 2
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in named.values())
    assert named["GET", "/lobes/own/ask-it/{n}"] == "get_lobes_own_ask_it_n"
    for path, name in {
        "POST /v1/chat/completions": "createChatCompletion",
        "POST /v1/completions": "createCompletion",
        "POST /v1/embeddings": "createEmbedding",
        "POST /v1/responses": "createResponse",
        "GET /v1/models": "listModels",
        "GET /v1/models/{id}": "retrieveModel",
        "POST /tokenize": "tokenize",
        "POST /v1/tokenize": "tokenizeV1",
    }.items():
        assert named[tuple(path.split())] == name


async def test_the_routes_of_lobes_are_in_it(node: FakeNode, tmp_path: Path) -> None:
    async def ask(request: Request) -> Response:
        return Response()

    node.routes = [("echo", [Route("/say/{what:path}", ask, methods=["PUT"])])]
    async with serving(node, tmp_path) as served:
        found = await fetch(served)
    assert operations(found) - OPERATIONS.keys() == {("PUT", "/lobes/echo/say/{what}")}
    assert found["paths"]["/lobes/echo/say/{what}"]["put"]["parameters"][0]["name"] == "what"


async def test_the_limits_are_those_of_the_node(node: FakeNode, tmp_path: Path) -> None:
    async with serving(node, tmp_path, max_messages=3) as served:
        schemas = (await fetch(served))["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["messages"]["maxItems"] == 3


async def test_a_key_is_in_it_where_one_is_needed(node: FakeNode, tmp_path: Path) -> None:
    async with serving(node, tmp_path) as served:
        assert closed(await fetch(served)) == set()
        _, shown = Keys(tmp_path).create("mine")
        found = await fetch(served, authorization=f"Bearer {shown}")
        assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        assert closed(found) == operations(found) - {("GET", "/health")}
        assert closed(await fetch(served, local=True)) == set()


def closed(found: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The operations that need a key, and can say that there is none."""
    needy = {
        (method.upper(), path)
        for path, item in found["paths"].items()
        for method, operation in item.items()
        if operation.get("security") == [{"key": []}]
    }
    for method, path in operations(found):
        answers = found["paths"][path][method.lower()]["responses"]
        assert ("401" in answers) == ((method, path) in needy)
    return needy


@settings(deadline=None)
@given(name=st.sampled_from(sorted(PARSERS)), data=st.data())
def test_a_body_that_it_describes_parses(name: str, data: st.DataObject) -> None:
    refused = refusal(name, data.draw(of_schema(SCHEMAS[name])))
    assert not refused or between_fields(refused)


@pytest.mark.parametrize(("name", "field"), [(name, field) for (field, _), name in FIELDS.items()])
@settings(deadline=None)
@given(data=st.data())
def test_the_parser_takes_a_field_as_it_says(name: str, field: str, data: st.DataObject) -> None:
    schema = field_of(name, field)
    numbers = [*borders(schema)]
    described = of_schema(schema)
    values = JSON | described | described.flatmap(damaged)
    values |= st.sampled_from(numbers) if numbers else st.nothing()
    body = LEAST[name] | BESIDE.get((name, field), {}) | {field: data.draw(values)}
    refused = refusal(name, body)
    assume(not between_fields(refused))
    assert (not refused) == VALIDATORS[name].is_valid(body), refused


SCHEMA_FORM = {"name": "n", "schema": {"type": "object"}, "strict": True}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("ChatRequest", {"response_format": {"type": "json_object"}}),
    ("ChatRequest", {"response_format": {"type": "json_schema", "json_schema": SCHEMA_FORM}}),
    ("ResponseRequest", {"text": {"format": {"type": "text"}}}),
    ("ResponseRequest", {"text": {"format": {"type": "json_object"}}}),
    ("ResponseRequest", {"text": {"format": {"type": "json_schema"} | SCHEMA_FORM}}),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_form_of_an_answer_is_in_it(name: str, form: dict[str, Any]) -> None:
    assert refusal(name, LEAST[name] | form) == ""
    VALIDATORS[name].validate(LEAST[name] | form)


@pytest.mark.parametrize("name", PARSERS)
@given(field=st.text(max_size=12) | st.sampled_from(["Temperature", "max_token", "stops"]))
def test_a_field_that_is_not_in_it_is_refused(name: str, field: str) -> None:
    assume(field not in SCHEMAS[name]["properties"])  # type: ignore[operator]
    assert "has no parameter" in refusal(name, LEAST[name] | {field: "x"})


@pytest.mark.parametrize("name", PARSERS)
def test_what_is_required_is_missed(name: str) -> None:
    assert refusal(name, LEAST[name]) == ""
    missing = "give either a prompt or messages" if name.startswith("Tokenize") else "{} is missing"
    assert sorted(SCHEMAS[name]["required"]) == sorted(LEAST[name])  # type: ignore[call-overload]
    for field in LEAST[name]:
        rest = {key: value for key, value in LEAST[name].items() if key != field}
        assert refusal(name, rest) == missing.format(field)


def test_a_reader_that_says_nothing_of_itself_is_found_out() -> None:
    body = Watched({"colour": "red"})
    Fields(body).take("colour", lambda value, at: value, None)
    with pytest.raises(TypeError, match="reader of colour"):
        body.schema()


TOKEN = TokenLogprob(b"Hel", -0.5, (Logprob(b"Hel", -0.5), Logprob(b"\xff", -float("inf"))))
HOP = Hop("12D3", Span(0, 4))
REPORT = Report((HopTiming(HOP, 3, 1, 0.5, 1.25, 2.0),), exact=True, same_text_guaranteed=True)


def conforms(name: str, value: object) -> None:
    """The value is what the document calls by this name."""
    found = openapi(OPERATIONS, "0")
    Draft202012Validator(found | {"$ref": f"#/components/schemas/{name}"}).validate(value)


async def test_models_and_errors_are_as_it_says(served: Served) -> None:
    async with served.client() as client:
        conforms("ModelList", (await client.get("/v1/models")).json())
        conforms("Model", (await client.get(f"/v1/models/{CARD.id}")).json())
        for path in ("/v1/models/none", "/nothing", "/v1/completions"):
            answer = await client.get(path)
            assert answer.status_code in (404, 405)
            conforms("Error", answer.json())


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", chat_body(logprobs=True, top_logprobs=2), "ChatCompletion"),
        ("/v1/completions", {"model": CARD.id, "prompt": "x", "logprobs": 2}, "Completion"),
        ("/v1/completions", {"model": CARD.id, "prompt": "x", "echo": True}, "Completion"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
async def test_answers_are_as_it_says(
    served: Served, path: str, body: dict[str, Any], name: str, told: bool
) -> None:
    last = Delta("", finish="length", usage=Usage(11, 3, 2), report=REPORT) if told else LAST
    logprobs = (TOKEN,) if told else ()
    served.executor.script = [Delta("Hel", 1, logprobs=logprobs), Delta("lo", 1), last]
    if told:
        body = body | {"kwaai": {"timing": True}, "n": 2}
    async with served.client() as client:
        whole = (await client.post(path, json=body)).json()
        conforms(name, whole)
        assert ("timing" in whole["kwaai"]) == told
        for options in ({"include_usage": True}, None):
            streamed = body | {"stream": True, "stream_options": options}
            *chunks, done = events((await client.post(path, json=streamed)).text)
            assert done == "[DONE]"
            assert len(chunks) >= 2
            for chunk in chunks:
                conforms(f"{name}Chunk", chunk)


@pytest.mark.parametrize("form", ["float", "base64"])
async def test_vectors_are_as_it_says(node: FakeNode, served: Served, form: str) -> None:
    node.embedder = FakeEmbedder()
    body = {"model": EMBEDDER.id, "input": ["a", "b"], "encoding_format": form}
    async with served.client() as client:
        conforms("Embeddings", (await client.post("/v1/embeddings", json=body)).json())


CALLING = [
    Delta("Well.", 1),
    Delta("", 1, calls=(CallPiece(0, "f"), CallPiece(0, None, '{"a"'))),
    Delta("", 1, calls=(CallPiece(0, None, ": 1}"), CallPiece(1, "f", "{}"))),
    Delta("", finish="tool_calls", usage=Usage(11, 3, 2)),
]


@pytest.mark.parametrize("said", [True, False])
async def test_calls_are_as_it_says(served: Served, said: bool) -> None:
    served.executor.script = CALLING if said else CALLING[1:]
    body = chat_body(tools=[{"type": "function", "function": FUNCTION}])
    async with served.client() as client:
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        conforms("ChatCompletion", whole)
        assert len(whole["choices"][0]["message"]["tool_calls"]) == 2
        streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
        for chunk in events(streamed.text)[:-1]:
            conforms("ChatCompletionChunk", chunk)


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ([Delta("Hel", 1), Delta("lo", 1), LAST], {"metadata": {"a": "b"}, "instructions": "x"}),
        ([Delta("Hel", 1, logprobs=(TOKEN,)), LAST], {"top_logprobs": 2}),
        ([Delta("Hel", 1), replace(LAST, finish="length", report=REPORT)], {}),
        (CALLING, {"tools": [{"type": "function"} | FUNCTION]}),
        (CALLING[1:], {"tools": [{"type": "function"} | FUNCTION]}),
    ],
)
async def test_responses_are_as_it_says(
    served: Served, script: list[Delta], more: dict[str, Any]
) -> None:
    served.executor.script = script
    body = {"model": CARD.id, "input": "hi", "kwaai": {"timing": True}} | more
    async with served.client() as client:
        conforms("Response", (await client.post("/v1/responses", json=body)).json())
        streamed = (await client.post("/v1/responses", json=body | {"stream": True})).text
    for event in events(streamed):
        conforms("ResponseEvent", event)


async def test_a_response_that_fails_is_as_it_says(served: Served) -> None:
    gate, text = trio.Event(), ""
    served.executor.script = [Delta("Hel", 1), gate, UpstreamLost("the peer is gone")]
    body = {"model": CARD.id, "input": "hi", "stream": True}
    async with (
        served.client() as client,
        client.stream("POST", "/v1/responses", json=body) as response,
    ):
        async for line in response.aiter_lines():
            text += line + "\n"
            gate.set()
    found = events(text)
    assert found[-1]["type"] == "response.failed"
    for event in found:
        conforms("ResponseEvent", event)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokens_are_as_it_says(tmp_path: Path, prefix: str) -> None:
    async with serving(Speaking(), tmp_path) as served, served.client() as client:
        for shown in (True, False):
            asked = {"prompt": "hi", "return_token_strs": shown}
            answer = (await client.post(f"{prefix}/tokenize", json=asked)).json()
            conforms("Tokens", answer)
        tokens = {"tokens": answer["tokens"]}
        conforms("Detokenized", (await client.post(f"{prefix}/detokenize", json=tokens)).json())
        conforms("TokenizerInfo", (await client.get(f"{prefix}/tokenizer_info")).json())


async def test_media_types_are_as_it_says(served: Served) -> None:
    paths: Any = openapi(OPERATIONS, "0")["paths"]
    chat, page = paths["/v1/chat/completions"]["post"], paths["/metrics"]["get"]
    async with served.client() as client:
        for stream in (True, False):
            answer = await client.post("/v1/chat/completions", json=chat_body(stream=stream))
            assert media_of(answer) in chat["responses"]["200"]["content"]
        assert media_of(await client.get("/metrics")) in page["responses"]["200"]["content"]
        for method in ("GET", "POST", "DELETE"):
            answer = await client.request(method, "/v1/responses/resp_1")
            assert answer.status_code == 404
            conforms("Error", answer.json())
            assert "200" not in paths["/v1/responses/{id}"][method.lower()]["responses"]


def media_of(answer: httpx.Response) -> str:
    return str(answer.headers["content-type"]).partition(";")[0]
