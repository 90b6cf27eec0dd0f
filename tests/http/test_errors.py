"""A walk down the table of errors on the reference page: each row is answered by a real server."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from kwaai_core.errors import (
    ContextLengthExceeded,
    KwaaiError,
    ModelFileError,
    ModelLoading,
    NoPeerAvailable,
    UpstreamLost,
    WorkerLost,
)
from kwaai_core.http.keys import Keys
from kwaai_core.types import LobeStatus

from .conftest import FakeNode, Served, chat_body, post, serving

PAGE = (Path(__file__).parents[2] / "docs/reference/http-api.md").read_text()
CHAT = "/v1/chat/completions"

Row = tuple[int, str | None]
Provoke = Callable[[Path], Coroutine[Any, Any, bytes]]
PROVOKED: dict[Row, Provoke] = {}


def rows() -> set[Row]:
    """Status and code of every row of the table."""
    table = PAGE[PAGE.index("| status | code |") : PAGE.index("## Who may")]
    found = set()
    for statuses, code in re.findall(r"^\| ([\d, ]+) \| (\S+) \|", table, re.MULTILINE):
        found |= {
            (int(status), json.loads(code.replace("`", '"'))) for status in statuses.split(",")
        }
    return found


def provokes(status: int, code: str | None) -> Callable[[Provoke], Provoke]:
    """The function provokes this row: what the server says, to its end."""

    def mark(provoke: Provoke) -> Provoke:
        PROVOKED[status, code] = provoke
        return provoke

    return mark


@asynccontextmanager
async def fake(state: Path, **settings: Any) -> AsyncIterator[Served]:
    async with serving(FakeNode(), state, **settings) as served:
        yield served


def get(path: str, method: str = "GET", host: str = "localhost", more: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n"
    return head.encode()


def chat(**more: Any) -> bytes:
    return post(CHAT, chat_body(**more), "connection: close")


async def asked(state: Path, request: bytes, **settings: Any) -> bytes:
    async with fake(state, **settings) as served:
        return await served.talk(request)


async def failing(state: Path, error: Exception) -> bytes:
    async with fake(state) as served:
        served.executor.entering = error
        return await served.talk(chat())


@provokes(400, None)
async def malformed(state: Path) -> bytes:
    return await asked(state, post(CHAT, b"{", "connection: close"))


@provokes(400, "unsupported_parameter")
async def unsupported(state: Path) -> bytes:
    return await asked(state, chat(nonsense=1))


@provokes(400, "context_length_exceeded")
async def too_long(state: Path) -> bytes:
    answer = await failing(state, ContextLengthExceeded(70, 64, param="messages"))
    assert b"70" in answer
    assert b"64" in answer
    return answer


@provokes(401, "invalid_api_key")
async def without_a_key(state: Path) -> bytes:
    Keys(state).create("mine")
    answer = await asked(state, get("/v1/models"))
    assert b"\r\nwww-authenticate: Bearer" in answer
    return answer


@provokes(403, "host_not_allowed")
async def foreign(state: Path) -> bytes:
    return await asked(state, get("/v1/models", host="evil.example"))


@provokes(404, "model_not_found")
async def unknown_model(state: Path) -> bytes:
    answer = await asked(state, chat(model="nobody"))
    assert b"tiny/model" in answer
    return answer


@provokes(404, None)
async def no_such_path(state: Path) -> bytes:
    answer = await asked(state, get("/nope"))
    for path in (b"/v1/models", b"/tokenize", b"/openapi.json"):
        assert path in answer
    return answer


@provokes(405, None)
async def no_such_method(state: Path) -> bytes:
    answer = await asked(state, get(CHAT))
    assert b"\r\nallow: POST\r\n" in answer
    return answer


@provokes(408, None)
async def too_slow(state: Path) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{{"
    return await asked(state, head.encode(), body_timeout=0.05)


@provokes(413, "request_too_large")
async def too_large(state: Path) -> bytes:
    return await asked(state, post(CHAT, b"x" * 101, "connection: close"), max_body=100)


@provokes(429, "rate_limit_exceeded")
async def too_many(state: Path) -> bytes:
    _, shown = Keys(state).create("mine", requests_per_minute=1)
    key = f"authorization: Bearer {shown}\r\n"
    async with fake(state) as served:
        assert b" 200 " in await served.talk(get("/v1/models", more=key))
        return await served.talk(get("/v1/models", more=key))


@provokes(431, None)
async def large_headers(state: Path) -> bytes:
    return await asked(state, get("/", more=f"x: {'x' * 20_000}\r\n"))


@provokes(500, "internal_error")
async def bug(state: Path) -> bytes:
    answer = await failing(state, LookupError("secret detail"))
    assert b"secret" not in answer
    assert re.search(rb"x-request-id: (req_\w+)\r\n(?s:.*)\1", answer)
    return answer


@provokes(502, "lobe_failed")
async def worker_lost(state: Path) -> bytes:
    return await failing(state, WorkerLost("the worker died"))


@provokes(502, "upstream_lost")
async def peer_lost(state: Path) -> bytes:
    return await failing(state, UpstreamLost("the peer has gone"))


@provokes(503, "no_peer_available")
async def all_connections_busy(state: Path) -> bytes:
    async with fake(state, connections=1) as served:
        served.executor.entering = trio.Event()
        async with await served.connect() as busy:
            await busy.send_all(chat())
            await served.executor.play()
            return await served.talk(get("/"))


@provokes(503, "model_loading")
async def loading(state: Path) -> bytes:
    return await failing(state, ModelLoading("it loads", retry_after=2))


@provokes(503, "model_file_invalid")
async def damaged_model(state: Path) -> bytes:
    return await failing(state, ModelFileError("it is damaged"))


@provokes(503, "lobe_failed")
async def lobe_failed(state: Path) -> bytes:
    async with fake(state) as served:
        served.executor.is_ready = False
        served.node.lobes = [LobeStatus("fake", "1", "executor", "fake", "failed", "no disk")]
        return await served.talk(get("/ready"))


def test_every_row_is_provoked() -> None:
    assert set(PROVOKED) == rows()
    assert len(PROVOKED) >= 19


@pytest.mark.parametrize(
    ("row", "provoke"), PROVOKED.items(), ids=lambda one: getattr(one, "__name__", "")
)
async def test_a_row_is_answered_as_it_says(row: Row, provoke: Provoke, tmp_path: Path) -> None:
    head, _, body = (await provoke(tmp_path)).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert int(status.split()[1]) == row[0]
    assert headers["content-type"] == "application/json"
    assert re.fullmatch(r"req_[0-9a-f]{24}", headers["x-request-id"])
    assert ("retry-after" in headers) == (row[0] in (429, 503))
    assert ("www-authenticate" in headers) == (row[0] == 401)
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join(re.findall(rb"[0-9a-f]+\r\n(.+?)\r\n", body))
    document = json.loads(body)
    assert list(document) == ["error"]
    error = document["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == row[1]
    assert error["param"] is None or isinstance(error["param"], str)
    assert len(error["message"]) > 5
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    "path", ["/nope", "/", "/health", "/metrics", "/v1/models", CHAT, "/lobes/x/y"]
)
@pytest.mark.parametrize("method", ["DELETE", "TRACE", "BREW", "CONNECT"])
async def test_what_is_refused_is_refused_in_json_on_every_path(
    tmp_path: Path, path: str, method: str
) -> None:
    answer = await asked(tmp_path, get(path, method))
    head, _, body = answer.partition(b"\r\n\r\n")
    expected = 404 if path in ("/nope", "/lobes/x/y") else 405
    if method == "CONNECT":
        assert int(head.split()[1]) in (expected, 400)
    else:
        assert int(head.split()[1]) == expected
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def test_what_the_machine_refuses_is_no_bug_and_names_no_file_to_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await failing(tmp_path, OSError(errno.ENOSPC, "Full", "/secret/place"))
    assert b" 500 " in answer
    assert b"secret" not in answer
    assert b"bug" not in answer
    assert b"this node's machine fails it: its log has more under req_" in answer
    (record,) = caplog.records
    assert "/secret/place: Full: make room" in record.getMessage()
    assert not record.exc_info


async def test_nothing_satisfies_the_request_is_said_with_what_is_missing(tmp_path: Path) -> None:
    error: KwaaiError = NoPeerAvailable("none is fast enough", retry_after=3)
    answer = await failing(tmp_path, error)
    assert b" 503 " in answer
    assert b"\r\nretry-after: 3\r\n" in answer
    assert b"none is fast enough" in answer
