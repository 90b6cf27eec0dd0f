"""A worker of one whole model."""

from __future__ import annotations

import json
import queue
import socket

from kwaai_lobe_llama.frames import FrameError, Kind
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.worker.engine import Engine, Row
from kwaai_lobe_llama.worker.exact import NotExact, pass_gate
from kwaai_lobe_llama.worker.fingerprint import describe, fingerprint
from kwaai_lobe_llama.worker.loaded import EngineError
from kwaai_lobe_llama.worker.outbox import Outbox
from kwaai_lobe_llama.worker.residency import release_zero_pages
from kwaai_lobe_llama.worker.scheduler import Scheduler
from kwaai_lobe_llama.worker.server import Server
from kwaai_lobe_llama.worker.telling import Session


class WholeServer(Server):
    """One loaded model, served over a connection until it ends."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._inbox: queue.SimpleQueue[Session] = queue.SimpleQueue()

    def run(self, plan: Plan) -> None:
        """Load, say READY, and serve; returns only where the model cannot be served (FATAL)."""
        self._start(self._take_frames)
        try:
            engine, ready = _load(plan, self._outbox)
        except (EngineError, NotExact) as error:
            self._outbox.send(Kind.FATAL, 0, str(error).encode("utf-8", "replace"))
            return
        self._scheduler = Scheduler(engine, self)
        self._take_answers(engine)
        self._outbox.send(Kind.READY, 0, ready)
        while True:
            while self._scheduler.idle or not self._inbox.empty():
                self._scheduler.submit(self._inbox.get())
            self._scheduler.step()

    def _submit(self, session: Session) -> None:
        self._inbox.put(session)

    def _stop(self, session: Session) -> None:
        self._scheduler.cancel(session)

    def _control(self, kind: Kind, number: int, payload: bytes) -> None:
        raise FrameError(f"a worker of a whole model is sent no {kind.name} frame")


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
        "fingerprint": fingerprint(description),
        "engine": description,
        "max_rows": engine.plan.max_rows,
    }
    return engine, json.dumps(ready).encode()
