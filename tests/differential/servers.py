"""The two servers, ``kwaai run`` and ``llama-server``: real processes with the same settings."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks.api import Node, free_port, running, wait_ready
from benchmarks.llama_tools import llama_tool
from benchmarks.models import ModelFile
from tests.differential.answers import Answer, read_answer
from tests.differential.cases import Case

CONTEXT, STREAMS = 2048, 8
"""Tokens of a stream, and a node's default number of streams."""

THREADS = 1
"""More change no number, and wait for one another actively where others want the cores too."""

ANSWER_S = 300.0

# What a node does too, or does not have at all.
_SETTINGS = (
    "--parallel", str(STREAMS), "--ctx-size", str(CONTEXT * STREAMS), "--no-kv-unified",
    "--flash-attn", "on", "--swa-full", "--gpu-layers", "0",
    "--ctx-checkpoints", "0",  # they cut prompts in other places
    "--cache-ram", "0",
    "--no-prefill-assistant",  # an answer that comes last is followed by another, as OpenAI has it
    "--no-context-shift", "--no-webui", "--offline",
)  # fmt: skip

_FAST = ("--batch-size", "512", "--ubatch-size", "512", "--repack")
# Under these a node's numbers do not depend on what else is computed, or on how much of a prompt is
# used again, and llama-server's hardly do; so what differs has another reason.
_EXACT = (
    "--batch-size", "128", "--ubatch-size", "128", "--no-repack",
    "--cache-type-k", "bf16", "--cache-type-v", "f16",
)  # fmt: skip


class Server:
    """Something that answers at an address for one model."""

    def __init__(self, address: tuple[str, int], model: str, *, grammar: bool = False) -> None:
        self.model = model
        self._grammar = grammar  # see Case.content
        url = f"http://{address[0]}:{address[1]}"
        self._client = httpx.Client(base_url=url, timeout=ANSWER_S, trust_env=False)

    def ask(self, case: Case) -> Answer:
        """What it answers, once that is whole."""
        headers = {"content-type": "application/json"}
        content = case.content(self.model, grammar=self._grammar)
        got = self._client.request(case.method, case.path, content=content, headers=headers)
        return read_answer(got.status_code, got.headers.get("content-type", ""), got.content)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def both(model: ModelFile, *, exact: bool) -> Iterator[tuple[Server, Server]]:
    """A node and a llama-server with one model file; they end with the context.

    ``exact``: with the settings of an exact worker, both of them; else with those of a fast one.
    """
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(
            Node(model.registered, context=CONTEXT, threads=THREADS, exact=exact)
        )
        numbers = _EXACT if exact else _FAST
        other = stack.enter_context(_llama_server(model.path, node.model, numbers))
        ours, theirs = Server(node.address, node.model), Server(other, node.model, grammar=True)
        stack.callback(ours.close)
        stack.callback(theirs.close)
        yield ours, theirs


@contextlib.contextmanager
def _llama_server(path: Path, name: str, numbers: Sequence[str]) -> Iterator[tuple[str, int]]:
    address = ("127.0.0.1", free_port())
    command = [
        str(llama_tool("llama-server")), "--model", str(path), "--alias", name,
        "--host", address[0], "--port", str(address[1]),
        "--threads", str(THREADS), "--threads-batch", str(THREADS), *_SETTINGS, *numbers,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key[:6] != "LLAMA_"}
    with (
        tempfile.NamedTemporaryFile(prefix="llama-server-", suffix=".log") as log,
        running(command, environment, log.fileno()) as process,
    ):
        wait_ready(address, process, Path(log.name), "/health")
        yield address
