"""What peers, callers and failures may do to a worker of spans at the worst moment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from kwaai_core import Span, TokenLogprob
from kwaai_core.gguf import read_gguf
from kwaai_core.span.chain import Settings
from kwaai_core.span.frames import Frame, FrameReader, Kind, Opening, encode
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.journal import Budget
from kwaai_core.span.secure import secure
from kwaai_core.span.watch import Pace
from kwaai_core.testing.models import TINY_QWEN2
from kwaai_core.testing.network.channels import _pair
from kwaai_lobe_llama import frames, span_process
from kwaai_lobe_llama.answers import Finish
from kwaai_lobe_llama.process import Request
from kwaai_lobe_llama.slicing import slice_span
from kwaai_lobe_llama.span_plan import SpanPlan, UnitFile
from kwaai_lobe_llama.span_process import SpanWorker
from kwaai_lobe_llama.worker.embedding import Embedding
from kwaai_lobe_llama.worker.heading import Heading
from kwaai_lobe_llama.worker.links import Link
from kwaai_lobe_llama.worker.loaded import EngineError
from kwaai_lobe_llama.worker.sampler import Sampler
from kwaai_lobe_llama.worker.span_engine import SpanEngine
from kwaai_lobe_llama.worker.span_gate import load_units
from kwaai_lobe_llama.worker.telling import Session
from kwaai_lobe_llama.worker.text import TextAssembler
from kwaai_lobe_llama.worker.units import Piece

from .chains import DIGEST, chain, plan_for
from .test_spans import GREEDY, LOCAL, Peer, Routes, clear, gates, swarm

__all__ = ["gates"]

BLOCKS, WIDTH = TINY_QWEN2.blocks, TINY_QWEN2.embedding
WHOLE = Span(0, BLOCKS)


@dataclass
class Told:
    """A sink that keeps what it is told."""

    texts: list[str] = field(default_factory=list)
    ends: list[Finish] = field(default_factory=list)

    def logprobs(self, session: Session, tokens: Sequence[TokenLogprob]) -> None:
        raise NotImplementedError("no probabilities were asked for")

    def text(self, session: Session, tokens: int, text: str) -> None:
        self.texts.append(text)

    def finish(self, session: Session, finish: Finish) -> None:
        self.ends.append(finish)

    def flush(self) -> None:
        pass


def test_who_leaves_while_the_last_chunk_is_computed_ends_that_answer_only(
    qwen2: Path, tmp_path: Path
) -> None:
    plan = plan_for(qwen2)
    sent: list[Frame] = []
    with chain(plan, [0, BLOCKS], tmp_path) as spans:
        heading = Heading(
            spans.head,
            Embedding(str(qwen2)).rows,
            Settings(WIDTH, 0, plan.chunk),
            Budget(1 << 20),
            lambda _, frame: sent.append(frame),
            Told(),
            lambda *_: None,
            lambda _: 1,
            lambda _: Pace(),
        )
        session = Session(1, [5, 6, 7], 10, Sampler(GREEDY), TextAssembler())
        heading.open(session)
        heading.route(1, [Place(1, WHOLE)])
        (opening,) = sent
        heading.receive(1, Frame(Kind.OPENED, opening.session, opening.epoch))
        step = sent[-1]
        states = bytes(4 * WIDTH)  # of its last row
        session.cancelled = True  # by the thread that reads; its errand comes after the step
        heading.receive(1, step._replace(kind=Kind.RESULT, payload=states))
        assert heading.step()
        heading.cancel(session)
        assert not heading._answers
        assert sent[-1].kind is Kind.CLOSE


async def test_an_answer_without_a_limit_may_fill_the_whole_context(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [WHOLE]) as nodes:
        routes = Routes([[Place(LOCAL, WHOLE)]])
        answer = await nodes.ask(routes, tokens=None)
        assert routes.asked == [[]]
        assert answer.text == await nodes.whole(tokens=None)


def test_a_host_that_leaves_is_reported_though_it_was_slow_or_its_router_was_asked(
    qwen2: Path, tmp_path: Path
) -> None:
    plan, asked, sent = plan_for(qwen2), list[list[Blame]](), list[Frame]()
    with chain(plan, [0, BLOCKS], tmp_path) as spans:
        heading = Heading(
            spans.head,
            Embedding(str(qwen2)).rows,
            Settings(WIDTH, 0, plan.chunk),
            Budget(1 << 20),
            lambda _, frame: sent.append(frame),
            Told(),
            lambda _, tokens, route, trouble: asked.append([one.blame for one in trouble]),
            lambda _: 1,
            lambda _: Pace(),
        )
        place, sampler = Place(1, WHOLE), Sampler(GREEDY)
        heading.open(Session(1, [5, 6, 7], 10, sampler, TextAssembler()))
        heading.route(1, [place])
        heading.receive(1, Frame(Kind.OPENED, sent[0].session, sent[0].epoch))
        (answer,) = heading._answers.values()
        heading._report(answer, {place: 0.5}, Blame.SLOW)
        heading.leave(1)  # nobody can be asked before the answer to that
        assert asked == [[], [Blame.SLOW]]
        heading.route(1, [place])
        heading.tick()
        assert asked == [[], [Blame.SLOW], [Blame.LEAVING]]
        heading.route(1, [place])
        heading.tick()
        heading._report(answer, {place: 0.5}, Blame.SLOW)
        assert len(asked) == 3  # it is known already
        heading.lose(1, "it has left")
        assert asked[3:] == [[Blame.LOST]]
        heading.cancel(answer.session)


@contextmanager
def linked() -> Iterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair()
    link = Link(1, "peer", ours, FrameReader(WIDTH, 128), hosting=True, now=0.0)
    try:
        with theirs:
            yield link, theirs
    finally:
        link.close()


def test_a_flood_of_small_frames_is_taken_in_portions() -> None:
    fence = encode(Frame(Kind.FENCE, 7, 1))
    with linked() as (link, peer):
        peer.setblocking(False)
        total = peer.send(fence * 100_000) // len(fence)
        assert total > 4000  # more than are taken at once
        first = len(link.receive())
        assert 0 < first < total
        taken = first
        while taken < total:
            taken += len(link.receive())


def test_frames_that_were_kept_go_out_in_order_with_the_next_that_is_sent() -> None:
    kinds = [Kind.FENCED, Kind.OPENED, Kind.HEARTBEAT]
    with linked() as (link, peer):
        peer.setblocking(False)
        for kind in kinds[:2]:
            link.keep(Frame(kind, 7, 1))
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        link.send(Frame(kinds[2], 7, 1))
        came = FrameReader(WIDTH, 128).feed(peer.recv(1 << 16))
        assert [frame.kind for frame in came] == kinds


def test_who_is_on_this_machine_is_known_by_the_address() -> None:
    with linked() as (link, _):
        assert not link.near, "a relay is behind it"
    with socket.create_server(("127.0.0.1", 0)) as server:
        for source, near in (("127.0.0.1", True), ("127.0.0.2", False)):
            ours = socket.create_connection(server.getsockname(), source_address=(source, 0))
            with closing(
                Link(1, "peer", ours, FrameReader(WIDTH, 128), hosting=True, now=0.0)
            ) as a:
                assert a.near is near


def test_what_a_slow_reader_is_owed_is_not_copied_for_each_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = Frame(Kind.FAULT, 7, 1, rows=1, payload=bytes(1 << 16))
    with linked() as (link, peer):
        for _ in range(100):
            link.send(text)
        offered: list[int] = []
        write = link._write

        def counted(data: bytes) -> int:
            offered.append(len(data))
            return write(data)

        monkeypatch.setattr(link, "_write", counted)
        reader, got = FrameReader(WIDTH, 128), 0
        while got < 100:
            link.flush()
            got += len(reader.feed(peer.recv(1 << 16)))
        assert max(offered) <= 1 << 16
        assert not link.blocked


class Failing(SpanEngine):
    """One whose next call fails after llama.cpp has run it."""

    fails = False

    def run(
        self,
        states: Sequence[memoryview],
        places: Sequence[tuple[int, int]],
        *,
        quiet: bool = False,
    ) -> memoryview:
        output = super().run(states, places, quiet=quiet)
        if self.fails:
            self.fails = False
            raise EngineError("the call was split")
        return output


def test_a_call_that_fails_leaves_nothing_to_the_sessions_between(
    qwen2: Path, tmp_path: Path
) -> None:
    plan = plan_for(qwen2)
    with chain(plan, [0, BLOCKS], tmp_path) as spans:
        unit = spans.units[0]
        engine = unit.engine
        engine.__class__ = Failing
        rows = memoryview(Embedding(str(qwen2)).rows(range(4, 10)))
        row = 4 * WIDTH

        def lone(stream: int) -> Piece:
            return Piece(stream, 5, 1, rows[5 * row :])

        for stream in range(3):
            unit.chunk(Piece(stream, 0, 5, rows[: 5 * row]))
        (expected,) = [bytes(o) for o in unit.lone_rows([lone(1)])]
        assert unit.truncate(1, 5)
        engine.fails = True
        with pytest.raises(EngineError):
            unit.lone_rows([lone(0), lone(2)])
        (output,) = unit.lone_rows([lone(1)])
        assert bytes(output) == expected


async def test_a_node_waits_for_the_sessions_that_have_just_been_opened(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [WHOLE]) as nodes, trio.open_nursery() as nursery:
        await trio.sleep(0.3)  # it has told of its room
        ours, theirs = socket.socketpair()
        nursery.start_soon(nodes.hosts[0].serve, "peer", clear(theirs, server=True))
        peer = Peer(ours)
        async with peer._stream:
            await peer.send(Frame(Kind.OPEN, 7, 1, payload=Opening(WHOLE, 100).encode()))
            assert (await peer.hear()).kind is Kind.OPENED
            with trio.move_on_after(0.5) as waiting:
                await nodes.hosts[0].drain()
            assert waiting.cancelled_caught
            await peer.send(Frame(Kind.CLOSE, 7, 1))
            await nodes.hosts[0].drain()
        nursery.cancel_scope.cancel()


async def test_a_link_that_is_let_go_of_during_its_handshake_is_not_served(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [WHOLE]) as nodes:
        ours, theirs = _pair(first_is_client=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes.hosts[0].serve, "peer", theirs)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        secured = await trio.to_thread.run_sync(lambda: secure(ours, seconds=5))
        with secured:
            said = b""
            with suppress(OSError):
                said = await trio.to_thread.run_sync(secured.recv, 1)
        assert said == b""


@pytest.mark.parametrize(
    ("cpus", "cores", "threads", "given", "bound"),
    [
        (2, 2, 2, {}, True),
        (2, 2, 1, {}, False),
        (8, 4, 4, {}, False),  # two threads of a core: computations are not in turn
        (4, 4, 4, {"GOMP_CPU_AFFINITY": "0"}, False),
    ],
)
def test_threads_are_bound_where_computations_are_in_turn_and_use_all_cores(
    qwen2: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    cores: int,
    threads: int,
    given: dict[str, str],
    bound: bool,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: frozenset(range(cpus)))
    monkeypatch.setattr(span_process, "default_threads", lambda: cores)
    monkeypatch.delenv("GOMP_CPU_AFFINITY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    plan = replace(plan_for(qwen2), threads=threads)
    worker = SpanWorker("m", SpanPlan(plan, WIDTH, 1, 1 << 20), spin=1)
    assert ("OMP_PROC_BIND" in worker._environment()) == bound


async def test_a_link_that_is_lost_as_soon_as_it_is_made_was_one(qwen2: Path) -> None:
    worker = SpanWorker("m", SpanPlan(plan_for(qwen2), WIDTH, 1, 1 << 20), spin=1)
    worker._hand, hand = socket.socketpair()
    ours, theirs = socket.socketpair()

    async def both_at_once() -> None:
        await wait_all_tasks_blocked()
        worker._take(frames.Kind.LINKED, 1, b"")
        worker._take(frames.Kind.LOST, 1, b"it closed the connection")

    with worker._hand, hand, ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both_at_once)
            async with worker.link("peer", clear(theirs, server=True), hosting=True) as number:
                assert worker.link_lost(number)
                assert await worker.link_gone(number) == "it closed the connection"


async def test_a_question_of_an_answer_whose_caller_has_left_is_asked_of_nobody(
    qwen2: Path,
) -> None:
    async def routing(
        tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> Sequence[Place]:
        asked.append(tokens)
        return []

    asked: list[int] = []
    worker = SpanWorker("m", SpanPlan(plan_for(qwen2), WIDTH, 1, 1 << 20), spin=1)
    request = worker._requests[1] = Request(routing=routing)
    async with trio.open_nursery() as nursery:
        worker._nursery = nursery
        worker._take(frames.Kind.ASK, 1, b'{"tokens": 9, "route": [], "trouble": []}')
        del worker._requests[1]
        request.scope.cancel()
    assert asked == []


def test_units_that_were_loaded_before_one_that_cannot_be_are_freed(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(qwen2, exact=False)
    first = slice_span(read_gguf(qwen2), DIGEST, Span(0, 1), tmp_path)
    missing = UnitFile(Span(1, BLOCKS), str(tmp_path / "missing.gguf"))
    closed: list[SpanEngine] = []
    close = SpanEngine.close

    def closing(engine: SpanEngine) -> None:
        closed.append(engine)
        close(engine)

    monkeypatch.setattr(SpanEngine, "close", closing)
    with pytest.raises(EngineError, match=r"missing\.gguf"):
        load_units(plan, [UnitFile(Span(0, 1), str(first)), missing], lambda _: None)
    assert len(closed) == 1


def test_what_is_loaded_and_checked_is_told_in_blocks_as_people_count_them(
    qwen2: Path, tmp_path: Path
) -> None:
    plan = plan_for(qwen2, exact=True)
    file = read_gguf(qwen2)
    spans = [Span(0, 1), Span(1, BLOCKS)]
    files = [UnitFile(s, str(slice_span(file, DIGEST, s, tmp_path))) for s in spans]
    told: list[str] = []
    units, _ = load_units(plan, files, told.append)
    for unit in units:
        unit.engine.close()
    assert "loading block 0" in told
    assert f"loading blocks 1 to {BLOCKS - 1}" in told
    checked = [words for words in told if words.startswith("exactness: ")]
    assert any(words.startswith("exactness: block 0 with calls of up to") for words in checked)
    assert any(words.startswith(f"exactness: blocks 1 to {BLOCKS - 1} with") for words in checked)
