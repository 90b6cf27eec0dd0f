"""Answers that are generated while the client waits: streamed events, or one document.

Everything runs in the request's own task; a second one only waits for the client to leave.
"""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Literal

import trio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from trio.abc import ReceiveChannel

from kwaai_core import openai
from kwaai_core.chat import Answer, chat
from kwaai_core.errors import NoPeerAvailable, WorkerLost
from kwaai_core.openai import PING, Call, Chunks, Head
from kwaai_core.replies import Json, public
from kwaai_core.roles import Host
from kwaai_core.security import REQUEST_ID
from kwaai_core.types import Delta

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
            except Exception as error:  # carried past the nursery, which would put it in a group
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
        self,
        host: Host,
        kind: Literal["chat", "text"],
        calls: Calls,
        ping_seconds: float,
    ) -> None:
        self._host = host
        self._kind = kind
        self._parse = openai.parse_chat if kind == "chat" else openai.parse_completion
        self._calls = calls
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._parse(await Request(scope, receive).body())
        if not call.stream:
            await self._calls.attend(receive, partial(self._whole, call, scope, receive, send))
            return
        events = _Events(send)
        try:
            await self._calls.attend(receive, partial(self._stream, call, events))
        except Exception as error:
            if not events.begun:
                raise
            await events.fail(error, scope[REQUEST_ID])

    async def _whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        texts = list[str]()
        async with chat(self._host, call.request) as answer:
            batches = _Batches(answer.deltas)
            last = await batches.next(inf)
            while last.finish is None or last.usage is None:
                texts.append(last.text)
                last = await batches.next(inf)
            head, hops = self._head(answer), answer.route.hops
        text = "".join([*texts, last.text])
        await Json(openai.completion(head, text, last.finish, last.usage, hops))(
            scope, receive, send
        )

    async def _stream(self, call: Call, events: "_Events") -> None:
        async with chat(self._host, call.request) as answer:
            chunks = Chunks(self._head(answer), include_usage=call.include_usage)
            batches = _Batches(answer.deltas)
            last = await batches.next(self._ping_seconds)
            await events.begin(chunks.opening())
            while last.finish is None or last.usage is None:
                await events.write(chunks.text(last.text) if last.text else PING)
                last = await batches.next(self._ping_seconds)
            text = chunks.text(last.text) if last.text else b""
            await events.end(text + chunks.closing(last.finish, last.usage, answer.route.hops))

    def _head(self, answer: Answer) -> Head:
        prefix = "chatcmpl-" if self._kind == "chat" else "cmpl-"
        return Head(
            self._kind,
            prefix + uuid.uuid4().hex,
            answer.route.model.id,
            int(time.time()),
        )


class _Batches:
    """Deltas, all that are ready joined into one."""

    def __init__(self, deltas: ReceiveChannel[Delta]) -> None:
        self._receive = deltas.receive
        # Only a memory channel can say that nothing is ready; others are read one by one.
        self._receive_nowait: Callable[[], Delta] | None = getattr(deltas, "receive_nowait", None)

    async def next(self, patience: float) -> Delta:
        """The next delta with text or a finish; an empty one after ``patience`` seconds of none.

        Errors:
          WorkerLost: the stream ended without a finish and the usage.
        """
        batch = _NOTHING
        with trio.move_on_after(patience):
            try:
                batch = await self._receive()
            except trio.EndOfChannel:
                raise WorkerLost("the answer broke off before its end: ask again") from None
        if self._receive_nowait is None or batch.finish is not None or batch is _NOTHING:
            return batch
        return self._join_ready(batch, self._receive_nowait)

    def _join_ready(self, batch: Delta, receive_nowait: Callable[[], Delta]) -> Delta:
        texts = [batch.text]
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while batch.finish is None:
                batch = receive_nowait()
                texts.append(batch.text)
        return batch if len(texts) == 1 else replace(batch, text="".join(texts))


class _Events:
    """The body of a streamed answer. What opens it leaves together with what comes first."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held = b""
        self.begun = False
        self.ended = False

    async def begin(self, opening: bytes) -> None:
        self._held = opening
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})

    async def write(self, body: bytes) -> None:
        if self._held:
            body, self._held = self._held + body, b""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": self._held + body})

    async def fail(self, error: Exception, request_id: str) -> None:
        """End with an error event, unless the answer is complete already."""
        shown = public(error, request_id)
        if shown is not error:
            log.error("a stream failed (%s)", request_id, exc_info=error)
        if not self.ended:
            await self.end(openai.failed_event(shown))


_NOTHING = Delta("")
