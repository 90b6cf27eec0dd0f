"""Answers that are generated while the client waits: streamed events, or one document.

A call with one choice runs in the request's own task, one with several in a task for each; another
one only waits for the client to leave.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import trio
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kwaai_core import openai
from kwaai_core.chat import chat
from kwaai_core.config import ServerSettings
from kwaai_core.errors import KwaaiError, NoPeerAvailable, RequestError
from kwaai_core.http.replies import FAILED, USED, Json, public
from kwaai_core.http.security import REQUEST_ID
from kwaai_core.openai import PING, Call, Chunks, Head, ResponseEvents
from kwaai_core.openai.batches import Batches, End, each
from kwaai_core.openai.logprobs import Kind
from kwaai_core.roles import Host, Route
from kwaai_core.types import CallPiece, Report, TokenLogprob, Usage

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

    def count(self) -> int:
        """How many there are."""
        return len(self._scopes)

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

    def __init__(self, host: Host, settings: ServerSettings, calls: Calls, kind: Kind) -> None:
        self._host = host
        self._kind = kind
        self._calls = calls
        self._ping_seconds = settings.ping_seconds
        limited = partial(partial, max_messages=settings.max_messages)
        parsers: dict[Kind, Callable[[bytes], Call]] = {
            "chat": limited(openai.parse_chat),
            "response": limited(openai.parse_response),
            "text": openai.parse_completion,
        }
        self._parse = parsers[kind]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except RequestError as error:
            if self._kind == "response" and error.param == "messages":
                error.param = "input"  # what an executor calls messages has another name here
            raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._parse(await Request(scope, receive).body())
        if not call.stream:
            await self._calls.attend(receive, partial(self._whole, call, scope, receive, send))
            return
        events = _Events(send)
        try:
            await self._calls.attend(receive, partial(self._stream, call, scope, events))
        except Exception as error:
            if not events.written:
                raise
            shown = await events.fail(error, scope[REQUEST_ID])
            scope[FAILED] = shown.code or str(shown.status)

    async def _whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        told = _Told(call, self._kind, scope)
        choices = await each(partial(self._whole_choice, told), len(call.requests))
        document = openai.document(call, told.head, choices, told.usage, told.kwaai)
        headers = {"x-kwaai-route": told.route.decode()}
        await Json(document, headers=headers)(scope, receive, send)

    async def _whole_choice(self, told: _Told, index: int) -> openai.Choice:
        request = told.call.requests[index]
        texts, logprobs, calls = list[str](), list[TokenLogprob](), list[CallPiece]()
        async with chat(self._host, request) as answer:
            told.begin(answer.route)
            batches, end = Batches(answer.deltas), None
            while end is None:
                batch = await batches.next()
                texts.append(batch.text)
                logprobs += batch.logprobs
                calls += batch.calls
                end = batch.end
        told.end(index, end)
        given = logprobs if request.logprobs is not None else None
        return openai.Choice("".join(texts), end.finish, given, calls)

    async def _stream(self, call: Call, scope: Scope, events: _Events) -> None:
        told = _Told(call, self._kind, scope)
        await each(partial(self._stream_choice, told, events), len(call.requests))

    async def _stream_choice(self, told: _Told, events: _Events, index: int) -> None:
        async with chat(self._host, told.call.requests[index]) as answer:
            told.begin(answer.route)
            events.route = told.route
            chunks = openai.events(told.call, told.head, index)
            events.failed = chunks.failed
            events.hold(chunks.opening())
            batches, end = Batches(answer.deltas), None
            while end is None:
                written = events.written
                # One deadline for many tokens, as one for each would cost 9 us. It ends a wait
                # for the executor, and never a write: see connection.py.
                with trio.move_on_after(self._ping_seconds):
                    end = await _pump(batches, chunks, events)
                if end is None and events.written == written:
                    await events.write(PING)
            told.end(index, end)
            if told.left:
                await events.write(chunks.finished(end.finish))
            else:
                await events.write(chunks.closing(end.finish, told.usage, told.kwaai), last=True)


async def _pump(batches: Batches, chunks: Chunks | ResponseEvents, events: _Events) -> End:
    while True:
        batch = await batches.next()
        if batch.text or batch.logprobs:
            await events.write(chunks.text(batch.text, batch.logprobs))
        if batch.calls:
            await events.write(chunks.calls(batch.calls))
        if batch.end is not None:
            return batch.end


class _Told:
    """What the choices of one call have in common, as far as it is known."""

    def __init__(self, call: Call, kind: Kind, scope: Scope) -> None:
        self.call = call
        self._scope = scope
        self.left = len(call.requests)
        self.head = Head(kind, _PREFIXES[kind] + uuid.uuid4().hex, "", int(time.time()))
        self.usage = Usage(0, 0)
        self.route = b""
        self.kwaai: dict[str, object] = {}
        self._route: Route | None = None
        self._report: Report | None = None

    def begin(self, route: Route) -> None:
        """A choice has its route: the first one's is told."""
        if self._route is None:
            self._route, self.route = route, openai.route_header(route.hops)
            self.head = replace(self.head, model=route.model.id)

    def end(self, index: int, end: End) -> None:
        """A choice has ended. The tokens of a prompt count once, however many answers it has."""
        self.left -= 1
        once = index % self.call.n == 0
        self.usage = Usage(
            self.usage.prompt_tokens + once * end.usage.prompt_tokens,
            self.usage.completion_tokens + end.usage.completion_tokens,
            self.usage.cached_tokens + once * end.usage.cached_tokens,
        )
        self._scope[USED] = self.head.model, self.usage
        self._report = openai.together(self._report, end.report)
        if not self.left and self._route is not None:
            timing = self.call.timing
            self.kwaai = openai.route_of(self._route.hops, self._report, timing=timing)


_PREFIXES: dict[Kind, str] = {"chat": "chatcmpl-", "text": "cmpl-", "response": "resp_"}


class _Events:
    """A streamed answer over its ``route``; what is held leaves together with what is written
    first. Several choices write to it in turn."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held = self.route = b""
        self.failed = openai.failed_event
        self.written = 0
        self.ended = False
        self._turn = trio.Lock()

    def hold(self, body: bytes) -> None:
        """Keep this until something else is written."""
        self._held += body

    async def write(self, body: bytes, *, last: bool = False) -> None:
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            with trio.CancelScope(shield=True):  # or what is to be written would be lost to a ping
                await self._turn.acquire()
        try:
            await self._write(self._held + body, last)
        finally:
            self._turn.release()

    async def _write(self, body: bytes, last: bool) -> None:
        self._held = b""
        if not self.written:
            headers = [*_HEADERS, (b"x-kwaai-route", self.route)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self.written += 1
        self.ended = last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def fail(self, error: Exception, request_id: str) -> KwaaiError:
        """End with an error event, unless the answer is complete already; what the client sees."""
        shown = public(error, request_id)
        log.warning("the stream of request %s failed: %s", request_id, shown)
        if not self.ended:
            await self.write(self.failed(shown), last=True)
        return shown
