"""The endpoints that answer in one document, and the table of errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as Path_

from kwaai_core.errors import (
    Busy,
    ContextLengthExceeded,
    KwaaiError,
    LobeFailed,
    ModelFileError,
    ModelLoading,
    ModelNotFound,
    NoPeerAvailable,
    RequestError,
    UpstreamLost,
    WorkerLost,
)
from kwaai_core.types import Delta, LobeStatus, Message, ModelCard, Usage

from .conftest import CARD, LAST, FakeNode, Served, chat_body, serving

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def error_of(response: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    """The error of an answer, once it is seen to be one in full."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    document = response.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "Traceback" not in response.text
    return error


async def test_alive_and_ready(served: Served) -> None:
    async with served.client() as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_not_ready_while_a_model_loads_but_alive(served: Served) -> None:
    served.executor.is_ready = False
    async with served.client() as client:
        response = await client.get("/ready")
        error_of(response, 503, "model_loading")
        assert response.headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200
        served.executor.is_ready = True
        assert (await client.get("/ready")).status_code == 200


@pytest.mark.parametrize("state", ["failed", "waiting"])
async def test_not_ready_says_which_lobe_and_why(served: Served, state: Any) -> None:
    served.executor.is_ready = False
    served.node.lobes = [LobeStatus("llama", "0.1.0", "executor", "llama", state, "no libgomp")]
    async with served.client() as client:
        response = await client.get("/ready")
    error = error_of(response, 503, "lobe_failed")
    assert "llama" in error["message"]
    assert "no libgomp" in error["message"]
    assert int(response.headers["retry-after"]) >= 1


async def test_models(served: Served) -> None:
    async with served.client() as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/tiny/model")).json()
        missing = await client.get("/v1/models/nope")
    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["created"]) == (CARD.id, "model", 7)
    assert one["owned_by"]
    assert one["kwaai"]["digest"] == CARD.digest
    assert one["kwaai"]["context_length"] == 64
    error = error_of(missing, 404, "model_not_found")
    assert error["param"] == "model"
    assert CARD.id in error["message"]


async def test_models_of_an_executor_that_failed_are_left_out(served: Served) -> None:
    served.executor.models_error = LobeFailed("llama", "gone")
    async with served.client() as client:
        assert (await client.get("/v1/models")).json()["data"] == []


async def test_a_chat_completion(served: Served) -> None:
    body = chat_body(max_tokens=5, stop="x", temperature=0, kwaai={"exact": True})
    async with served.client() as client:
        response = await client.post(CHAT, json=body)
    answer = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["x-kwaai-route"] == "local:0-4"
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "chat.completion",
        "model": CARD.id,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 3,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
        "kwaai": {"route": [{"peer": "local", "lo": 0, "hi": 4}]},
    }
    request = served.executor.plays[0].request
    assert request.model == CARD
    assert request.prompt == (Message("user", "hi"),)
    assert (request.max_tokens, request.stop, request.exact) == (5, ("x",), True)


async def test_a_text_completion_with_text_in_its_last_delta(served: Served) -> None:
    served.executor.script = [Delta("é"), Delta("\ud800!", 1, "length", Usage(1, 2))]
    async with served.client() as client:
        response = await client.post(TEXT, json={"model": CARD.id, "prompt": "x"})
    answer = response.json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    choice = {"index": 0, "text": "é?!", "logprobs": None, "finish_reason": "length"}
    assert answer["choices"] == [choice]
    assert served.executor.plays[0].request.prompt == "x"


ERRORS: list[tuple[Exception, int, str | None, str | None]] = [
    (RequestError("no template here", param="messages"), 400, None, None),
    (ContextLengthExceeded(99, 64, param="messages"), 400, "context_length_exceeded", None),
    (ModelNotFound("x", []), 404, "model_not_found", None),
    (Busy("the queue is full", retry_after=2.2), 429, "rate_limit_exceeded", "3"),
    (Busy("the queue is full"), 429, "rate_limit_exceeded", "1"),
    (NoPeerAvailable("nobody"), 503, "no_peer_available", "1"),
    (ModelLoading("soon", retry_after=0.01), 503, "model_loading", "1"),
    (ModelFileError("truncated"), 503, "model_file_invalid", "1"),
    (LobeFailed("llama", "boom", retry_after=7), 503, "lobe_failed", "7"),
    (WorkerLost("died"), 502, "lobe_failed", None),
    (UpstreamLost("gone"), 502, "upstream_lost", None),
    (ExceptionGroup("of one", [WorkerLost("died")]), 502, "lobe_failed", None),
    (KwaaiError("odd"), 500, "internal_error", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code", "retry_after"), ERRORS)
async def test_an_error_before_the_first_byte_is_a_status(
    served: Served,
    error: Exception,
    status: int,
    code: str | None,
    retry_after: str | None,
    stream: bool,
) -> None:
    for where in ("entering", "reading"):
        served.executor.entering = error if where == "entering" else None
        served.executor.script = [error]
        async with served.client() as client:
            response = await client.post(CHAT, json=chat_body(stream=stream))
        shown = error_of(response, status, code)
        assert response.headers.get("retry-after") == retry_after
        assert shown["type"].endswith("_error")
        if isinstance(error, ContextLengthExceeded):
            assert "99" in shown["message"]
            assert "64" in shown["message"]
            assert shown["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_shows_a_request_id_and_nothing_of_itself(
    served: Served, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served.executor.entering = ZeroDivisionError("secret detail")
    async with served.client() as client:
        response = await client.post(CHAT, json=chat_body(stream=stream))
    error = error_of(response, 500, "internal_error")
    assert error["type"] == "server_error"
    assert response.headers["x-request-id"] in error["message"]
    assert "secret" not in response.text
    assert "secret detail" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize("script", [[], [Delta("Hel")], [Delta("Hel"), Delta("", finish="stop")]])
async def test_an_answer_without_its_end_is_never_a_success(
    served: Served, script: list[Delta]
) -> None:
    served.executor.script = script
    async with served.client() as client:
        error_of(await client.post(CHAT, json=chat_body()), 502, "lobe_failed")


async def test_an_unknown_model(served: Served) -> None:
    async with served.client() as client:
        error = error_of(
            await client.post(CHAT, json=chat_body(model="nope")), 404, "model_not_found"
        )
    assert error["param"] == "model"
    assert CARD.id in error["message"]


@pytest.mark.parametrize(
    ("content", "param", "code"),
    [
        (b"{", None, None),
        (json.dumps(chat_body(temperature=9)).encode(), "temperature", None),
        (json.dumps(chat_body(audio={})).encode(), "audio", "unsupported_parameter"),
        (json.dumps({"messages": []}).encode(), "messages", None),
        (b'{"\\ud800": 1, "model": "m", "messages": [{"role": "user", "content": ""}]}', "?",
         "unsupported_parameter"),
    ],
)  # fmt: skip
async def test_a_bad_request_names_its_field(
    served: Served, content: bytes, param: str | None, code: str | None
) -> None:
    async with served.client() as client:
        error = error_of(await client.post(CHAT, content=content), 400, code)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert not served.executor.plays


@pytest.mark.parametrize(
    "path", ["/v", "/v1", "/v1/nope", "/lobes", "/lobes/x/", "//v1/models", "/health/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_such_path(served: Served, path: str, method: str) -> None:
    async with served.client() as client:
        error_of(await client.request(method, path, content=b"x" * 60_000), 404, None)


async def test_the_root_says_where_the_api_is(served: Served) -> None:
    async with served.client() as client, served.local_client() as local:
        told = (await client.get("/")).json()
        assert told["base_url"] == f"{served.url}/v1"
        assert {"/v1/models", "/v1/chat/completions", "/health"} <= {*told["paths"]}
        assert (await local.get("/")).json() == told | {"base_url": "/v1"}
        for path in told["paths"]:
            assert (await client.get(path)).status_code in (200, 405)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", TEXT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("BREW", "/v1/models/x", "GET, HEAD"),
    ],
)
async def test_no_such_method(served: Served, method: str, path: str, allow: str) -> None:
    async with served.client() as client:
        response = await client.request(method, path)
    error_of(response, 405, None)
    assert response.headers["allow"] == allow
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nope"])
async def test_head_is_get_without_its_body(served: Served, path: str) -> None:
    async with served.client() as client:
        get, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


async def test_lobes_are_listed_on_the_unix_socket_alone(served: Served) -> None:
    async with served.local_client() as local, served.client() as client:
        listed = (await local.get("/lobes")).json()
        error_of(await client.get("/lobes"), 404, None)
    assert listed == [
        {"lobe": "fake", "version": "0.1.0", "role": "executor", "offer": "fake",
         "state": "ready", "cause": "", "facts": {}}
    ]  # fmt: skip


async def test_the_unix_socket_answers_like_the_port_but_for_the_host(served: Served) -> None:
    async with served.local_client() as local:
        answer = await local.post(CHAT, json=chat_body(), headers={"host": "anything"})
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        error_of(await local.post(CHAT, content=b"x" * 70_000), 413, "request_too_large")


async def test_a_lobes_routes_are_under_its_name_and_fail_in_json(tmp_path: Path) -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    async def broken(request: Request) -> PlainTextResponse:
        raise LookupError("secret detail")

    async def busy(request: Request) -> PlainTextResponse:
        raise Busy("later")

    node = FakeNode()
    node.routes = [("x", [Path_("/hi", hello), Path_("/bug", broken), Path_("/busy", busy)])]
    async with serving(node, tmp_path) as served, served.client() as client:
        assert (await client.get("/lobes/x/hi")).text == "hello"
        error_of(await client.get("/lobes/x/bug"), 500, "internal_error")
        error_of(await client.get("/lobes/x/busy"), 429, "rate_limit_exceeded")
        error_of(await client.get("/lobes/x/none"), 404, None)
        error_of(await client.get("/lobes/x/hi/"), 404, None)
        error_of(await client.get("/lobes/x"), 404, None)
        error_of(await client.post("/lobes/x/hi"), 405, None)
        error_of(await client.get("/lobes/x/hi", headers={"host": "evil"}), 403, "host_not_allowed")


async def test_each_answer_has_an_id_of_its_own(served: Served) -> None:
    served.executor.script = [Delta("a"), LAST]
    async with served.client() as client:
        answers = [await client.post(CHAT, json=chat_body()) for _ in range(2)]
    assert len({a.json()["id"] for a in answers}) == 2
    assert len({a.headers["x-request-id"] for a in answers}) == 2


async def test_models_without_weights_are_listed_last(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(CARD, id="bare", digest="")

    async def models() -> list[ModelCard]:
        return [bare, CARD]

    monkeypatch.setattr(served.executor, "models", models)
    async with served.client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == [CARD.id, "bare"]


async def test_not_ready_without_an_executor_says_what_to_install(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.executor.is_ready = False
    monkeypatch.setattr(FakeNode, "executors", ())
    async with served.client() as client:
        error = error_of(await client.get("/ready"), 503, "no_peer_available")
    assert "pip install" in error["message"]


async def test_not_ready_where_the_router_reaches_nobody_for_any_model(served: Served) -> None:
    async def unreachable() -> str:
        return "nobody in reach holds blocks 6–11 of big"

    served.node.router.unreachable = unreachable
    async with served.client() as client:
        error = error_of(await client.get("/ready"), 503, "no_peer_available")
    assert error["message"] == "nobody in reach holds blocks 6–11 of big"


async def test_what_is_missed_by_a_letter_is_named(served: Served) -> None:
    async with served.client() as client:
        missed = await client.post(CHAT, json=chat_body(temprature=1))
        three = await client.post(CHAT, json=chat_body(verbosity="high"))
        nowhere = await client.get("/v1")
    assert "did you mean temperature?" in missed.json()["error"]["message"]
    assert 'or give "medium"' in three.json()["error"]["message"]
    assert "/v1/completions" in nowhere.json()["error"]["message"]
