"""Answers that are generated while the client waits: streamed events, or one document.

Everything runs in the request's own task; a second one only waits for the client to leave.
"""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

import trio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from trio.abc import ReceiveChannel

from kwaai_core import openai
from kwaai_core.chat import Answer, chat
from kwaai_core.config import ServerSettings
from kwaai_core.errors import NoPeerAvailable, WorkerLost
from kwaai_core.openai import PING, Call, Chunks, Head
from kwaai_core.replies import Json, public
from kwaai_core.roles import Host
from kwaai_core.security import REQUEST_ID
from kwaai_core.types import Delta, FinishReason, Report, Usage

log = logging.getLogger("kwaai.http")

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Calls:
    """The calls that are being answered, and how they end when the node closes."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._closing = False

    def end(self) -> None:
        """End every call now, and each that still comes, with an error that says why."""
        self._closing = True
        for scope in self._scopes:
            scope.cancel()

    async def attend(self, receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` in this task, and cancel it as soon as the client leaves.

        Errors: those of ``work``, not wrapped in a group; NoPeerAvailable after :meth:`end`.
        """
        failure: Exception | None = None
        finished = False
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(_cancel_on_leave, receive, scope)
            self._scopes.add(scope)
            try:
                if not self._closing:
                    await work()
                    finished = True
            except Exception as error:  # noqa: BLE001 - goes on below, past the nursery's grouping
                failure = error
            finally:
                self._scopes.discard(scope)
            scope.cancel()
        if failure is not None:
            raise failure
        if self._closing and not finished:
            raise NoPeerAvailable(
                "this node is shutting down: try again once it runs", retry_after=5
            )


async def _cancel_on_leave(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class Generate:
    """An ASGI endpoint: parse a call, generate, and answer in the form that was asked for."""

    def __init__(
        self, host: Host, settings: ServerSettings, calls: Calls, kind: Literal["chat", "text"]
    ) -> None:
        self._host = host
        self._kind = kind
        self._calls = calls
        self._ping_seconds = settings.ping_seconds
        self._parse: Callable[[bytes], Call] = (
            partial(openai.parse_chat, max_messages=settings.max_messages)
            if kind == "chat"
            else openai.parse_completion
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._parse(await Request(scope, receive).body())
        if not call.stream:
            await self._calls.attend(receive, partial(self._whole, call, scope, receive, send))
            return
        events = _Events(send)
        try:
            await self._calls.attend(receive, partial(self._stream, call, events))
        except Exception as error:
            if not events.written:
                raise
            await events.fail(error, scope[REQUEST_ID])

    async def _whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        texts = list[str]()
        async with chat(self._host, call.request) as answer:
            batches = _Batches(answer.deltas)
            while not isinstance(batch := await batches.next(), _End):
                texts.append(batch)
            head = self._head(answer)
            kwaai = openai.route_of(answer.route.hops, batch.report, timing=call.timing)
        texts.append(batch.text)
        document = openai.completion(head, "".join(texts), batch.finish, batch.usage, kwaai)
        route = openai.route_header(answer.route.hops).decode()
        await Json(document, headers={"x-kwaai-route": route})(scope, receive, send)

    async def _stream(self, call: Call, events: "_Events") -> None:
        async with chat(self._host, call.request) as answer:
            chunks = Chunks(self._head(answer), include_usage=call.include_usage)
            batches, end = _Batches(answer.deltas), None
            events.route = openai.route_header(answer.route.hops)
            events.held = chunks.opening()
            while end is None:
                written = events.written
                # One deadline for many tokens, as one for each would cost 9 us. It ends a wait
                # for the executor, and never a write: see connection.py.
                with trio.move_on_after(self._ping_seconds):
                    end = await _pump(batches, chunks, events)
                if end is None and events.written == written:
                    await events.write(PING)
            text = chunks.text(end.text) if end.text else b""
            kwaai = openai.route_of(answer.route.hops, end.report, timing=call.timing)
            text += chunks.closing(end.finish, end.usage, kwaai)
            await events.write(text, last=True)

    def _head(self, answer: Answer) -> Head:
        prefix = "chatcmpl-" if self._kind == "chat" else "cmpl-"
        return Head(self._kind, prefix + uuid.uuid4().hex, answer.route.model.id, int(time.time()))


async def _pump(batches: "_Batches", chunks: Chunks, events: "_Events") -> "_End":
    while not isinstance(batch := await batches.next(), _End):
        if batch:
            await events.write(chunks.text(batch))
    return batch


@dataclass(frozen=True, slots=True)
class _End:
    """The end of an answer, with the last of its text."""

    text: str
    finish: FinishReason
    usage: Usage
    report: Report | None


class _Batches:
    """The text of an answer, all that is ready at once, and then its end."""

    def __init__(self, deltas: ReceiveChannel[Delta]) -> None:
        self._receive = deltas.receive
        # Only a memory channel can say that nothing is ready; others are read one by one.
        self._receive_nowait: Callable[[], Delta] | None = getattr(deltas, "receive_nowait", None)

    async def next(self) -> str | _End:
        """Wait for text or the end; may be cancelled, and nothing is lost.

        Errors:
          WorkerLost: the stream ended without saying how, and without the usage.
        """
        try:
            delta = await self._receive()
        except trio.EndOfChannel:
            raise WorkerLost("the answer broke off before its end: ask again") from None
        text = delta.text
        if self._receive_nowait is not None:
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while delta.finish is None:
                    delta = self._receive_nowait()
                    text += delta.text
        if delta.finish is None:
            return text
        if delta.usage is None:
            raise WorkerLost("the answer ended without its usage: this is a bug of the executor")
        return _End(text, delta.finish, delta.usage, delta.report)


class _Events:
    """A streamed answer over its ``route``; ``held`` leaves together with what is written first."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.held = self.route = b""
        self.written = 0
        self.ended = False

    async def write(self, body: bytes, *, last: bool = False) -> None:
        if not self.written:
            headers = [*_HEADERS, (b"x-kwaai-route", self.route)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            body = self.held + body
        self.written += 1
        self.ended = last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: Exception, request_id: str) -> None:
        """End with an error event, unless the answer is complete already."""
        shown = public(error, request_id)
        log.warning("the stream of request %s failed: %s", request_id, shown)
        if not self.ended:
            await self.write(openai.failed_event(shown), last=True)
