"""Listening: the port, the Unix socket, and how both come and go."""

import os
import stat
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from kwaai_core.config import ServerSettings
from kwaai_core.errors import ConfigError
from kwaai_core.http.app import build_app
from kwaai_core.http.server import _listen, _Server, serve

from .conftest import FakeNode, chat_body, post, read_all, read_until, serving


def settings(port: int = 0, host: str = "127.0.0.1") -> ServerSettings:
    return ServerSettings(host=host, port=port, grace_seconds=0.05)


async def test_a_port_that_is_taken_is_said_before_anything_is_served(
    node: FakeNode, tmp_path: Path
) -> None:
    taken = trio.socket.socket()
    await taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f"port {port}.*--port") as caught:
        await serve(node, settings(port), tmp_path)
    assert "in use" in caught.value.message
    assert not (tmp_path / "node.sock").exists()
    taken.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.5", "::1"])
async def test_other_loopback_hosts_can_be_had(node: FakeNode, tmp_path: Path, host: str) -> None:
    async with serving(node, tmp_path, host=host) as served, served.client() as client:
        assert (await client.get("/health")).status_code == 200


async def test_the_unix_socket_is_the_owners_alone_and_goes(node: FakeNode, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(node, tmp_path) as served:
            mode = served.socket.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
    finally:
        assert os.umask(before) == 0
    assert not served.socket.exists()


async def test_a_socket_left_by_a_node_that_was_killed_is_replaced(
    node: FakeNode, tmp_path: Path
) -> None:
    left = trio.socket.socket(trio.socket.AF_UNIX)
    await left.bind(str(tmp_path / "node.sock"))
    left.close()
    async with serving(node, tmp_path) as served, served.local_client() as client:
        assert (await client.get("/lobes")).status_code == 200


async def test_a_file_in_the_sockets_place_is_left_alone(node: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "node.sock").write_text("precious")
    with pytest.raises(ConfigError, match=r"node\.sock"):
        await serve(node, settings(), tmp_path)
    assert (tmp_path / "node.sock").read_text() == "precious"


async def test_a_state_folder_with_too_long_a_path_is_said(node: FakeNode, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with pytest.raises(ConfigError, match="KWAAI_STATE"):
        await serve(node, settings(), deep)


async def test_the_url_is_told_once_it_listens(node: FakeNode, tmp_path: Path) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(partial(serve, node, settings(), tmp_path, stop=stop))
        port = int(url.rsplit(":", 1)[1])
        async with await trio.open_tcp_stream("127.0.0.1", port):
            stop.set()


async def test_the_port_is_free_again_at_once(node: FakeNode, tmp_path: Path) -> None:
    async with serving(node, tmp_path) as first, first.client() as client:
        assert (await client.get("/health")).status_code == 200
    async with serving(node, tmp_path, port=first.port) as second, second.client() as client:
        assert (await client.get("/health")).status_code == 200


async def test_an_idle_connection_does_not_hold_the_node(node: FakeNode, tmp_path: Path) -> None:
    async with (
        serving(node, tmp_path, grace_seconds=10) as served,
        await served.connect() as idle,
        served.client() as client,
    ):
        await client.get("/health")
        served.stop.set()
        with trio.fail_after(3):  # it would be let go after 5 seconds anyway
            await served.ended.wait()
        assert await idle.receive_some(1) == b""


@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_is_idle_again_after_an_answer(
    node: FakeNode, tmp_path: Path, stream: bool
) -> None:
    async with (
        serving(node, tmp_path, grace_seconds=600) as served,
        await served.connect() as client,
    ):
        await client.send_all(post("/v1/chat/completions", chat_body(stream=stream)))
        await read_until(client, b"[DONE]" if stream else b"}]}}")
        await trio.testing.wait_all_tasks_blocked()
        served.stop.set()
        with trio.fail_after(3):
            await served.ended.wait()


async def test_a_connection_that_meets_a_bug_is_dropped_alone(
    node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    server = _Server(build_app(node, settings(), None), 8)
    limit = server.config.h11_max_incomplete_size
    async with trio.open_nursery() as nursery:
        with _listen("127.0.0.1", 0) as listener:
            await nursery.start(server.accept, listener, nursery)
            address = listener.getsockname()
            for size, answered in (("a bug", False), (limit, True)):
                server.config.h11_max_incomplete_size = size  # type: ignore[assignment]
                async with await trio.open_tcp_stream(*address) as client:
                    await client.send_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n")
                    if answered:
                        await client.send_all(b"\r\n")
                    assert bool(await client.receive_some(1000)) is answered
        nursery.cancel_scope.cancel()
    assert "a connection was dropped" in caplog.text


async def test_cancelling_the_server_frees_all_it_held(node: FakeNode, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[Sequence[str]]) -> None:
            await serve(node, settings(), tmp_path, task_status=task_status)

        await nursery.start(run)
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "node.sock").exists()


HALF = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n"


@pytest.mark.parametrize("said", [b"", HALF, HALF + b"\r\nx"], ids=["nothing", "head", "body"])
async def test_connections_that_ask_nothing_make_room_for_others(
    node: FakeNode, tmp_path: Path, said: bytes
) -> None:
    async with (
        serving(node, tmp_path, connections=8) as served,
        served.client() as client,
        AsyncExitStack() as open_,
    ):
        idle = [await open_.enter_async_context(await served.connect()) for _ in range(100)]
        for stream in idle[-8:]:
            await stream.send_all(said)
        for _ in range(3):
            assert (await client.get("/health")).status_code == 200
        for stream in idle[:93]:
            assert await read_all(stream) == b""
        with trio.move_on_after(0.1) as waiting:
            await idle[-1].receive_some(1)
        assert waiting.cancelled_caught


async def test_with_all_connections_busy_the_next_one_is_told_so(
    node: FakeNode, tmp_path: Path
) -> None:
    node.executor.entering = trio.Event()
    async with (
        serving(node, tmp_path, connections=2) as served,
        served.client() as client,
        served.local_client() as local,
    ):
        answers = [await served.connect() for _ in range(2)]
        for n, stream in enumerate(answers):
            await stream.send_all(post("/v1/chat/completions", chat_body()))
            await node.executor.play(n)
        refused = await client.get("/health")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.headers["connection"] == "close"
        assert "[server] connections" in refused.json()["error"]["message"]
        assert (await local.get("/health")).status_code == 200
        node.executor.entering.set()
        for stream in answers:
            assert (await read_until(stream, b"Hello")).startswith(b"HTTP/1.1 200")
        assert (await client.get("/health")).status_code == 200
        for stream in answers:
            await stream.aclose()


async def test_who_leaves_in_the_middle_of_a_body_leaves_its_place(
    node: FakeNode, tmp_path: Path
) -> None:
    async with (
        serving(node, tmp_path, connections=2, body_timeout=600.0) as served,
        served.client() as client,
    ):
        for _ in range(4):
            async with await served.connect() as leaving:
                await leaving.send_all(HALF + b"\r\nx")
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.get("/health")).status_code == 200


async def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(
    node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercorn.Config.keep_alive_timeout", 0.1)
    async with serving(node, tmp_path) as served:
        with trio.fail_after(3):
            assert await served.talk(HALF) == b""


async def test_without_a_port_the_unix_socket_is_served_alone(
    node: FakeNode, tmp_path: Path
) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        run = partial(serve, node, settings(), tmp_path, port=False, stop=stop)
        assert await nursery.start(run) == []
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "node.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            assert (await client.get("/lobes")).status_code == 200
        stop.set()
