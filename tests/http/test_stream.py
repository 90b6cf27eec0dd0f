"""The rules of a stream: its shape, its failures, and a client that leaves."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from kwaai_core.errors import UpstreamLost, WorkerLost
from kwaai_core.types import Delta

from .conftest import (
    CARD,
    LAST,
    FakeNode,
    Served,
    chat_body,
    dechunked,
    events,
    post,
    read_all,
    read_until,
    serving,
)

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def text_of(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        if chunk != "[DONE]"
        for choice in chunk["choices"]
    )


async def streamed(served: Served, path: str = CHAT, **more: Any) -> list[Any]:
    body = chat_body(stream=True, **more)
    if path == TEXT:
        body["prompt"] = body.pop("messages")[0]["content"]
    async with served.client() as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"].startswith("req_")
    assert response.text.endswith("\n\n")
    return events(response.text)


async def test_a_stream_of_chat(served: Served) -> None:
    first, *texts, last, done = await streamed(served)
    assert done == "[DONE]"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(texts) == "Hello"
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert last["kwaai"] == {"route": [{"peer": "local", "lo": 0, "hi": 4}]}
    assert first["id"].startswith("chatcmpl-")
    for chunk in (first, *texts, last):
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["id"], chunk["created"]) == (first["id"], first["created"])
        assert chunk["model"] == CARD.id
        assert "usage" not in chunk
    for chunk in (first, *texts):
        assert chunk["choices"][0]["finish_reason"] is None


async def test_a_stream_of_text(served: Served) -> None:
    *texts, last, done = await streamed(served, TEXT)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in texts) == "Hello"
    assert {chunk["object"] for chunk in (*texts, last)} == {"text_completion"}
    assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_usage_comes_in_a_last_chunk_without_choices(served: Served, path: str) -> None:
    *chunks, usage, done = await streamed(served, path, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == 11
    assert usage["usage"]["total_tokens"] == 14
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert usage["kwaai"]["route"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert "kwaai" not in chunks[-1]


async def test_any_text_survives(served: Served) -> None:
    texts = ['"quote" \\ \n\r\t\0', "é中𐍈👩‍🚀", "\u2028\u2029\x7f", "data: [DONE]\n\n", "\ud83d"]
    served.executor.script = [*map(Delta, texts), LAST]
    assert text_of(await streamed(served)) == "".join(texts).replace("\ud83d", "?")


async def test_what_is_ready_at_once_is_one_chunk(served: Served) -> None:
    pause = trio.Event()
    served.executor.script = [Delta("a"), Delta("b"), pause, Delta("c"), Delta("d"), LAST]
    async with await served.connect() as client:
        await client.send_all(post(CHAT, chat_body(stream=True), "connection: close"))
        head = await read_until(client, b'"ab"')
        pause.set()
        rest = await read_all(client)
    assert head.count(b"data: ") == 2
    assert rest.count(b'"cd"') == 1


async def test_an_executor_whose_channel_cannot_say_what_is_ready(served: Served) -> None:
    served.executor.plain = True
    chunks = await streamed(served)
    assert [c["choices"][0]["delta"].get("content") for c in chunks[:3]] == ["", "Hel", "lo"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerLost("the worker died"), "lobe_failed"),
        (UpstreamLost("peer x is gone"), "upstream_lost"),
        (ExceptionGroup("of one", [UpstreamLost("peer x is gone")]), "upstream_lost"),
        (ZeroDivisionError("secret detail"), "internal_error"),
    ],
)
async def test_a_failure_after_the_first_byte_is_an_event_and_no_done(
    served: Served, error: Exception, code: str
) -> None:
    pause = trio.Event()
    served.executor.script = [Delta("Hel"), pause, error]
    async with await served.connect() as client:
        await client.send_all(post(CHAT, chat_body(stream=True)))
        await read_until(client, b"Hel")
        pause.set()
        tail = await read_until(client, b"0\r\n\r\n")  # the body ends as it should
    (failure,) = events(tail)
    assert set(failure) == {"error"}
    assert set(failure["error"]) == {"message", "type", "param", "code"}
    assert failure["error"]["code"] == code
    assert failure["error"]["type"] == "server_error"
    assert b"[DONE]" not in tail
    assert b"secret" not in tail


async def test_a_stream_that_just_ends_is_a_failure(served: Served) -> None:
    pause = trio.Event()
    served.executor.script = [Delta("Hel"), pause]
    async with await served.connect() as client:
        await client.send_all(post(CHAT, chat_body(stream=True), "connection: close"))
        await read_until(client, b"Hel")
        pause.set()
        tail = await read_all(client)
    assert events(tail)[0]["error"]["code"] == "lobe_failed"
    assert b"[DONE]" not in tail


async def test_a_failure_after_the_end_is_logged_and_no_more(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.executor.leaving = WorkerLost("could not tidy up")
    assert (await streamed(served))[-1] == "[DONE]"
    await served.executor.plays[0].left.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert "could not tidy up" in caplog.text
    assert "bug" not in caplog.text


async def test_pings_while_there_is_nothing_to_say(node: FakeNode, tmp_path: Path) -> None:
    before, between = trio.Event(), trio.Event()
    node.executor.script = [before, Delta("Hel"), between, LAST]
    async with (
        serving(node, tmp_path, ping_seconds=0.01) as served,
        await served.connect() as client,
    ):
        await client.send_all(post(CHAT, chat_body(stream=True), "connection: close"))
        head = await read_until(client, b": ping\n\n")
        await read_until(client, b": ping\n\n")
        before.set()
        await read_until(client, b"Hel")
        await read_until(client, b": ping\n\n")
        between.set()
        tail = await read_all(client)
    assert b" 200 " in head.split(b"\r\n")[0]
    assert head.index(b'"role"') < head.index(b": ping")  # the role is in the first chunk
    assert tail.count(b"[DONE]") == 1


async def test_an_error_after_a_ping_is_an_event(node: FakeNode, tmp_path: Path) -> None:
    pause = trio.Event()
    node.executor.script = [pause, WorkerLost("died")]
    async with (
        serving(node, tmp_path, ping_seconds=0.01) as served,
        await served.connect() as client,
    ):
        await client.send_all(post(CHAT, chat_body(stream=True), "connection: close"))
        await read_until(client, b": ping\n\n")
        pause.set()
        tail = await read_all(client)
    assert events(tail)[-1]["error"]["code"] == "lobe_failed"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["queued", "prefill", "answering"])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_cancels_at_once(
    served: Served, phase: str, stream: bool, reset: bool
) -> None:
    never = trio.Event()
    served.executor.entering = never if phase == "queued" else None
    served.executor.script = [never] if phase == "prefill" else [Delta("Hel"), never]
    client = await served.connect()
    await client.send_all(post(CHAT, chat_body(stream=stream)))
    played = await served.executor.play()
    if phase != "queued":
        await played.entered.wait()
    if phase == "answering" and stream:
        await read_until(client, b"Hel")
    assert not played.left.is_set()
    if reset:
        client.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await client.aclose()
    await played.left.wait()
    async with served.client() as after:
        assert (await after.get("/health")).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_offers_an_upgrade_can_leave_too(
    served: Served, stream: bool, reset: bool
) -> None:
    served.executor.script = [trio.Event()]
    client = await served.connect()
    upgrade = ["connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk"]
    await client.send_all(post(CHAT, chat_body(stream=stream), *upgrade))
    played = await served.executor.play()
    await played.entered.wait()
    if reset:
        client.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await client.aclose()
    await played.left.wait()


async def test_a_client_that_leaves_with_its_next_request_under_way_leaves_nothing_behind(
    node: FakeNode, tmp_path: Path
) -> None:
    pause = trio.Event()
    node.executor.script = [Delta("Hel"), pause, *[Delta("x" * 2**14)] * 1000]
    node.executor.plain = True
    async with serving(node, tmp_path, grace_seconds=600) as served:
        client = await served.connect()
        request = post(CHAT, chat_body(stream=True))
        await client.send_all(request + request)
        await read_until(client, b"Hel")
        await client.send_all(request)
        await client.aclose()
        pause.set()
        await node.executor.plays[0].left.wait()
        served.stop.set()
        await served.ended.wait()  # at once: no connection is left to wait for


async def test_a_slow_reader_holds_the_executor_back_and_can_leave(served: Served) -> None:
    """The sockets' buffers fill up (some MiB); then no more deltas are taken."""
    served.executor.script = [Delta("x" * 2**20)] * 100
    served.executor.plain = True
    client = await served.connect()
    await client.send_all(post(CHAT, chat_body(stream=True)))
    played = await served.executor.play()
    seen = -1
    while seen != played.sent:
        seen = played.sent
        await trio.testing.wait_all_tasks_blocked(0.3)
    assert 0 < played.sent < 50
    assert not played.left.is_set()
    await client.aclose()
    await played.left.wait()
    assert played.sent <= seen + 1


@pytest.mark.parametrize("local", [True, False])
async def test_a_slow_reader_gets_every_byte(served: Served, local: bool) -> None:
    """A full Unix socket takes nothing of a chunk, a full TCP socket a part of it."""
    texts = [f"{i:09}" * 100 for i in range(10_000)]
    served.executor.script = [*map(Delta, texts), LAST]
    served.executor.plain = True
    connect = partial(trio.open_unix_socket, served.socket) if local else served.connect
    async with await connect() as client:
        await client.send_all(post(CHAT, chat_body(stream=True), "connection: close"))
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert served.executor.plays[0].sent < 10_000
        answer = await read_all(client)
    assert text_of(events(dechunked(answer))) == "".join(texts)


async def test_streams_go_on_side_by_side(served: Served) -> None:
    pauses = [trio.Event() for _ in range(3)]
    clients = []
    for i, pause in enumerate(pauses):
        served.executor.script = [Delta(f"first{i}"), pause, Delta(f"second{i}"), LAST]
        client = await served.connect()
        await client.send_all(post(CHAT, chat_body(stream=True), "connection: close"))
        await read_until(client, f"first{i}".encode())
        clients.append(client)
    for i in (1, 2, 0):
        pauses[i].set()
        assert f"second{i}".encode() in await read_all(clients[i])
        await clients[i].aclose()


async def test_a_connection_serves_one_stream_after_another(served: Served) -> None:
    async with await served.connect() as client:
        for _ in range(3):
            await client.send_all(post(CHAT, chat_body(stream=True)))
            assert b"[DONE]" in await read_until(client, b"0\r\n\r\n")


async def test_stopping_lets_an_answer_finish(node: FakeNode, tmp_path: Path) -> None:
    pause = trio.Event()
    node.executor.script = [Delta("Hel"), pause, Delta("lo"), LAST]
    async with serving(node, tmp_path, grace_seconds=10) as served:
        async with await served.connect() as client:
            await client.send_all(post(CHAT, chat_body(stream=True)))
            await read_until(client, b"Hel")
            served.stop.set()
            await refuses_connections(served)
            assert not served.ended.is_set()
            pause.set()
            assert b"[DONE]" in await read_all(client)
        await served.ended.wait()


async def refuses_connections(served: Served) -> None:
    """Return once nobody new can come in."""
    while True:
        try:
            async with await served.connect():
                pass
        except OSError:
            return


@pytest.mark.parametrize("begun", [True, False])
async def test_stopping_ends_what_does_not_finish_with_an_error(
    node: FakeNode, tmp_path: Path, begun: bool
) -> None:
    never = trio.Event()
    node.executor.script = [Delta("Hel"), never] if begun else [never]
    async with serving(node, tmp_path) as served:
        async with await served.connect() as client:
            await client.send_all(post(CHAT, chat_body(stream=True)))
            played = await served.executor.play()
            if begun:
                await read_until(client, b"Hel")
            served.stop.set()
            tail = await read_all(client)
        await played.left.wait()
        await served.ended.wait()
    assert b"no_peer_available" in tail
    assert (b" 503 " in tail) is not begun
    assert b"[DONE]" not in tail


async def test_stopping_leaves_no_chunk_half_sent(node: FakeNode, tmp_path: Path) -> None:
    node.executor.script = [Delta("x" * 2**24), trio.Event()]
    async with (
        serving(node, tmp_path, grace_seconds=0.0) as served,
        await served.connect() as client,
    ):
        await client.send_all(post(CHAT, chat_body(stream=True)))
        answer = await read_until(client, b"xxx")
        served.stop.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        answer += await read_all(client)
    *chunks, failure = events(dechunked(answer))
    assert text_of(chunks) == "x" * 2**24
    assert failure["error"]["code"] == "no_peer_available"


@pytest.mark.parametrize("graceful", [True, False])
async def test_stopping_cuts_a_client_that_does_not_read(
    node: FakeNode, tmp_path: Path, graceful: bool
) -> None:
    node.executor.script = [Delta("x" * 2**26)]  # in one piece, more than sockets will buffer
    node.executor.plain = True
    async with serving(node, tmp_path) as served, await served.connect() as client:
        await client.send_all(post(CHAT, chat_body(stream=True)))
        played = await served.executor.play()
        await read_until(client, b"xxx")
        (served.stop.set if graceful else served.cancel)()
        await served.ended.wait()
        assert played.left.is_set()
