"""A client as light as can be: raw sockets, one time stamp a read, parsed once all is over."""

import json
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DEADLINE_S = 600.0


@dataclass(slots=True)
class Stream:
    """One streamed answer: every read with the moment at which it came."""

    started: float
    reads: list[tuple[float, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Completion:
    """A parsed answer; ``arrivals`` are the moments of the pieces that had text, in seconds.

    ``report`` is the object ``kwaai`` of its end, where it has one.
    """

    text: str
    arrivals: tuple[float, ...]
    started: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    report: Mapping[str, Any] = field(default_factory=dict)


def stream_all(address: tuple[str, int], bodies: Sequence[dict[str, object]]) -> list[Completion]:
    """POST every body to ``/v1/completions`` at once; the answers, once all have ended.

    Errors:
      SystemExit: the server answered with an error, also in mid-stream, or not in time.
    """
    with selectors.DefaultSelector() as selector:
        streams = []
        for body in bodies:
            connection = socket.create_connection(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            streams.append(stream := Stream(0.0))
            selector.register(connection, selectors.EVENT_READ, stream)
            request = _request(address, body)
            stream.started = time.perf_counter()
            connection.sendall(request)
        _read(selector)
    return [_parse(stream) for stream in streams]


def get_json(address: tuple[str, int], path: str) -> tuple[int, object]:
    """Status and JSON of one GET; raises OSError where nobody answers."""
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    if not raw:
        raise ConnectionError("the connection closed without an answer")
    head, _, body = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = b"".join(body[lo:hi] for lo, hi in _chunks(body))
    return int(head.split()[1]), json.loads(body)


def _request(address: tuple[str, int], body: dict[str, object]) -> bytes:
    raw = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + raw


def _read(selector: selectors.BaseSelector) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while selector.get_map():
        ready = selector.select(deadline - time.monotonic())
        if not ready:
            raise SystemExit(f"no answer within {DEADLINE_S:.0f} s")
        for key, _ in ready:
            connection: socket.socket = key.fileobj  # type: ignore[assignment]
            data = connection.recv(65536)
            key.data.reads.append((time.perf_counter(), data))
            if not data:
                selector.unregister(connection)
                connection.close()


def _chunks(raw: bytes) -> Iterator[tuple[int, int]]:
    """Where the data of each chunk of a chunked body lies."""
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0 and (size := int(raw[at:end], 16)):
        yield end + 2, end + 2 + size
        at = end + 2 + size + 2


def _events(stream: Stream) -> Iterator[tuple[float, str]]:
    """The events of the stream, each with the moment at which its last byte had come."""
    raw = b"".join(data for _, data in stream.reads)
    head, _, body = raw.partition(b"\r\n\r\n")
    if int(head.split()[1]) != 200 or b"transfer-encoding: chunked" not in head.lower():
        raise SystemExit(f"the node refused: {raw.decode('utf-8', 'replace')}")
    offset, seen, reads = len(head) + 4, 0, iter(stream.reads)
    moment, rest = stream.started, b""
    for lo, hi in _chunks(body):
        while seen < offset + hi:
            moment, data = next(reads)
            seen += len(data)
        *blocks, rest = (rest + body[lo:hi]).split(b"\n\n")
        for block in blocks:
            if block.startswith(b"data: "):
                yield moment, block[6:].decode()


def _parse(stream: Stream) -> Completion:
    text, arrivals, usage, done = "", [], None, False
    report: Mapping[str, Any] = {}
    for moment, event in _events(stream):
        if event == "[DONE]":
            done = True
            continue
        chunk = json.loads(event)
        if "error" in chunk:
            raise SystemExit(f"the stream failed: {chunk['error']['message']}")
        usage = chunk.get("usage") or usage
        report = chunk.get("kwaai") or report
        piece = "".join(choice["text"] or "" for choice in chunk["choices"])
        if piece:
            text += piece
            arrivals.append(moment)
    if not done or not usage:
        raise SystemExit("the stream ended without usage and [DONE]")
    details = usage.get("prompt_tokens_details") or {}
    return Completion(
        text=text,
        arrivals=tuple(arrivals),
        started=stream.started,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=details.get("cached_tokens", 0),
        report=report,
    )
