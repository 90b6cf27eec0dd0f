"""API keys at the door: who is let in with one, who is not, and how much a key may do."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route, Router

from kwaai_core.config import ServerSettings
from kwaai_core.errors import Busy, ConfigError, InvalidKey, KeyDamaged, KwaaiError
from kwaai_core.http.app import build_app
from kwaai_core.http.keys import FOLDER, Key, Keys, check_public
from kwaai_core.http.quotas import Quotas
from kwaai_core.http.security import Guard
from kwaai_core.http.server import serve

from .conftest import FakeNode, Served, chat_body, post, serving

CHAT = "/v1/chat/completions"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, which is of this kind and in full."""
    assert (response.status_code, response.headers["connection"]) == (status, "close")
    assert response.headers["x-request-id"].startswith("req_")
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert ("retry-after" in response.headers) == (status == 429)
    if response.request.method == "HEAD":
        return {}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def paths_of(routes: Sequence[BaseRoute], before: str = "") -> Iterator[str]:
    """A path to each of these routes, however deep."""
    for route in routes:
        assert isinstance(route, Route | Mount), "the walk knows no such route"
        path = before + route.path_format.replace("{path}", "").rstrip("/")
        path = path.replace("{id}", "tiny/model").replace("{command}", "ls").replace("{n}", "7")
        yield path or "/"
        if isinstance(route, Mount):
            yield from paths_of(route.routes, path)


@pytest.fixture
def full_node(node: FakeNode) -> FakeNode:
    """A node with routes of lobes, nested ones too."""

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    inner = Router([Route("/", hello), Route("/{n}", hello, methods=["POST"])])
    node.routes = [("own", [Route("/hello", hello), Mount("/deep", inner)])]
    return node


async def test_every_route_is_closed_but_one(full_node: FakeNode, tmp_path: Path) -> None:
    Keys(tmp_path).create("other")
    async with serving(full_node, tmp_path) as served, served.client() as client:
        app = build_app(full_node, ServerSettings(), Guard(ServerSettings(), Keys(tmp_path)))
        ours = list(paths_of(app.routes))
        assert {"/", "/health", "/ready", "/metrics", CHAT, "/v1/models/tiny/model"} < {*ours}
        assert {"/lobes/own", "/lobes/own/hello", "/lobes/own/deep/7"} < {*ours}
        for path in [*ours, "/nope", "/health/", "/openapi.json", "/lobes", "/peers", "//health"]:
            for method in METHODS:
                answer = await client.request(method, path)
                if path == "/health":
                    assert answer.status_code == (200 if method in ("GET", "HEAD") else 405)
                else:
                    refused(answer, 401, "invalid_api_key")
    assert full_node.executor.plays == []


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}]
)
async def test_every_route_is_closed_to_other_sites_with_a_key_too(
    full_node: FakeNode, tmp_path: Path, headers: dict[str, str]
) -> None:
    _, shown = Keys(tmp_path).create("mine")
    async with serving(full_node, tmp_path) as served, served.client() as client:
        app = build_app(full_node, ServerSettings(), Guard(ServerSettings(), Keys(tmp_path)))
        for path in [*paths_of(app.routes), "/nope"]:
            for method in METHODS:
                answer = await client.request(method, path, headers=headers | bearer(shown))
                refused(answer, 403, "host_not_allowed")


async def test_with_a_key_everything_is_there(full_node: FakeNode, tmp_path: Path) -> None:
    _, shown = Keys(tmp_path).create("mine")
    async with (
        serving(full_node, tmp_path) as served,
        served.client(headers=bearer(shown)) as client,
    ):
        for path in ("/", "/ready", "/metrics", "/v1/models", "/lobes/own/hello"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post(CHAT, json=chat_body())).status_code == 200
        assert (await client.get("/nope")).status_code == 404


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_has_no_case(served: Served, tmp_path: Path, scheme: str) -> None:
    _, shown = Keys(tmp_path).create("mine")
    async with served.client(headers={"authorization": f"{scheme} {shown}"}) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_what_is_no_key_does_not_come_in(served: Served, tmp_path: Path) -> None:
    _, shown = Keys(tmp_path).create("mine")
    _, other = Keys(tmp_path / "elsewhere").create("mine")
    name, secret = shown.rsplit("_", 1)
    wrong = [
        "", "Bearer", "Bearer x", f"Basic {shown}", shown, f"Bearer{shown}", f"Bearer {shown} x",
        f"Bearer {shown[:-1]}", f"Bearer {shown}0", f"Bearer {shown.upper()}", f"Bearer {other}",
        f"Bearer kwaai_other_{secret}", f"Bearer {name}_{'0' * 64}", "Bearer none",
        f"Bearer kwaai_../keys/mine_{secret}", f"Bearer {shown}\u00e9",
    ]  # fmt: skip
    async with served.client() as client:
        for value in wrong:
            headers = {"authorization": value.encode("latin-1")}
            refused(await client.get("/v1/models", headers=headers), 401, "invalid_api_key")
        twice = [("authorization", f"Bearer {shown}")] * 2
        refused(await client.get("/v1/models", headers=twice), 401, "invalid_api_key")
        refused(await client.get(f"/v1/models?api_key={shown}"), 401, "invalid_api_key")
        assert (await client.get("/v1/models", headers=bearer(shown))).status_code == 200


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "this node needs an API key, in the header “Authorization: Bearer …”"),
        (["{key}"], "the header Authorization has no “Bearer”"),
        (["Basic {key}"], "the header Authorization has no “Bearer”"),
        (["Bearer{key}"], "the header Authorization has no “Bearer”"),
        ([""], "the header Authorization has no “Bearer”"),
        (["Bearer"], "the header Authorization has no key in it"),
        (["Bearer {key}", "Bearer {key}"], "the header Authorization is here more than once"),
        (["Bearer x"], "this is no key of this node, or it was revoked"),
    ],
)
async def test_what_is_wrong_with_the_header_is_said(
    served: Served, tmp_path: Path, values: Sequence[str], said: str
) -> None:
    _, shown = Keys(tmp_path).create("mine")
    headers = [("authorization", value.format(key=shown)) for value in values]
    async with served.client() as client:
        answer = await client.get("/v1/models", headers=headers)
    message = refused(answer, 401, "invalid_api_key")["message"]
    assert message.startswith(said)
    assert shown not in message


@given(st.text() | st.from_regex(r"kwaai_.{0,40}_[0-9a-f]{64}"))
def test_no_text_breaks_the_look_up(text: str) -> None:
    with pytest.raises(InvalidKey):
        Keys(Path("/nonexistent")).find(text)


async def test_a_node_that_runs_goes_by_keys_at_once(served: Served, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    async with served.client() as client:
        assert (await client.get("/v1/models", headers=bearer("any"))).status_code == 200
        _, first = keys.create("first")
        refused(await client.get("/v1/models"), 401, "invalid_api_key")
        _, second = keys.create("second")
        for shown in (first, second):
            assert (await client.get("/v1/models", headers=bearer(shown))).status_code == 200
        keys.revoke("first")
        refused(await client.get("/v1/models", headers=bearer(first)), 401, "invalid_api_key")
        assert (await client.get("/v1/models", headers=bearer(second))).status_code == 200
        _, again = keys.create("first")
        refused(await client.get("/v1/models", headers=bearer(first)), 401, "invalid_api_key")
        assert (await client.get("/v1/models", headers=bearer(again))).status_code == 200


async def test_after_the_last_key_the_port_stays_closed(node: FakeNode, tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    _, shown = keys.create("only")
    async with serving(node, tmp_path) as served, served.client() as client:
        keys.revoke("only")
        for headers in ({}, bearer(shown)):
            refused(await client.get("/v1/models", headers=headers), 401, "invalid_api_key")
        assert (await client.get("/health")).status_code == 200
        keys.folder.rmdir()
        refused(await client.get("/v1/models"), 401, "invalid_api_key")
    async with serving(node, tmp_path) as served, served.client() as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_the_unix_socket_needs_none(served: Served, tmp_path: Path) -> None:
    Keys(tmp_path).create("mine")
    async with served.local_client() as local:
        for path in ("/v1/models", "/lobes", "/metrics"):
            assert (await local.get(path)).status_code == 200


DAMAGE = [
    b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000,
    b'{"name": "mine"}', b'{"name": "mine", "sha256": "00", "created": 1}',
    b'{"name": "mine", "sha256": "%b", "created": "x"}' % (b"0" * 64),
    b'{"name": "mine", "sha256": "%b", "created": 1, "concurrent": 0}' % (b"0" * 64),
    b'{"name": "mine", "sha256": "%b", "created": 1, "concurrent": true}' % (b"0" * 64),
    b'{"name": "mine", "sha256": "%b", "created": 1, "more": 1}' % (b"0" * 64),
    b'{"name": "other", "sha256": "%b", "created": 1}' % (b"0" * 64),
    b'{"name": "mine", "sha256": "%b", "created": 1%b}' % (b"0" * 64, b"0" * 20),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGE)
async def test_a_damaged_file_lets_nobody_in(
    served: Served, tmp_path: Path, content: bytes
) -> None:
    keys = Keys(tmp_path)
    _, shown = keys.create("mine")
    (keys.folder / "mine.json").write_bytes(content)
    async with served.client() as client:
        for headers in ({}, bearer(shown)):
            refused(await client.get("/v1/models", headers=headers), 401, "invalid_api_key")
        _, sound = keys.create("sound")
        assert (await client.get("/v1/models", headers=bearer(sound))).status_code == 200
    with pytest.raises(KeyDamaged, match=r"mine\.json is damaged.*kwaai keys revoke mine"):
        keys.read("mine")
    assert keys.names() == ["mine", "sound"]
    keys.revoke("mine")
    assert keys.names() == ["sound"]


async def test_a_folder_that_is_something_else_lets_nobody_in(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / FOLDER).write_text("?")
    async with served.client() as client:
        refused(await client.get("/v1/models", headers=bearer("x")), 401, "invalid_api_key")
    with pytest.raises(ConfigError, match="the folder of keys .* cannot be used"):
        Keys(tmp_path).create("mine")


def test_a_loop_in_place_of_the_state_is_closed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert Keys(tmp_path / "loop").needed()
    assert not Keys(tmp_path / "nothing").needed()


def test_a_link_to_nothing_in_place_of_the_folder_is_closed(tmp_path: Path) -> None:
    (tmp_path / FOLDER).symlink_to("a-disk-that-is-not-mounted")
    assert Keys(tmp_path).needed()
    with pytest.raises(ConfigError, match="cannot be used"):
        Keys(tmp_path).create("mine")


def test_what_a_crash_leaves_is_no_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key, shown = keys.create("mine")
    (keys.folder / "mine.json").rename(keys.folder / ".mine.0123456789abcdef")
    assert keys.needed()
    assert keys.names() == []
    with pytest.raises(InvalidKey):
        keys.find(shown)
    again, shown = keys.create("mine")
    assert keys.find(shown) == again != key


def test_only_the_owner_can_read_what_is_kept_and_the_key_is_not(tmp_path: Path) -> None:
    keys, before = Keys(tmp_path / "state"), os.umask(0)
    try:
        _, shown = keys.create("mine")
    finally:
        os.umask(before)
    (file,) = keys.folder.iterdir()
    for folder in (keys.folder, keys.folder.parent):  # the node may not have made its state yet
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shown.rsplit("_")[-1] not in file.read_text()
    assert len(shown.rsplit("_")[-1]) == 64


async def test_one_of_many_that_make_the_same_key_makes_it(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> None:
        try:
            made.append(Keys(tmp_path).create("mine")[1])
        except KwaaiError as error:
            assert "already" in error.message

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(trio.to_thread.run_sync, make)
    (shown,) = made
    assert Keys(tmp_path).find(shown).name == "mine"
    assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["mine.json"]


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "..", "a" * 33, "ä", "a\n"])
def test_what_cannot_be_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a key"):
        Keys(tmp_path).create(name)
    assert not (tmp_path / FOLDER).exists()
    with pytest.raises(KwaaiError, match="there is no key"):
        Keys(tmp_path).revoke(name)


def test_when_a_key_was_used_is_known_to_the_minute(tmp_path: Path) -> None:
    now = 1_000_000.9
    keys = Keys(tmp_path, now=lambda: now)
    key, shown = keys.create("mine", 60, 2)
    assert key == keys.read("mine")
    assert (key.created, key.used, key.requests_per_minute, key.concurrent) == (10**6, None, 60, 2)
    for later, used in ((1_000_030, 1_000_030), (1_000_080, 1_000_030), (1_000_090, 1_000_090)):
        now = later
        keys.find(shown)
        assert keys.read("mine").used == used


def test_a_key_that_cannot_be_touched_lets_in_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object) -> None:
        raise PermissionError

    _, shown = Keys(tmp_path).create("mine")
    monkeypatch.setattr("os.utime", no)
    assert Keys(tmp_path).find(shown).name == "mine"


KEY = Key("mine", "0" * 64, 1, requests_per_minute=3, concurrent=2)


async def test_requests_a_minute_are_those_of_any_60_seconds(mock_clock: Any) -> None:
    quotas = Quotas()
    for pause in (0, 10, 20):
        mock_clock.jump(pause)
        with quotas.request(KEY):
            pass
    mock_clock.jump(29)  # 59 seconds after the first
    for _ in range(5):  # what is refused is not counted
        with pytest.raises(Busy, match="make 3 requests a minute:") as over, quotas.request(KEY):
            pass
        assert over.value.retry_after == pytest.approx(1)
    other = Key("other", "0" * 64, 1, requests_per_minute=1)
    with quotas.request(other):
        pass
    mock_clock.jump(1)
    with quotas.request(KEY):
        pass
    with pytest.raises(Busy) as over, quotas.request(KEY):
        pass
    assert over.value.retry_after == pytest.approx(10)
    with pytest.raises(Busy, match="may make 1 request a minute:"), quotas.request(other):
        pass


async def test_requests_at_a_time_end_however_they_end(mock_clock: Any) -> None:
    quotas, key = Quotas(), Key("mine", "0" * 64, 1, concurrent=2)
    for _ in range(5):
        with pytest.raises(LookupError), quotas.request(key):
            raise LookupError
    with quotas.request(key), quotas.request(key):
        with pytest.raises(Busy, match="2 requests at a time") as over, quotas.request(key):
            pass
        assert over.value.retry_after == 1
    with quotas.request(key), quotas.request(key):
        pass


async def test_over_its_requests_a_minute_a_key_waits(served: Served, tmp_path: Path) -> None:
    _, shown = Keys(tmp_path).create("mine", requests_per_minute=2)
    _, free = Keys(tmp_path).create("free")
    async with served.client() as client:
        for path in ("/v1/models", "/nope"):
            await client.get(path, headers=bearer(shown))
        over = await client.get("/v1/models", headers=bearer(shown))
        assert "mine" in refused(over, 429, "rate_limit_exceeded")["message"]
        assert 50 <= int(over.headers["retry-after"]) <= 60
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(free))).status_code == 200


async def test_over_its_requests_at_a_time_a_key_waits(served: Served, tmp_path: Path) -> None:
    _, shown = Keys(tmp_path).create("mine", concurrent=1)
    served.executor.entering = trio.Event()
    request = post(CHAT, chat_body(), f"authorization: Bearer {shown}")
    async with served.client(headers=bearer(shown)) as client:
        async with await served.connect() as first:
            await first.send_all(request)
            play = await served.executor.play()
            over = await client.post(CHAT, json=chat_body())
            assert (
                "may make 1 request at a time:"
                in refused(over, 429, "rate_limit_exceeded")["message"]
            )
            assert over.headers["retry-after"] == "1"
        await play.left.wait()  # it was the client that left
        served.executor.entering.set()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            assert (await client.post(CHAT, json=chat_body())).status_code == 200
    assert len(served.executor.plays) == 4


async def test_nothing_is_taken_in_before_the_key_is_seen(served: Served, tmp_path: Path) -> None:
    _, shown = Keys(tmp_path).create("mine", concurrent=1)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60000\r\n"
    async with await served.connect() as stranger, await served.connect() as member:
        await stranger.send_all(head + b"\r\n{")
        assert (await stranger.receive_some(65536)).startswith(b"HTTP/1.1 401 ")
        await member.send_all(head + f"authorization: Bearer {shown}\r\n\r\n{{".encode())
        await trio.testing.wait_all_tasks_blocked()
        async with served.client(headers=bearer(shown)) as client:  # a slow body is a request too
            refused(await client.get("/v1/models"), 429, "rate_limit_exceeded")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::7"])
async def test_other_machines_come_in_only_with_a_key(
    node: FakeNode, tmp_path: Path, host: str
) -> None:
    settings = ServerSettings(host=host)
    with pytest.raises(ConfigError, match="no API key yet: make one first, kwaai keys create"):
        check_public(settings, tmp_path)
    with pytest.raises(ConfigError, match="no API key yet"):
        await serve(node, settings, tmp_path)
    Keys(tmp_path).create("mine")
    check_public(settings, tmp_path)
    Keys(tmp_path).revoke("mine")
    with pytest.raises(ConfigError, match="no API key yet"):
        check_public(settings, tmp_path)


def scope(server: str, *headers: tuple[str, str], path: str = "/v1/models") -> dict[str, Any]:
    """A request that has reached an address of this machine."""
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return {"server": (server, 8000), "headers": raw, "path": path, "http_version": "1.1"}


def test_a_public_port_asks_for_a_key_whatever_became_of_the_folder(tmp_path: Path) -> None:
    settings = ServerSettings(host="0.0.0.0")
    guard = Guard(settings, Keys(tmp_path, always=not settings.loopback))
    with pytest.raises(InvalidKey), guard.admitted(scope("192.0.2.7", ("host", "192.0.2.7"))):
        raise AssertionError("it came in")


@pytest.mark.parametrize(
    ("host", "server", "allowed"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7:8000", "192.0.2.7", True),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("[2001:db8::7]:80", "2001:db8::7", True),
        ("node.example", "192.0.2.7", True),
        ("NODE.example:443", "192.0.2.7", True),
        ("my_node:8000", "192.0.2.7", True),
        ("[2001:db8::8]", "192.0.2.7", True),
        ("localhost", "127.0.0.1", True),
        ("192.0.2.8", "192.0.2.7", False),
        ("0.0.0.0", "192.0.2.7", False),
        ("evil.example", "192.0.2.7", False),
        ("sub.node.example", "192.0.2.7", False),
    ],
)
def test_names_of_a_public_node(tmp_path: Path, host: str, server: str, allowed: bool) -> None:
    settings = ServerSettings(host="0.0.0.0", hosts=("Node.example", "my_node", "2001:DB8::8"))
    guard = Guard(settings, Keys(tmp_path, always=True))
    error = InvalidKey if allowed else Exception
    for origin in ([], [("origin", f"https://{host}")]):
        with pytest.raises(error) as caught, guard.admitted(scope(server, ("host", host), *origin)):
            raise AssertionError("it came in")
        assert isinstance(caught.value, InvalidKey) == allowed
    foreign = scope(server, ("host", host), ("origin", "https://evil.example"), path="/health")
    with pytest.raises(KwaaiError, match="not allowed"), guard.admitted(foreign):
        raise AssertionError("it came in")


@pytest.mark.parametrize("name", ["", "*", "a:80", "http://a", "a/b", "*.example", "a..b", "é.x"])
def test_what_cannot_be_a_host(name: str) -> None:
    with pytest.raises(ValueError, match="must be a name or an address, without a port"):
        ServerSettings(hosts=(name,))


async def test_a_key_is_in_no_log_and_no_answer(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    _, shown = Keys(tmp_path).create("mine", requests_per_minute=4)
    secret = shown.rsplit("_")[-1]
    async with served.client(headers=bearer(shown)) as client:
        served.executor.entering = LookupError("a bug")
        for path in ("/", "/v1/models", "/nope", "/metrics", "/metrics"):
            assert secret not in (await client.get(path)).text
        assert secret not in (await client.post(CHAT, json=chat_body())).text
    ours = [record for record in caplog.records if record.name.startswith("kwaai")]
    assert secret not in json.dumps([record.getMessage() for record in ours])
