"""The door: who may come in, and how much they may bring. All of it over raw sockets."""

import json
import random
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from kwaai_core.config import ServerSettings
from kwaai_core.errors import HostNotAllowed
from kwaai_core.http.keys import Keys
from kwaai_core.http.security import Door, allowed_hosts, check_host
from kwaai_core.http.target import reduced

from .conftest import Served, chat_body, post

HOSTS = allowed_hosts()


def get(*headers: str, path: str = "/v1/models", version: str = "1.1") -> bytes:
    lines = [f"GET {path} HTTP/{version}", *headers, "connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def code_of(answer: bytes) -> tuple[int, str | None]:
    """Status and code of an answer in JSON; all four keys of an error are there."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head
    status = int(head.split()[1])
    document = json.loads(body)
    if status < 400:
        return status, None
    assert set(document["error"]) == {"message", "type", "param", "code"}
    return status, document["error"]["code"]


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:65535"]
)
async def test_this_machines_names_come_in(served: Served, host: str) -> None:
    assert code_of(await served.talk(get(f"Host: {host}"))) == (200, None)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:8000",
        "localhost:", "localhost:x", "localhost:800000", "localhost.", "user@localhost", "[::1",
        "::1", "0.0.0.0", "127.0.0.2", "localhost/", "localhost,evil", "loc\xe4lhost", "",
        "localhost:80:80", "[::ffff:127.0.0.1]", "localhost#@evil.example",
    ],
)  # fmt: skip
async def test_other_names_do_not(served: Served, host: str) -> None:
    assert code_of(await served.talk(get(f"Host: {host}"))) == (403, "host_not_allowed")


async def test_a_host_is_needed_from_http_1_1_on(served: Served) -> None:
    assert code_of(await served.talk(get()))[0] == 400  # h11 sees it first
    assert code_of(await served.talk(get(version="1.0")))[0] == 200
    with pytest.raises(HostNotAllowed):
        check_host([], HOSTS, "1.1")


async def test_a_host_is_given_once(served: Served) -> None:
    assert code_of(await served.talk(get("Host: localhost", "Host: localhost")))[0] == 400
    with pytest.raises(HostNotAllowed):
        check_host([(b"host", b"localhost")] * 2, HOSTS, "1.1")


@pytest.mark.parametrize(
    "origin",
    ["http://localhost", "https://127.0.0.1:3000", "http://[::1]:5173", "HTTP://LOCALHOST"],
)
async def test_a_page_of_this_machine_may_call(served: Served, origin: str) -> None:
    answer = await served.talk(get("Host: localhost", f"Origin: {origin}"))
    assert code_of(answer)[0] == 200
    assert b"access-control" not in answer.lower()


@pytest.mark.parametrize(
    "origin",
    [
        "null", "https://evil.example", "http://localhost.evil.example", "file://", "",
        "http://localhost@evil.example", "chrome-extension://abc", "http://localhost/x",
        "http://", "localhost", "http://localhost http://evil.example",
    ],
)  # fmt: skip
async def test_a_page_of_elsewhere_may_not(served: Served, origin: str) -> None:
    answer = await served.talk(get("Host: localhost", f"Origin: {origin}"))
    assert code_of(answer) == (403, "host_not_allowed")


async def test_an_origin_is_given_once(served: Served) -> None:
    headers = ["Host: localhost", "Origin: http://localhost", "Origin: http://localhost"]
    assert code_of(await served.talk(get(*headers)))[0] == 403


async def test_every_path_is_behind_the_door(served: Served) -> None:
    for path in ("/", "/health", "/ready", "/v1/models", "/v1/chat/completions", "/lobes/x/y"):
        assert code_of(await served.talk(get("Host: evil.example", path=path)))[0] == 403


async def test_a_target_with_another_host_in_it_is_no_way_around(served: Served) -> None:
    for path in ("/v1/models", "/health", "", "/lobes/x/y"):
        foreign = get("Host: localhost", path=f"http://evil.example{path}")
        assert code_of(await served.talk(foreign)) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/v1/models", 200),
        ("HTTP://LocalHost:8000/v1/models?x=http://evil.example/", 200),
        ("https://[::1]/v1/models", 200),
        ("http://127.0.0.1", 200),
        ("http://localhost?x", 200),
        ("http://localhost//v1/models", 404),
        ("http://localhost/http://localhost/v1/models", 404),
        ("http://localhost:/v1/models", 403),
        ("http://localhost\\evil.example/v1/models", 403),
        ("http://localhost%2f/v1/models", 403),
        ("http://a@localhost/", 400),
        ("http://a:b@localhost/v1/models", 400),
        ("http://evil.example@localhost/v1/models", 400),
        ("http://localhost#x", 400),
        ("http:///v1/models", 400),
        ("http://", 400),
        ("http:/localhost/v1/models", 400),
        ("ftp://localhost/v1/models", 400),
        ("file:///v1/models", 400),
        ("localhost:80", 400),
        ("v1/models", 400),
    ],
)
async def test_a_whole_url_as_target(served: Served, target: str, status: int) -> None:
    """The host that counts is that of the URL, as RFC 9112 has it in section 3.2.2."""
    for host in ("localhost", "evil.example"):
        assert code_of(await served.talk(get(f"Host: {host}", path=target)))[0] == status


async def test_a_whole_url_needs_a_host_too_and_an_origin_of_here(served: Served) -> None:
    url = "http://localhost/v1/models"
    assert code_of(await served.talk(get(path=url)))[0] == 400
    assert code_of(await served.talk(get(path=url, version="1.0")))[0] == 200
    foreign = get("Host: localhost", "Origin: http://evil.example", path=url)
    assert code_of(await served.talk(foreign))[0] == 403


async def test_a_whole_url_needs_a_key_where_a_path_does(served: Served, tmp_path: Path) -> None:
    _, shown = Keys(tmp_path).create("mine")
    for path in ("/v1/models", "", "/", "/health/", "/v1/../health", "?/health", "//health"):
        answer = await served.talk(get("Host: localhost", path=f"http://localhost{path}"))
        assert code_of(answer) == (401, "invalid_api_key")
    for path in ("/health", "/health?x", "/%68ealth"):
        for target in (path, f"http://localhost{path}"):
            assert code_of(await served.talk(get("Host: localhost", path=target)))[0] == 200
    key = f"Authorization: Bearer {shown}"
    answer = await served.talk(get("Host: x", key, path="http://localhost/v1/models"))
    assert code_of(answer)[0] == 200


async def test_a_whole_url_can_be_posted_to(served: Served) -> None:
    request = post("http://localhost/v1/chat/completions", chat_body(), "connection: close")
    answer = await served.talk(request)
    assert code_of(answer)[0] == 200
    assert b"Hello" in answer


@given(st.binary(min_size=1), st.sampled_from([b"", b"/", b"http://localhost", b"http://"]))
def test_any_target_is_reduced_to_a_path_or_refused(rest: bytes, start: bytes) -> None:
    headers = [(b"host", b"evil.example"), (b"x", b"y")]
    if (found := reduced(start + rest, headers)) is not None:
        path, left = found
        assert path == b"*" or path.startswith(b"/")
        assert [name for name, _ in left].count(b"host") == 1
        assert left == headers or (left[0][0] == b"host" and b"@" not in left[0][1])


@given(st.binary())
def test_no_header_breaks_the_check(value: bytes) -> None:
    for name in (b"host", b"origin"):
        headers = [(name, value)] if name == b"host" else [(b"host", b"localhost"), (name, value)]
        try:
            check_host(headers, HOSTS, "1.1")
        except HostNotAllowed as error:
            assert len(error.message) < 400
        else:
            assert b"localhost" in value.lower() or b"127.0.0.1" in value or b"[::1]" in value


@pytest.mark.parametrize("host", ["example.org", "", "127.0.0.1.x", "1", "localhost:80"])
def test_what_is_no_address_is_not_listened_on(host: str) -> None:
    with pytest.raises(ValueError, match="must be an address, or localhost"):
        ServerSettings(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "2001:db8::1"])
def test_what_other_machines_reach_is_not_loopback(host: str) -> None:
    assert not ServerSettings(host=host).loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.9", "::1"])
def test_what_only_this_machine_reaches_is(host: str) -> None:
    assert ServerSettings(host=host).loopback


async def test_a_body_at_the_limit_comes_in_and_one_byte_more_does_not(served: Served) -> None:
    empty = len(json.dumps(chat_body(user="")))
    for more, status in ((0, 200), (1, 413)):
        body = chat_body(user="x" * (2**16 - empty + more))
        answer = await served.talk(post("/v1/chat/completions", body, "connection: close"))
        assert code_of(answer)[0] == status


async def test_a_body_that_is_announced_too_large_is_not_read(served: Served) -> None:
    head = b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n"
    assert code_of(await served.talk(head)) == (413, "request_too_large")


async def test_a_chunked_body_is_cut_off_at_the_limit(served: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    async with await served.connect() as client:
        await client.send_all(head + chunk + b"1\r\nx\r\n")
        assert b" 413 " in await client.receive_some(65536)


async def test_a_client_that_sends_far_too_much_still_reads_the_answer(served: Served) -> None:
    async with served.client() as client:
        response = await client.post("/v1/chat/completions", content=b"x" * 10_000_000)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert response.headers["connection"] == "close"
        assert (await client.get("/health")).status_code == 200


async def test_a_body_that_nobody_wants_does_not_hang_the_connection(served: Served) -> None:
    """hypercorn hands an app ten parts of a body and then waits until it takes one."""
    head = b"POST /nope HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    async with await served.connect() as client:
        await client.send_all(head + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n" + get("host: localhost"))
        data = b""
        while b"tiny/model" not in data:  # the answer to the request that came after it
            part = await client.receive_some(65536)
            assert part
            data += part
    assert data.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("size", [2**14, 20_000, 100_000])
async def test_large_headers_are_refused(served: Served, size: int) -> None:
    """In one piece too, which the parser itself would take."""
    answer = await served.talk(get("host: localhost", "x: " + "x" * size))
    assert code_of(answer) == (431, None)


async def test_the_time_for_a_body_is_limited(autojump_clock: trio.testing.MockClock) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("the request came in")

    sent = []
    to_app, from_client = trio.open_memory_channel[dict[str, object]](1)
    door = Door(app, ServerSettings(max_body=100), None)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "http_version": "1.1"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if "status" not in message and not message["more_body"]:
            await to_app.send({"type": "http.disconnect"})

    await to_app.send({"type": "http.request", "body": b"x", "more_body": True})
    began = trio.current_time()
    await door(scope, from_client.receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408
    assert 30 <= trio.current_time() - began <= 32


H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONNECT_OVER_H2 = H2_PREFACE + bytes.fromhex(
    "000000040000000000"  # SETTINGS
    "00000f01050000000142" + b"\x07CONNECT".hex() + "418aa0e41d139d09"  # HEADERS
)
GARBAGE = [
    b"\0" * 100,
    b"\r\n\r\n\r\n",
    b"hello\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /%ff%00%fe?%ff=%00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",  # noqa: E501
    H2_PREFACE,
    CONNECT_OVER_H2,
    get("host: localhost", "upgrade: h2c", "http2-settings: !"),
    get("host: localhost", "connection: upgrade", "upgrade: websocket", "sec-websocket-key: eA=="),
]


@pytest.mark.parametrize("request_", GARBAGE)
async def test_garbage_gets_an_answer_in_json_and_the_node_goes_on(
    served: Served, request_: bytes
) -> None:
    async with await served.connect() as client:
        await client.send_all(request_)
        await client.send_eof()
        answer = b""
        while part := await client.receive_some(65536):
            answer += part
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    if answer:
        code_of(answer)
    async with served.client() as client:
        assert (await client.get("/health")).status_code == 200


async def test_an_upgrade_is_not_offered_and_the_request_is_answered(served: Served) -> None:
    for protocol in ("h2c", "websocket"):
        headers = ["host: localhost", "connection: upgrade", f"upgrade: {protocol}"]
        answer = await served.talk(get(*headers))
        assert answer.startswith(b"HTTP/1.1 200 ")
    refused = await served.talk(get("host: evil", "connection: upgrade", "upgrade: websocket"))
    assert refused.split()[1] == b"403"


async def test_mutilated_requests_never_end_the_node(served: Served) -> None:
    random_ = random.Random(7)
    whole = post("/v1/chat/completions", chat_body(stream=True), "connection: close")
    for _ in range(150):
        request = bytearray(whole)
        for _ in range(random_.randint(1, 8)):
            at = random_.randrange(len(request))
            request[at : at + random_.randint(0, 3)] = random_.randbytes(random_.randint(0, 3))
        async with await served.connect() as client:
            await client.send_all(bytes(request[: random_.randint(1, len(request))]))
            await client.send_eof()
            with trio.move_on_after(1) as waiting:
                while await client.receive_some(65536):
                    pass
        assert not waiting.cancelled_caught, bytes(request)
    async with served.client() as client:
        assert (await client.get("/health")).status_code == 200
