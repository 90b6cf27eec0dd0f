"""A node of fakes behind a real server, and raw sockets to talk to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio

from kwaai_core.config import ServerSettings
from kwaai_core.errors import ModelNotFound
from kwaai_core.http.server import serve
from kwaai_core.roles import Route
from kwaai_core.types import Delta, GenerateRequest, Hop, Intent, LobeStatus, ModelCard, Span, Usage

CARD = ModelCard(
    "tiny/model", digest="ab" * 32, architecture="llama", blocks=4, context_length=64, created=7
)
LAST = Delta("", finish="stop", usage=Usage(11, 3, 2))

S = TypeVar("S")
Step = Delta | Exception | trio.Event


@dataclass
class Played:
    """One answer as the executor saw it: what was asked, that it began, and that it ended."""

    request: GenerateRequest
    entered: trio.Event = field(default_factory=trio.Event)
    left: trio.Event = field(default_factory=trio.Event)
    sent: int = 0


class PlayedExecutor:
    """Plays a script: a delta is sent, an error raised, an event waited for. ``script_of`` gives
    each request one of its own."""

    def __init__(self, script: Sequence[Step] = (Delta("Hel", 1), Delta("lo", 1), LAST)) -> None:
        self.script = script
        self.script_of: Callable[[GenerateRequest], Sequence[Step]] = lambda _: self.script
        self.entering: Step | None = None
        self.leaving: Exception | None = None
        self.is_ready = True
        self.plain = False
        self.models_error: Exception | None = None
        self.plays: list[Played] = []
        self._changed = trio.Event()

    async def models(self) -> Sequence[ModelCard]:
        if self.models_error is not None:
            raise self.models_error
        return (CARD,)

    def ready(self) -> bool:
        return self.is_ready

    async def play(self, n: int = 0) -> Played:
        """The n-th answer that was asked for, once it is."""
        while len(self.plays) <= n:
            await self._changed.wait()
        return self.plays[n]

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Delta]]:
        played = Played(request)
        self.plays.append(played)
        self._changed.set()
        self._changed = trio.Event()
        try:
            if isinstance(self.entering, Exception):
                raise self.entering
            if isinstance(self.entering, trio.Event):
                await self.entering.wait()
            played.entered.set()
            script = _Script(self.script_of(request), played)
            yield _Plain(script) if self.plain else script
        finally:
            played.left.set()
            if self.leaving is not None:
                raise self.leaving


class _Script(trio.abc.ReceiveChannel[Delta]):
    """Reads a script; what comes without an event before it is ready at once."""

    def __init__(self, script: Sequence[Step], played: Played) -> None:
        self._steps = iter(script)
        self._step: Step | None = None
        self._played = played

    def receive_nowait(self) -> Delta:
        if self._step is None:
            self._step = next(self._steps, None)
        step = self._step
        if isinstance(step, trio.Event):
            if not step.is_set():
                raise trio.WouldBlock
            self._step = None
            return self.receive_nowait()
        if step is None:
            raise trio.EndOfChannel
        if isinstance(step, Exception):
            raise step
        self._step = None
        self._played.sent += 1
        return step

    async def receive(self) -> Delta:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                assert isinstance(self._step, trio.Event)
                await self._step.wait()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _Plain(trio.abc.ReceiveChannel[Delta]):
    """A channel with nothing but what every channel has."""

    def __init__(self, inner: _Script) -> None:
        self._inner = inner

    async def receive(self) -> Delta:
        return await self._inner.receive()

    async def aclose(self) -> None:
        await self._inner.aclose()


class OneRouter:
    """Routes to the one executor there is."""

    def __init__(self, executor: PlayedExecutor) -> None:
        self._executor = executor

    async def route(self, intent: Intent) -> Route:
        if intent.model != CARD.id:
            raise ModelNotFound(intent.model, [CARD.id])
        return Route(self._executor, CARD, (Hop("local", Span(0, 4)),))


class FakeNode:
    """What the app sees of a node."""

    def __init__(self) -> None:
        self.executor = PlayedExecutor()
        self.router: Any = OneRouter(self.executor)
        self.routes: Sequence[tuple[str, Sequence[Any]]] = ()
        self.lobes: list[LobeStatus] = [LobeStatus("fake", "0.1.0", "executor", "fake", "ready")]
        self.gate: Any = None
        self.identity = self.transport = self.trust = self.settlement = self.embedder = None
        self.catalogs: Sequence[Any] = ()
        self.stores: Sequence[Any] = ()

    @property
    def state(self) -> Path:
        raise NotImplementedError("the app has no folder of its own")

    def settings(self, kind: type[S]) -> S:
        return kind()

    @property
    def executors(self) -> Sequence[PlayedExecutor]:
        return (self.executor,)

    def ready(self) -> bool:
        return self.executor.ready()

    def statuses(self) -> Sequence[LobeStatus]:
        return self.lobes


@dataclass
class Served:
    """A running server: its node, its base URL, its Unix socket, and the event that stops it."""

    node: FakeNode
    url: str
    socket: Path
    stop: trio.Event
    ended: trio.Event
    cancel: Callable[[], None]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def executor(self) -> PlayedExecutor:
        return self.node.executor

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=10, **options)

    def local_client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        return httpx.AsyncClient(base_url="http://node", transport=transport, timeout=10)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def talk(self, request: bytes) -> bytes:
        """All that the server says to these bytes until it closes."""
        async with await self.connect() as stream:
            try:
                await stream.send_all(request)
            except trio.BrokenResourceError:
                pass
            return await read_all(stream)


Serve = Callable[..., Any]


@pytest.fixture
async def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def served(node: FakeNode, tmp_path: Path) -> AsyncIterator[Served]:
    """A server with a body limit of 64 KiB and pings so rare that no test meets one."""
    async with serving(node, tmp_path) as running:
        yield running


@asynccontextmanager
async def serving(node: FakeNode, state: Path, **settings: Any) -> AsyncIterator[Served]:
    """Serve a node on a free port until the block is left."""
    defaults = {"port": 0, "max_body": 2**16, "ping_seconds": 600.0, "grace_seconds": 0.05}
    stop, ended, scope = trio.Event(), trio.Event(), trio.CancelScope()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[Sequence[str]]) -> None:
                options = ServerSettings(**(defaults | settings))
                try:
                    with scope:
                        await serve(node, options, state, stop=stop, task_status=task_status)
                finally:
                    ended.set()

            (url,) = await nursery.start(run)
            yield Served(node, url, state / "node.sock", stop, ended, scope.cancel)
            stop.set()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end; a reset is an end too."""
    data = bytearray()
    try:
        while part := await stream.receive_some(65536):
            data += part
    except trio.BrokenResourceError:
        pass
    return bytes(data)


async def read_until(stream: trio.abc.ReceiveStream, mark: bytes) -> bytes:
    """Everything up to the first part that brings ``mark``."""
    data = bytearray()
    while mark not in data:
        part = await stream.receive_some(65536)
        assert part, f"closed before {mark!r}: {bytes(data)!r}"
        data += part
    return bytes(data)


def chat_body(**more: Any) -> dict[str, Any]:
    """A minimal body of chat completions."""
    return {"model": CARD.id, "messages": [{"role": "user", "content": "hi"}]} | more


def post(path: str, body: Any, *headers: str) -> bytes:
    """A POST as raw bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(data)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def dechunked(answer: bytes) -> bytes:
    """The body of an answer in chunks, every one of which is whole."""
    body, at = bytearray(), answer.index(b"\r\n\r\n") + 4
    while True:
        start = answer.index(b"\r\n", at) + 2
        end = start + int(answer[at:start], 16)
        assert answer[end : end + 2] == b"\r\n"
        if start == end:
            return bytes(body)
        body += answer[start:end]
        at = end + 2


def events(stream: str | bytes) -> list[Any]:
    """The data of each event of an SSE body; ``[DONE]`` as it is."""
    text = stream.decode() if isinstance(stream, bytes) else stream
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]
