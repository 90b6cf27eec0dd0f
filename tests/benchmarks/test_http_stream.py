"""The benchmark's own client: what it reads, when it says it came, and what it refuses."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from benchmarks.http_stream import get_json, stream_all

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def text(piece: str) -> bytes:
    return event({"choices": [{"text": piece}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
DONE = b"data: [DONE]\n\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


@contextmanager
def server(writes: Sequence[bytes]) -> Iterator[tuple[str, int]]:
    """Answers every connection with the same writes, each only after the last was sent."""

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for data in writes:
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[:2]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_pieces_usage_and_arrivals() -> None:
    body = chunked(b": ping\n\n", text("Hel"), text("lo "), text(""), text("you"), USAGE, DONE)
    with server([HEAD, body]) as address:
        (got,) = stream_all(address, [{"stream": True}])
    assert got.text == "Hello you"
    assert (got.prompt_tokens, got.completion_tokens, got.cached_tokens) == (5, 3, 0)
    assert len(got.arrivals) == 3
    assert got.started < got.arrivals[0]
    assert list(got.arrivals) == sorted(got.arrivals)


def test_events_that_are_cut_anywhere() -> None:
    raw = HEAD + chunked(
        text("a")[:9], text("a")[9:] + text("é")[:20], text("é")[20:] + USAGE, DONE
    )
    writes = [raw[i : i + 1] for i in range(len(raw))]
    with server(writes) as address:
        (got,) = stream_all(address, [{}])
    assert got.text == "aé"


def test_several_streams_at_once() -> None:
    with server([HEAD, chunked(text("x"), USAGE, DONE)]) as address:
        assert [got.text for got in stream_all(address, [{}] * 8)] == ["x"] * 8


@pytest.mark.parametrize(
    "writes",
    [
        [HEAD, chunked(text("x"), event({"error": {"message": "the worker died"}}))],
        [HEAD, chunked(text("x"), USAGE)],
        [HEAD, chunked(text("x"), DONE)],
        [b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"],
    ],
    ids=["error event", "no end", "no usage", "refused"],
)
def test_an_answer_that_is_not_whole_is_no_measurement(writes: list[bytes]) -> None:
    with server(writes) as address, pytest.raises(SystemExit):
        stream_all(address, [{}])


def test_get_json_plain_and_chunked() -> None:
    with server([b"HTTP/1.1 503 x\r\nContent-Length: 2\r\n\r\n{}"]) as address:
        assert get_json(address, "/ready") == (503, {})
    with server([HEAD, chunked(b'{"a":', b"1}")]) as address:
        assert get_json(address, "/v1/models") == (200, {"a": 1})
