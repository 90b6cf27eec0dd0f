"""What the hosts of a route can read: everything, and what `local_blocks` changes about that.

Real workers run the spans. Whoever holds a host is stood for by a tap on its link, and has nothing
but the bytes that came over it and the model, which is public.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from kwaai_core import Span
from kwaai_core.gguf import read_gguf
from kwaai_core.span.frames import Flags, Frame, FrameReader, Kind
from kwaai_core.span.hop import Place
from kwaai_core.span.roles import LOCAL, SpanHost
from kwaai_core.testing.models import Shape, write_random_model
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.slicing import slice_head, slice_span
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.engine import Engine
from kwaai_lobe_llama.worker.span_engine import HeadEngine, SpanEngine

from .test_spans import Routes, Swarm, clear, swarm

PROMPT = (
    "My blood test of 14 March came back with a ferritin of 9, and I have been dizzy since Easter; "
    "my employer, the Lindqvist bakery, must not hear of it."
)
SHORT = "My ferritin is 9."
ANSWER = 24

Rows = NDArray[np.float32]
"""(rows, width)"""


@dataclass
class Tap:
    """All that passed over the link of a host."""

    width: int
    to_host: bytearray = field(default_factory=bytearray)
    from_host: bytearray = field(default_factory=bytearray)

    async def link(self, nodes: Swarm, host: SpanHost) -> int:
        """Link the head of a swarm to a host, with this tap between them."""
        ours, near = socket.socketpair()
        far, theirs = socket.socketpair()
        nodes._nursery.start_soon(host.serve, "owner", clear(theirs, server=True))
        nodes._nursery.start_soon(self._pass_on, near, far)
        link = nodes.head.link("host", clear(ours, server=False))
        return await nodes._stack.enter_async_context(link)

    async def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        owner, host = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in (near, far))
        async with owner, host, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, owner, host, self.to_host)
            await _copy(host, owner, self.from_host)
            nursery.cancel_scope.cancel()

    def prompt(self) -> Rows:
        """The rows that came in steps of several: a prompt is read in chunks."""
        return self._rows(_states(step) for step in self._steps() if step.rows > 1)

    def answer(self) -> Rows:
        """The rows that came one by one: the tokens of the answer but for its last."""
        return self._rows(_states(step) for step in self._steps() if step.rows == 1)

    def outputs(self) -> Rows:
        """The last row of each output that was wanted."""
        frames = FrameReader(self.width, 128).feed(bytes(self.from_host))
        results = [f for f in frames if f.kind is Kind.RESULT and not f.flags & Flags.SILENT]
        return self._rows(result.payload[-4 * self.width :] for result in results)

    def _steps(self) -> list[Frame]:
        frames = FrameReader(self.width, 128).feed(bytes(self.to_host))
        return [frame for frame in frames if frame.kind is Kind.STEP]

    def _rows(self, states: Iterable[bytes]) -> Rows:
        return np.frombuffer(b"".join(states), np.float32).reshape(-1, self.width)


def _states(step: Frame) -> bytes:
    return step.payload[8 * (step.rows + 1) :]


async def _copy(source: trio.SocketStream, target: trio.SocketStream, seen: bytearray) -> None:
    with suppress(trio.BrokenResourceError):  # the worker of either end was stopped
        async for data in source:
            seen += data
            await target.send_all(data)


class Reader:
    """Somebody with the model's file and a folder, who would like to know what others said."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.file = read_gguf(path)
        self._folder = folder
        self._table = Embedding(str(path))
        self.width, self.tokens = self._table.width, self._table.tokens
        self._plan = Plan(str(path), "d", context=256, streams=1, threads=2, chunk=128)

    def text(self, tokens: Sequence[int]) -> str:
        with closing(Engine(self._plan)) as engine:
            return b"".join(map(engine.piece, tokens)).decode("utf-8", "replace")

    def tokenised(self, text: str) -> list[int]:
        with closing(Engine(self._plan)) as engine:
            return engine.tokenise(text)

    def embedded(self, tokens: Sequence[int]) -> Rows:
        return np.frombuffer(self._table.rows(tokens), np.float32).reshape(-1, self.width)

    def nearest(self, rows: Rows) -> list[int]:
        """Of each row the token whose row of the embedding is the nearest."""
        table = self.embedded(range(self.tokens))
        return list(map(int, (_directions(rows) @ _directions(table).T).argmax(axis=1)))

    def unembedded(self, rows: Rows) -> list[int]:
        """Of each row the token that the final norm and the output matrix would choose."""
        path = str(slice_head(self.file, "d", self._folder))
        chosen = []
        with closing(HeadEngine(replace(self._plan, path=path))) as head:
            for row in rows:
                head.run_head([row.tobytes()])
                chosen.append(int(np.frombuffer(head.logits(0), np.float32).argmax()))
        return chosen

    def guessed(self, rows: Rows, blocks: int) -> list[int]:
        """Of each row the token that becomes this row in the first blocks, after those found.

        What the blocks make of each token of the vocabulary behind one other says which to try
        first; it is tried behind all that came before, so the right one is recognised.
        """
        path = str(slice_span(self.file, "d", Span(0, blocks), self._folder))
        with closing(Guesses(replace(self._plan, path=path, streams=128), self)) as guesses:
            return guesses.tokens_of(rows)


class Guesses:
    """The first blocks of a model, with many sessions that only differ in the last token."""

    def __init__(self, plan: Plan, reader: Reader) -> None:
        self._engine, self._reader, self._streams = SpanEngine(plan), reader, plan.streams

    def close(self) -> None:
        self._engine.close()

    def tokens_of(self, rows: Rows) -> list[int]:
        every = range(self._reader.tokens)
        self._append(0, 0)
        table = np.concatenate([self._tried(some, 1) for some in self._groups(every)])
        self._cut(0)
        squares, found = (table**2).sum(axis=1), list[int]()
        for position, row in enumerate(rows):
            order = np.argsort(squares - 2 * table @ row).tolist()
            found.append(self._token_of(row, order, position))
            self._append(found[-1], position)
        return found

    def _token_of(self, row: Rows, order: Sequence[int], position: int) -> int:
        best = (np.inf, -1)
        for some in self._groups(order):
            distances = np.linalg.norm(self._tried(some, position) - row, axis=1)
            best = min(best, (distances.min(), some[distances.argmin()]))
            if best[0] < 0.01 * np.linalg.norm(row):  # others are ten times as far
                break
        return best[1]

    def _groups(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        return [tokens[at : at + self._streams] for at in range(0, len(tokens), self._streams)]

    def _tried(self, tokens: Sequence[int], position: int) -> Rows:
        """The rows of some tokens, each in a session of its own at this position."""
        states = memoryview(self._reader.embedded(tokens).tobytes())
        output = self._engine.run([states], [(position, stream) for stream in range(len(tokens))])
        rows = np.frombuffer(bytes(output), np.float32).reshape(len(tokens), -1)
        self._cut(position)
        return rows

    def _append(self, token: int, position: int) -> None:
        states = memoryview(self._reader.embedded([token] * self._streams).tobytes())
        self._engine.run([states], [(position, stream) for stream in range(self._streams)])

    def _cut(self, length: int) -> None:
        for stream in range(self._streams):
            self._engine.truncate(stream, length)


def _directions(rows: Rows) -> Rows:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def share(found: Sequence[int], tokens: Sequence[int]) -> float:
    return float(np.mean([a == b for a, b in zip(found, tokens, strict=True)]))


async def overheard(
    path: Path, folder: Path, local_blocks: int, *, prompt: str = PROMPT
) -> tuple[Tap, str]:
    """What passed over the link of the host of all blocks but the local ones; the answer."""
    blocks = read_gguf(path).blocks
    lo, hi = local_blocks, blocks - local_blocks
    ends = [Span(0, lo), Span(hi, blocks)] if local_blocks else []
    async with swarm(path, folder, ends, [Span(lo, hi)], exact=False) as nodes:
        tap = Tap(read_gguf(path).embedding_length)
        link = await tap.link(nodes, nodes.hosts[-1])
        way = [Place(link, Span(lo, hi))]
        if ends:
            way = [Place(LOCAL, ends[0]), *way, Place(LOCAL, ends[1])]
        answer = await nodes.ask(Routes([way]), prompt=prompt, tokens=ANSWER)
    return tap, answer.text


async def test_the_hosts_at_both_ends_read_the_prompt_and_the_answer(
    smollm2: Path, tmp_path: Path
) -> None:
    reader = Reader(smollm2, tmp_path / "slices")
    tap, answer = await overheard(smollm2, tmp_path, local_blocks=0)
    assert reader.text(reader.nearest(tap.prompt())) == PROMPT
    assert reader.text(reader.unembedded(tap.outputs())) == answer
    fed_back = reader.text(reader.nearest(tap.answer()))
    assert fed_back and answer.startswith(fed_back)


@pytest.mark.parametrize("local_blocks", [1, 2])
async def test_local_blocks_hide_a_prompt_from_those_who_only_look(
    smollm2: Path, tmp_path: Path, local_blocks: int
) -> None:
    reader = Reader(smollm2, tmp_path / "slices")
    tap, answer = await overheard(smollm2, tmp_path, local_blocks)
    assert share(reader.nearest(tap.prompt()), reader.tokenised(PROMPT)) < 0.1
    read = reader.unembedded(tap.outputs())[:-1]  # without the end, or a half of a word
    assert 0.3 < share(read, reader.tokenised(answer)[: len(read)]) < 0.7


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "public" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full", default=False)
        public = [("tiny", SHORT)] + [("smollm2", PROMPT)] * full
        metafunc.parametrize("public", public, ids=[name for name, _ in public])


@pytest.mark.parametrize("local_blocks", [1, 2])
async def test_local_blocks_hide_nothing_from_those_who_try(
    public: tuple[str, str], smollm2: Path, tmp_path: Path, local_blocks: int
) -> None:
    name, prompt = public
    path = smollm2
    if name == "tiny":
        path = write_random_model(tmp_path / "qwen2.gguf", Shape("qwen2", blocks=6))
    reader = Reader(path, tmp_path / "slices")
    tap, answer = await overheard(path, tmp_path, local_blocks, prompt=prompt)
    read = reader.guessed(np.concatenate([tap.prompt(), tap.answer()]), local_blocks)
    at = len(tap.prompt())
    assert reader.text(read[:at]) == prompt
    assert len(read) == at + ANSWER - 1
    assert answer.startswith(reader.text(read[at:]))
