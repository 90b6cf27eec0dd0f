"""A worker process, seen from the node: started, spoken to, and its end noticed at once."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from kwaai_core import (
    CallPiece,
    ContextLengthExceeded,
    Delta,
    Hop,
    HopTiming,
    KwaaiError,
    ModelFileError,
    ModelLoading,
    Report,
    RequestError,
    RequestTooLarge,
    Span,
    TokenIds,
    TokenLogprob,
    UnsupportedParameter,
    Usage,
    WorkerLost,
)
from kwaai_lobe_llama.answer import Answer
from kwaai_lobe_llama.answers import (
    Failure,
    FailureCode,
    Finish,
    decode_calls,
    decode_failure,
    decode_finish,
    decode_logprobs,
    decode_ready,
    decode_text,
)
from kwaai_lobe_llama.frames import MAX_PAYLOAD, FrameError, FrameReader, Kind, frame
from kwaai_lobe_llama.jobs import Job, Question, encode_job, encode_question
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.questions import Questions

if TYPE_CHECKING:
    from kwaai_core.span.roles import Routing

log = logging.getLogger(__name__)

_LONGEST_LINE = 1000  # bytes of what a process says to stderr


@dataclass(eq=False, slots=True)
class Request:
    """An answer that a worker is giving; ``routing`` says where it goes, if it has to go anywhere,
    and ``scope`` is where that is asked. ``whole`` are the blocks of a model that is here whole."""

    answer: Answer = field(default_factory=Answer)
    accepted: trio.Event = field(default_factory=trio.Event)
    digest: bytes = b""
    prompt_field: str = "messages"
    report: Report | None = None
    routing: Routing | None = None
    whole: Span | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallPiece, ...] = ()
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Worker:
    """One worker process with one model.

    Resources: :meth:`run` owns the process; when it returns, the process has ended and every
    request of it has been answered or failed.
    """

    def __init__(self, name: str, plan: Plan, *, spin: int) -> None:
        self.name = name
        self.plan = plan
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.facts: Mapping[str, object] = {}
        self.ready_since = inf  # trio's clock
        self.error: KwaaiError | None = None
        self.pid = 0
        self._spin = spin
        self._requests: dict[int, Request] = {}
        self._questions = Questions()
        self._numbers = count(1)
        self._out, self._to_write = trio.open_memory_channel[tuple[Kind, int, bytes]](float("inf"))
        self._last_words: deque[str] = deque(maxlen=8)

    @property
    def serving(self) -> bool:
        """Whether the model is loaded and its process lives."""
        return self.ready.is_set() and not self.ended.is_set()

    @property
    def requests(self) -> int:
        """How many requests it has, waiting ones included."""
        return len(self._requests)

    @property
    def busy(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self._requests or self._questions)

    async def run(self) -> None:
        """Start the process and serve its frames until it ends or this is cancelled."""
        try:
            await self._run()
        except OSError as error:  # no more processes, descriptors or memory
            self.error = ModelLoading(
                f"a process for {self.name} could not be started: {error}; try again later",
                retry_after=5,
            )
        finally:
            self.ended.set()
            self.ready.set()
            for request in self._requests.values():
                request.answer.fail(self.error or self._lost("was stopped"))
                request.accepted.set()
            self._questions.fail(self.error or self._lost("was stopped"))

    async def _run(self) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await self._spawn(theirs)
            self.pid = process.pid
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                await self._serve(process, stream)

    async def _spawn(self, connection: socket.socket) -> trio.Process:
        fd = connection.fileno()
        module = f"{__package__}.worker"
        # -P: a queue.py where the node was started is none of Python's
        words, more = self._arguments()
        command = [sys.executable, "-P", "-m", module, str(fd), *words]
        return await trio.lowlevel.open_process(
            command,
            pass_fds=[fd, *more],
            env=self._environment() | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def _environment(self) -> dict[str, str]:
        return {"GOMP_SPINCOUNT": str(self._spin)}

    def _arguments(self) -> tuple[list[str], list[int]]:
        """What the process is told, and the descriptors that it inherits besides."""
        return [self.plan.to_json()], []

    async def _serve(self, process: trio.Process, stream: trio.SocketStream) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen_to_stderr, process)
                nursery.start_soon(self._write, stream)
                await self._read(stream)
                with trio.move_on_after(2):  # it closed its end, so it is ending
                    await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()
            if self.error is None:
                self.error = self._lost(_manner(process.returncode))

    async def _write(self, stream: trio.SocketStream) -> None:
        try:
            async for kind, number, payload in self._to_write:
                asked = number in self._requests or number in self._questions
                if asked or kind not in (Kind.GENERATE, Kind.TOKENISE):  # who asked has not left
                    await stream.send_all(frame(kind, number, payload))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader sees the end of the process too, and says so

    async def _listen_to_stderr(self, process: trio.Process) -> None:
        if process.stderr is None:
            return
        unfinished = b""
        async for data in process.stderr:
            *lines, unfinished = (unfinished + data).split(b"\n")
            unfinished = unfinished[:_LONGEST_LINE]
            for line in lines:
                self._hear(line[:_LONGEST_LINE].decode("utf-8", "replace"))
        if unfinished:
            self._hear(unfinished.decode("utf-8", "replace"))

    def _hear(self, line: str) -> None:
        log.debug("%s: %s", self.name, line)
        if not line.startswith((" ", "Traceback", "Thread")):  # where it was is for the log
            self._last_words.append(line)

    async def _read(self, stream: trio.SocketStream) -> None:
        reader = FrameReader()
        try:
            while data := await stream.receive_some(1 << 16):
                for kind, number, payload in reader.feed(data):
                    self._take(kind, number, payload)
        except trio.BrokenResourceError:
            pass  # the process ended with frames of ours unread
        except FrameError as error:
            self.error = self._lost(f"sent a broken frame ({error})")

    def _take(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.READY:
            self.facts = decode_ready(payload)
            self.ready_since = trio.current_time()
            self.ready.set()
        elif kind is Kind.LOADING:
            log.info("%s: %s", self.name, payload.decode("utf-8", "replace"))
        elif kind is Kind.FATAL:
            self.error = ModelFileError(payload.decode("utf-8", "replace"))
        elif number in self._questions:
            self._questions.take(number, kind, payload)
        elif (request := self._requests.get(number)) is not None:
            self._answer(request, kind, payload)

    def _answer(self, request: Request, kind: Kind, payload: bytes) -> None:
        if kind is Kind.TEXT:
            tokens, text = decode_text(payload)
            delta = Delta(text, tokens, logprobs=request.logprobs, calls=request.calls)
            request.answer.put(delta)
            request.logprobs, request.calls = (), ()
        elif kind is Kind.LOGPROBS:
            request.logprobs = decode_logprobs(payload)
        elif kind is Kind.CALLS:
            request.calls = decode_calls(payload)
        elif kind is Kind.FINISH:
            end = decode_finish(payload)
            usage = Usage(end.prompt_tokens, end.completion_tokens, end.cached_tokens)
            request.digest = end.digest
            report = request.report or self._report(request, end)
            last = Delta("", 0, end.reason, usage, report)  # type: ignore[arg-type]
            request.answer.put(last)
        elif kind is Kind.ACCEPTED:
            request.accepted.set()
        elif kind is Kind.FAILED:
            request.answer.fail(_refusal(decode_failure(payload), request.prompt_field))
            request.accepted.set()

    def _report(self, request: Request, end: Finish) -> Report | None:
        """How an answer of a whole model came about."""
        if request.whole is None:
            return None
        rows = end.prompt_tokens - end.cached_tokens + max(0, end.completion_tokens - 1)
        hop = Hop("local", request.whole)
        took = HopTiming(hop, rows, 0, end.queue_ms, end.compute_ms, 0.0)
        return Report((took,), self.plan.exact, same_text_guaranteed=self.plan.exact)

    def _lost(self, manner: str) -> WorkerLost:
        words = "; ".join(word for word in self._last_words if word)
        if any(not request.answer.ended for request in self._requests.values()):
            when = "in mid-answer"
        else:
            when = "while it was idle" if self.ready.is_set() else "while it loaded the model"
        return WorkerLost(
            f"the process that computes {self.name} {manner} {when}; a new one is started "
            f"for the next request" + (f" (its last words: {words})" if words else ""),
            retry_after=1,
        )

    async def tokenise(self, question: Question) -> Mapping[str, Any]:
        """Ask about texts and tokens. Errors: :class:`RequestError`; :class:`WorkerLost`."""
        if self.ended.is_set():
            raise self.error or self._lost("was stopped")
        asked = {tuple: "messages", str: "prompt", TokenIds: "tokens"}
        param = asked.get(type(question.prompt), "model")
        payload = _within_limit(encode_question(question), param)
        number = next(self._numbers) & 0xFFFFFFFF
        self._out.send_nowait((Kind.TOKENISE, number, payload))
        try:
            return await self._questions.wait(number, param)
        except trio.Cancelled:
            self._out.send_nowait((Kind.CANCEL, number, b""))
            raise

    @asynccontextmanager
    async def generate(
        self, job: Job, routing: Routing | None = None, whole: Span | None = None
    ) -> AsyncIterator[tuple[Answer, Request]]:
        """Open the answer to a job; entering returns once it is accepted.

        Leaving cancels it at once where it has not ended. Errors: :class:`RequestError` on
        entering; :class:`WorkerLost`, on entering or while reading.
        """
        if self.ended.is_set():
            raise self.error or self._lost("was stopped")
        payload = _within_limit(encode_job(job), _prompt_field(job))
        request = Request(prompt_field=_prompt_field(job), routing=routing, whole=whole)
        number = next(self._numbers) & 0xFFFFFFFF
        self._requests[number] = request
        try:
            self._out.send_nowait((Kind.GENERATE, number, payload))
            await request.accepted.wait()
            request.answer.check()
            yield request.answer, request
        finally:
            del self._requests[number]
            request.scope.cancel()
            if not request.answer.ended:
                self._out.send_nowait((Kind.CANCEL, number, b""))


def _prompt_field(job: Job) -> str:
    return "messages" if isinstance(job.prompt, tuple) else "prompt"


def _within_limit(payload: bytes, param: str) -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise RequestTooLarge(
            f"the prompt takes {len(payload)} bytes, over the limit of {MAX_PAYLOAD}: shorten it",
            param=param,
        )
    return payload


def _refusal(failure: Failure, field_: str) -> KwaaiError:
    if failure.code is FailureCode.CONTEXT_LENGTH:
        return ContextLengthExceeded(failure.prompt_tokens, failure.context_tokens, param=field_)
    error = UnsupportedParameter if failure.code is FailureCode.UNSUPPORTED else RequestError
    return error(failure.message, param=failure.param or field_)


def _manner(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}"
