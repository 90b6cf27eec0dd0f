"""What every worker is to its node: frames come in, answers go out, in threads of their own.

One thread reads frames, one takes jobs in (templates and tokenising happen beside the computation),
and the main one runs llama.cpp; ``llama_decode`` releases the interpreter's lock. Reading waits for
neither, so that who leaves is heard at once. The end of the socket is the end of the node: the
reading thread then ends the process at once, whatever is being loaded or computed.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from kwaai_core import CallPiece, TokenLogprob
from kwaai_lobe_llama.answers import (
    Failure,
    FailureCode,
    Finish,
    encode_calls,
    encode_failure,
    encode_finish,
    encode_logprobs,
    encode_text,
)
from kwaai_lobe_llama.frames import MAX_PAYLOAD, FrameReader, Kind
from kwaai_lobe_llama.jobs import decode_job, decode_question
from kwaai_lobe_llama.worker.cores import start_thread
from kwaai_lobe_llama.worker.forms import Refusal
from kwaai_lobe_llama.worker.intake import Intake
from kwaai_lobe_llama.worker.loaded import Loaded
from kwaai_lobe_llama.worker.outbox import Outbox
from kwaai_lobe_llama.worker.telling import Session
from kwaai_lobe_llama.worker.tokens import Tokeniser

_Take = Callable[[int, bytes], None]


class Server(ABC):
    """A worker's end of the connection to its node; a :class:`Sink` itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox = Outbox(connection)
        self._jobs: queue.SimpleQueue[tuple[int, _Take]] = queue.SimpleQueue()
        self._open: dict[int, bytes | Session] = {}  # until it ends: a job, then its session
        self._opening = threading.Lock()

    @abstractmethod
    def _submit(self, session: Session) -> None:
        """Compute a session; called by the thread that takes jobs."""

    @abstractmethod
    def _stop(self, session: Session) -> None:
        """End a session at once; called by the thread that reads frames."""

    @abstractmethod
    def _control(self, kind: Kind, number: int, payload: bytes) -> None:
        """Take a frame that is neither a job nor its end; called by the thread that reads."""

    def _take_answers(self, engine: Loaded) -> None:
        """From now on take the jobs that have come."""
        self._intake = Intake(engine)
        self._tokeniser = Tokeniser(engine, self._intake)
        self._start(self._take_jobs)

    def text(self, session: Session, tokens: int, text: str) -> None:
        self._outbox.collect(Kind.TEXT, session.number, encode_text(tokens, text))

    def logprobs(self, session: Session, tokens: Sequence[TokenLogprob]) -> None:
        self._outbox.collect(Kind.LOGPROBS, session.number, encode_logprobs(tokens))

    def finish(self, session: Session, finish: Finish) -> None:
        self._open.pop(session.number, None)
        self._outbox.collect(Kind.FINISH, session.number, encode_finish(finish))

    def fail(self, session: Session, failure: Failure) -> None:
        self._open.pop(session.number, None)
        self._outbox.collect(Kind.FAILED, session.number, encode_failure(failure))

    def calls(self, session: Session, pieces: Sequence[CallPiece]) -> None:
        self._outbox.collect(Kind.CALLS, session.number, encode_calls(pieces))

    def flush(self) -> None:
        self._outbox.flush()

    def _start(self, work: Callable[[], None]) -> None:
        start_thread(lambda: self._finish_with(work))

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
        """Until the node is gone. It sends no job before READY."""
        reader = FrameReader()
        while data := self._connection.recv(1 << 16):
            for kind, number, payload in reader.feed(data):
                if kind in (Kind.GENERATE, Kind.TOKENISE):
                    self._open[number] = payload
                    take = self._accept if kind is Kind.GENERATE else self._tokenise
                    self._jobs.put((number, take))
                elif kind is Kind.CANCEL:
                    self._cancel(number)
                else:
                    self._control(kind, number, payload)

    def _take_jobs(self) -> None:
        while True:
            number, take = self._jobs.get()
            job = self._open.get(number)
            if isinstance(job, bytes):  # else its caller has left
                take(number, job)

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
        self._submit(session)

    def _tokenise(self, number: int, question: bytes) -> None:
        try:
            answer = json.dumps(self._tokeniser.answer(decode_question(question))).encode()
            if len(answer) > MAX_PAYLOAD:  # which the node would end this process for
                what = f"the answer takes {len(answer)} bytes, over the limit of {MAX_PAYLOAD}"
                raise Refusal(Failure(FailureCode.BAD_REQUEST, f"{what}: send it in parts"))
        except Refusal as refusal:
            self._open.pop(number, None)
            self._outbox.send(Kind.FAILED, number, encode_failure(refusal.failure))
            return
        self._open.pop(number, None)
        self._outbox.send(Kind.TOKENISED, number, answer)

    def _cancel(self, number: int) -> None:
        with self._opening:  # before it is a session, or after
            session = self._open.pop(number, None)
        if isinstance(session, Session):
            self._stop(session)
