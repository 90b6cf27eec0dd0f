"""The worker's three threads: one reads frames, one takes jobs in, one runs llama.cpp.

Templates and tokenising happen beside the computation; ``llama_decode`` releases the interpreter's
lock. Reading waits for neither, so that who leaves is heard at once. The end of the socket is the
end of the node: the reading thread then ends the process at once, whatever is being loaded or
computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import socket
import threading
import traceback
from collections.abc import Callable

from kwaai_lobe_llama.frames import (
    Failure,
    FailureCode,
    Finish,
    FrameReader,
    Job,
    Kind,
    decode_job,
    encode_failure,
    encode_finish,
    encode_text,
    frame,
)
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.bindings import C
from kwaai_lobe_llama.worker.engine import Engine, EngineError, Row
from kwaai_lobe_llama.worker.exact import NotExact, pass_gate
from kwaai_lobe_llama.worker.fingerprint import describe, fingerprint
from kwaai_lobe_llama.worker.residency import release_zero_pages
from kwaai_lobe_llama.worker.sampler import Sampler
from kwaai_lobe_llama.worker.scheduler import Scheduler
from kwaai_lobe_llama.worker.telling import Session
from kwaai_lobe_llama.worker.template import ChatTemplate, TemplateError
from kwaai_lobe_llama.worker.text import TextAssembler

_PIECE = 1 << 16  # characters


class Outbox:
    """Frames for the node: collected by the computing thread, sent in one call a step."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._collected = bytearray()

    def send(self, kind: Kind, request: int = 0, payload: bytes = b"") -> None:
        """Send one frame now."""
        with self._lock:
            self._connection.sendall(frame(kind, request, payload))

    def collect(self, kind: Kind, request: int, payload: bytes) -> None:
        """Keep a frame until :meth:`flush`."""
        self._collected += frame(kind, request, payload)

    def flush(self) -> None:
        """Send what was collected; waits while the node does not read."""
        if self._collected:
            with self._lock:
                self._connection.sendall(self._collected)
            self._collected.clear()


class Refusal(Exception):
    """A job that cannot be done."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Intake:
    """From jobs to sessions: the template, the tokens, the room in the context."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        vocabulary = engine.vocabulary
        self._bos = engine.special_text(C.llama_vocab_bos(vocabulary))
        self._adds_bos = bool(C.llama_vocab_get_add_bos(vocabulary))
        self._eos = engine.special_text(C.llama_vocab_eos(vocabulary))
        self._template: ChatTemplate | None = None

    def session(self, number: int, job: Job) -> Session:
        """The session that a job asks for; raises :class:`Refusal`."""
        prompt = self._tokens(self._text(job))
        context = self._engine.plan.context
        if not prompt:
            raise Refusal(Failure(FailureCode.BAD_REQUEST, "the prompt has no tokens"))
        if len(prompt) >= context:
            raise self._too_long(len(prompt))
        room = context - len(prompt)
        limit = room if job.max_tokens is None else min(room, job.max_tokens)
        digest = hashlib.sha256() if job.digest else None
        return Session(
            number, prompt, limit, Sampler(job.sampling), TextAssembler(job.stop), digest
        )

    def _tokens(self, text: str) -> list[int]:
        """The tokens of a text, which is counted in pieces first where it is long.

        llama.cpp takes time by the square of the special tokens: 20 s for a mebibyte of them.
        """
        if len(text) > _PIECE:
            starts = range(0, len(text), _PIECE)
            about = sum(len(self._engine.tokenise(text[at : at + _PIECE])) for at in starts)
            if about >= 2 * self._engine.plan.context:  # far more than the cuts may add
                raise self._too_long(about)
        return self._engine.tokenise(text)

    def _too_long(self, tokens: int) -> Refusal:
        what = "the prompt is longer than the context"
        context = self._engine.plan.context
        return Refusal(Failure(FailureCode.CONTEXT_LENGTH, what, tokens, context))

    def _text(self, job: Job) -> str:
        if isinstance(job.prompt, str):
            return job.prompt
        try:
            text = self._compiled().render(job.prompt)
        except TemplateError as error:
            raise Refusal(Failure(FailureCode.BAD_REQUEST, str(error))) from None
        # the tokeniser adds the first token itself
        return text.removeprefix(self._bos) if self._bos and self._adds_bos else text

    def _compiled(self) -> ChatTemplate:
        if self._template is None:
            source = C.llama_model_chat_template(self._engine.model, None)
            if not source:
                raise TemplateError(
                    "this model has no chat template: use /v1/completions with a prompt"
                )
            self._template = ChatTemplate(
                source.decode("utf-8", "replace"), bos_token=self._bos, eos_token=self._eos
            )
        return self._template


class Server:
    """One loaded model, served over a connection until it ends; a :class:`Sink` itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox = Outbox(connection)
        self._inbox: queue.SimpleQueue[Session] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._open: dict[int, bytes | Session] = {}  # until it ends: a job, then its session
        self._opening = threading.Lock()

    def run(self, plan: Plan) -> None:
        """Load, say READY, and serve; returns only where the model cannot be served (FATAL)."""
        self._start(self._take_frames)
        try:
            self._engine, ready = _load(plan, self._outbox)
            self._intake = Intake(self._engine)
        except (EngineError, NotExact) as error:
            self._outbox.send(Kind.FATAL, 0, str(error).encode("utf-8", "replace"))
            return
        self._scheduler = Scheduler(self._engine, self)
        self._start(self._take_jobs)
        self._outbox.send(Kind.READY, 0, ready)
        while True:
            while self._scheduler.idle or not self._inbox.empty():
                self._scheduler.submit(self._inbox.get())
            self._scheduler.step()

    def text(self, session: Session, tokens: int, text: str) -> None:
        self._outbox.collect(Kind.TEXT, session.number, encode_text(tokens, text))

    def finish(self, session: Session, finish: Finish) -> None:
        self._open.pop(session.number, None)
        self._outbox.collect(Kind.FINISH, session.number, encode_finish(finish))

    def flush(self) -> None:
        self._outbox.flush()

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._finish_with, args=(work,), daemon=True).start()

    def _finish_with(self, work: Callable[[], None]) -> None:
        status = 1
        try:
            work()
            status = 0
        except OSError:
            status = 0
        except Exception:  # noqa: BLE001  # the other threads would go on without this one
            traceback.print_exc()
        finally:
            os._exit(status)  # the node is gone, or we are broken: nothing is worth a clean end

    def _take_frames(self) -> None:
        """Until the node is gone. It sends nothing before READY."""
        reader = FrameReader()
        while data := self._connection.recv(1 << 16):
            for kind, number, payload in reader.feed(data):
                if kind is Kind.GENERATE:
                    self._open[number] = payload
                    self._jobs.put(number)
                elif kind is Kind.CANCEL:
                    self._cancel(number)

    def _take_jobs(self) -> None:
        while True:
            number = self._jobs.get()
            job = self._open.get(number)
            if isinstance(job, bytes):  # else its caller has left
                self._accept(number, job)

    def _accept(self, number: int, job: bytes) -> None:
        try:
            session = self._intake.session(number, decode_job(job))
        except Refusal as refusal:
            self._open.pop(number, None)
            self._outbox.send(Kind.FAILED, number, encode_failure(refusal.failure))
            return
        with self._opening:
            left = number not in self._open
            if not left:
                self._open[number] = session
        if left:
            session.sampler.close()
            return
        self._outbox.send(Kind.ACCEPTED, number)
        self._inbox.put(session)

    def _cancel(self, number: int) -> None:
        with self._opening:  # before it is a session, or after
            session = self._open.pop(number, None)
        if isinstance(session, Session):
            self._scheduler.cancel(session)


def _load(plan: Plan, outbox: Outbox) -> tuple[Engine, bytes]:
    """The engine, warm, and what READY says of it."""
    description = describe(plan)
    if plan.exact:
        engine = pass_gate(
            plan, description, Engine, lambda line: outbox.send(Kind.LOADING, 0, line.encode())
        )
    else:
        engine = Engine(plan)
    engine.decode([Row(0, 0, 0)])  # reads the weights and starts the threads
    engine.truncate(0, 0)
    if plan.exact:
        engine.forget()  # what the gate left
    release_zero_pages()
    ready = {
        "fingerprint": fingerprint(description, engine.plan.max_rows),
        "engine": description,
        "max_rows": engine.plan.max_rows,
    }
    return engine, json.dumps(ready).encode()
