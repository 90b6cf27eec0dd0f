"""TLS on the port: what is served, what is refused, and who cannot hold others up."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kwaai_core.config import ServerSettings
from kwaai_core.errors import ConfigError
from kwaai_core.http.tls import tls_context
from kwaai_core.types import Delta

from .conftest import LAST, FakeNode, Served, chat_body, events, post, read_all, read_until, serving

CHAT = "/v1/chat/completions"
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


def write_pair(folder: Path, name: str = "node", password: bytes = b"") -> dict[str, str]:
    """A certificate that vouches for itself, and its key, as the settings of a server."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node.example")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    locked = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked)
    )
    return {"certfile": str(folder / f"{name}.crt"), "keyfile": str(folder / f"{name}.key")}


class Secured:
    """A server with TLS, and clients that trust its certificate."""

    def __init__(self, served: Served, certfile: str) -> None:
        self.served = served
        self.trusting = ssl.create_default_context(cafile=certfile)

    def client(self) -> httpx.AsyncClient:
        return self.served.client(verify=self.trusting)

    async def connect(self) -> trio.SSLStream[trio.SocketStream]:
        stream = await self.served.connect()
        secured = trio.SSLStream(stream, self.trusting, server_hostname="127.0.0.1")
        await secured.do_handshake()
        return secured


@asynccontextmanager
async def secured(node: FakeNode, folder: Path, **settings: Any) -> AsyncIterator[Secured]:
    pair = write_pair(folder)
    async with serving(node, folder, **pair, **settings) as served:
        assert served.url.startswith("https://127.0.0.1:")
        yield Secured(served, pair["certfile"])


async def test_answers_come_whole_and_streamed(node: FakeNode, tmp_path: Path) -> None:
    long = "x" * 200_000  # more than one record, and more than a socket's buffer
    node.executor.script = (Delta(long, 1), LAST)
    async with secured(node, tmp_path) as server, server.client() as client:
        for _ in range(3):
            whole = await client.post(CHAT, json=chat_body())
            assert whole.json()["choices"][0]["message"]["content"] == long
        streamed = await client.post(CHAT, json=chat_body(stream=True))
        assert events(streamed.text)[-1] == "[DONE]"
        base = (await client.get("/")).json()["base_url"]
        assert base == f"{server.served.url}/v1"


async def test_what_is_spoken(node: FakeNode, tmp_path: Path) -> None:
    async with secured(node, tmp_path) as server:
        server.trusting.set_alpn_protocols(["h2", "http/1.1"])
        async with await server.connect() as stream:
            assert stream.version() == "TLSv1.3"
            assert stream.selected_alpn_protocol() == "http/1.1"
        server.trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        async with await server.connect() as stream:
            assert stream.version() == "TLSv1.2"
            await stream.send_all(GET)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    context = tls_context(ServerSettings(**write_pair(tmp_path)))
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION


async def test_an_answer_ends_with_a_farewell(node: FakeNode, tmp_path: Path) -> None:
    """Without one a client could not tell an answer that was cut off, and some say so loudly."""
    async with secured(node, tmp_path) as server, await server.connect() as stream:
        await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        assert (await read_all(stream)).endswith(b'{"status":"alive"}')
        assert await stream.receive_some() == b""  # and not an error


@pytest.mark.parametrize("farewell", [True, False])
@pytest.mark.parametrize("headers", [(), ("connection: upgrade", "upgrade: h2c")])
async def test_a_client_that_leaves_ends_the_work(
    node: FakeNode, tmp_path: Path, farewell: bool, headers: tuple[str, ...]
) -> None:
    """Also where hypercorn reads nothing meanwhile, because another protocol is offered."""
    node.executor.entering = trio.Event()
    async with secured(node, tmp_path) as server:
        stream = await server.connect()
        await stream.send_all(post(CHAT, chat_body(), *headers))
        play = await node.executor.play()
        await trio.testing.wait_all_tasks_blocked()
        await (stream if farewell else stream.transport_stream).aclose()
        with trio.fail_after(3):
            await play.left.wait()


@pytest.mark.parametrize("farewell", [True, False])
async def test_who_leaves_in_the_middle_of_a_body_leaves_its_place(
    node: FakeNode, tmp_path: Path, farewell: bool
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nx"
    async with secured(node, tmp_path, connections=2, body_timeout=600.0) as server:
        for _ in range(4):
            leaving = await server.connect()
            await leaving.send_all(head)
            await trio.testing.wait_all_tasks_blocked()
            await (leaving if farewell else leaving.transport_stream).aclose()
            await trio.testing.wait_all_tasks_blocked()
        async with server.client() as client:
            assert (await client.get("/health")).status_code == 200


async def test_requests_that_come_together_are_answered_in_turn(
    node: FakeNode, tmp_path: Path
) -> None:
    node.executor.script = (event := trio.Event(), Delta("late", 1), LAST)
    async with secured(node, tmp_path) as server, await server.connect() as stream:
        await stream.send_all(post(CHAT, chat_body(stream=True)))
        await node.executor.play()
        for _ in range(5):
            await stream.send_all(GET)
            await trio.testing.wait_all_tasks_blocked()
        event.set()
        answer = await read_until(stream, b"[DONE]")
        while answer.count(b'{"status":"alive"}') < 5:
            answer += await stream.receive_some()
        assert answer.index(b"late") < answer.index(b"alive")


HANDSHAKES = [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", GET, b"\0" * 1000, b"\x15\x03\x01\0\2"]


@pytest.mark.parametrize("said", HANDSHAKES)
async def test_who_does_not_shake_hands_holds_nobody_up(
    node: FakeNode, tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercorn.Config.keep_alive_timeout", 0.3)
    async with (
        secured(node, tmp_path, connections=8) as server,
        AsyncExitStack() as open_,
    ):
        idle = [await open_.enter_async_context(await server.served.connect()) for _ in range(40)]
        for stream in idle:
            with trio.move_on_after(1):
                try:
                    await stream.send_all(said)
                except trio.BrokenResourceError:
                    pass  # it had to make room
        for _ in range(2):
            async with server.client() as client:
                assert (await client.get("/health")).status_code == 200
        with trio.fail_after(3):
            for stream in idle:
                assert b"HTTP" not in await read_all(stream)


async def test_with_all_connections_busy_the_next_one_is_closed(
    node: FakeNode, tmp_path: Path
) -> None:
    node.executor.entering = trio.Event()
    async with (
        secured(node, tmp_path, connections=1) as server,
        await server.connect() as busy,
    ):
        await busy.send_all(post(CHAT, chat_body()))
        await node.executor.play()
        async with await server.served.connect() as refused:
            assert await read_all(refused) == b""
        node.executor.entering.set()
        await read_until(busy, b"Hello")


async def test_a_client_that_does_not_read_cannot_keep_the_node_from_stopping(
    node: FakeNode, tmp_path: Path
) -> None:
    node.executor.script = (*[Delta("x" * 2**16, 1)] * 400, LAST)
    async with secured(node, tmp_path) as server:
        stream = await server.connect()
        stream.transport_stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send_all(post(CHAT, chat_body(stream=True)))
        play = await node.executor.play()
        await play.entered.wait()
        server.served.stop.set()
        with trio.fail_after(6):
            await server.served.ended.wait()
        await trio.aclose_forcefully(stream)


def test_without_files_there_is_no_tls() -> None:
    assert tls_context(ServerSettings()) is None
    for one in ("certfile", "keyfile"):
        with pytest.raises(ValueError, match="one does nothing without the other"):
            ServerSettings(**{one: "x"})  # type: ignore[arg-type]


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    pair, other = write_pair(tmp_path), write_pair(tmp_path, "other")
    locked = write_pair(tmp_path, "locked", b"secret")
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\n?\n")
    certfile, keyfile = pair["certfile"], pair["keyfile"]
    for certificate, key, why in (
        (f"{tmp_path}/nothing", keyfile, r"certfile = .*nothing cannot be read: No such file"),
        (certfile, f"{tmp_path}/nothing", r"keyfile = .*nothing cannot be read: No such file"),
        (certfile, str(tmp_path), r"keyfile = .* cannot be read: Is a directory"),
        (keyfile, certfile, r"certfile = .*node.key has no “-----BEGIN CERTIFICATE-----”"),
        (certfile, certfile, r"keyfile = .*node.crt has no “PRIVATE KEY-----”"),
        (certfile, other["keyfile"], r"node.crt, keyfile = .*other.key: .*another certificate"),
        (f"{tmp_path}/broken", keyfile, r"broken, keyfile = .*: they are damaged"),
        (locked["certfile"], locked["keyfile"], r"locked with a password.*openssl pkey"),
    ):
        with pytest.raises(ConfigError, match=why):
            tls_context(ServerSettings(certfile=certificate, keyfile=key))
