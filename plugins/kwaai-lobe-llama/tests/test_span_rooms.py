"""The room that units take: what is held in place of what, for whom, and in how much memory."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from kwaai_core import (
    GenerateRequest,
    ModelCard,
    ModelFileError,
    ModelLoading,
    PeerLost,
    Span,
    UpstreamLost,
)
from kwaai_core.gguf import read_gguf
from kwaai_core.span.frames import FaultCode, Frame, FrameReader, Kind, Opening
from kwaai_core.span.hop import Place, Trouble
from kwaai_core.span.roles import LOCAL, SpanHost
from kwaai_core.testing.models import TINY_QWEN2, write_random_model
from kwaai_lobe_llama.executor import LlamaExecutor
from kwaai_lobe_llama.plan import Plan
from kwaai_lobe_llama.planning import Planned, default_threads, make_span_plan
from kwaai_lobe_llama.settings import LlamaSettings
from kwaai_lobe_llama.slicing import slice_span
from kwaai_lobe_llama.span_plan import HoldPlan, LinkPlan, SpanPlan, UnitFile
from kwaai_lobe_llama.span_process import SpanWorker
from kwaai_lobe_llama.worker.hosting import Hosting
from kwaai_lobe_llama.worker.loaded import EngineError
from kwaai_lobe_llama.worker.span_server import SpanServer
from kwaai_lobe_llama.worker.units import Piece, Unit

from .chains import DIGEST, answer, chain, plan_for, tokens_of
from .test_executor import executor
from .test_spans import FIRST, GREEDY, OPEN, REST, SETTINGS, WIDTH, Peer, Routes, clear, gates, step

__all__ = ["gates"]

BLOCKS = TINY_QWEN2.blocks


def unit(model: Path, span: Span, folder: Path) -> UnitFile:
    return UnitFile(span, str(slice_span(read_gguf(model), DIGEST, span, folder)))


def files_of(worker: SpanWorker) -> set[str]:
    """The files that a process has in its memory."""
    maps = Path(f"/proc/{worker.pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in maps if line.endswith(".gguf")}


@asynccontextmanager
async def opened_worker(plan: SpanPlan) -> AsyncIterator[SpanWorker]:
    worker = SpanWorker("test", plan, spin=1000)
    with trio.fail_after(180):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await worker.ready.wait()
            yield worker
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened_node(
    model: Path, state: Path, settings: LlamaSettings = SETTINGS
) -> AsyncIterator[tuple[LlamaExecutor, ModelCard]]:
    with trio.fail_after(180):
        async with executor(state, {"m": model}, settings) as node:
            (card,) = await node.models()
            yield node, card


@asynccontextmanager
async def served(host: SpanHost, name: str) -> AsyncIterator[Peer]:
    """A peer of a host, whose link ends with the context."""
    ours, theirs = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve, name, clear(theirs, server=True))
        peer = Peer(ours)
        async with peer._stream:
            yield peer
            nursery.cancel_scope.cancel()


def affinities(worker: SpanWorker) -> list[frozenset[int]]:
    """The cores that each thread of a process may use."""
    tasks = os.listdir(f"/proc/{worker.pid}/task")
    return [frozenset(os.sched_getaffinity(int(task))) for task in tasks]


def seconds_taken(worker: SpanWorker) -> float:
    """The processor time of a process."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def with_a_session(plan: Plan, folder: Path) -> AsyncIterator[tuple[SpanWorker, Peer]]:
    """A worker of some blocks that makes no answers, and the peer that has a session there."""
    ours, theirs = socket.socketpair()
    async with opened_worker(SpanPlan(plan, WIDTH, plan.streams, 1 << 20)) as worker:
        await worker.hold(HoldPlan(plan, (unit(Path(plan.path), REST, folder),)))
        peer = Peer(ours)
        link = worker.link("peer", clear(theirs, server=True), hosting=True)
        async with peer._stream, link:
            await peer.send(OPEN)
            assert (await peer.hear()).kind is Kind.OPENED
            yield worker, peer


@pytest.mark.skipif(default_threads() == 1, reason="one core is there, and nothing to be bound to")
async def test_threads_that_compute_have_a_core_each_and_no_other_thread_is_bound(
    qwen2: Path, tmp_path: Path
) -> None:
    plan = plan_for(qwen2, exact=False, threads=default_threads())
    async with with_a_session(plan, tmp_path) as (worker, peer):
        await peer.send(step())
        assert (await peer.hear()).kind is Kind.RESULT
        cores = frozenset(os.sched_getaffinity(0))
        bound = [has for has in affinities(worker) if has != cores]
        assert len(bound) == len(set(bound)) == plan.threads
        assert affinities(worker).count(cores) >= 3  # frames, heartbeats, turns


async def test_one_that_leaves_and_makes_no_answers_is_idle(qwen2: Path, tmp_path: Path) -> None:
    async with with_a_session(plan_for(qwen2, exact=False), tmp_path) as (worker, peer):
        worker.drain()
        assert (await peer.hear()).kind is Kind.DRAIN
        before = seconds_taken(worker)
        await trio.sleep(1)
        assert seconds_taken(worker) - before < 0.5


async def test_units_take_the_place_of_those_before_and_end_their_sessions(
    qwen2: Path, tmp_path: Path
) -> None:
    first, rest = (unit(qwen2, span, tmp_path) for span in (FIRST, REST))
    plan = plan_for(qwen2, exact=False)
    ours, theirs = socket.socketpair()
    async with opened_worker(SpanPlan(plan, WIDTH, plan.streams, 1 << 20)) as worker:
        await worker.hold(HoldPlan(plan, (rest,)))
        peer = Peer(ours)
        link = worker.link("peer", clear(theirs, server=True), hosting=True)
        async with peer._stream, link:
            await peer.send(OPEN)
            assert (await peer.hear()).kind is Kind.OPENED
            await peer.send(step())
            assert (await peer.hear()).kind is Kind.RESULT
            await worker.hold(HoldPlan(plan, (first,)))
            fault = await peer.hear()
            assert (fault.kind, fault.session, fault.rows) == (
                Kind.FAULT,
                OPEN.session,
                FaultCode.NEED_REPLAY,
            )
            assert files_of(worker) == {first.path}
            assert (worker.load.free, worker.load.sessions) == (plan.streams, 0)
            await peer.send(step(position=1))
            assert (await peer.hear()).rows == FaultCode.NEED_REPLAY
            await peer.send(OPEN)
            assert (await peer.hear()).rows == FaultCode.REQUEST  # of blocks that are gone
            await peer.send(OPEN._replace(payload=Opening(FIRST, 100).encode()))
            assert (await peer.hear()).kind is Kind.OPENED
            await peer.send(step())
            result = await peer.hear()
            assert result.kind is Kind.RESULT
            assert bytes(result.payload) != bytes(step().payload)[-len(result.payload) :]


async def test_a_socket_that_is_not_taken_is_not_taken_for_that_of_another_peer(
    qwen2: Path, tmp_path: Path
) -> None:
    plan = plan_for(qwen2, exact=False)
    pairs = [socket.socketpair() for _ in range(2)]
    async with opened_worker(SpanPlan(plan, WIDTH, plan.streams, 1 << 20)) as worker:
        await worker.hold(HoldPlan(plan, (unit(qwen2, REST, tmp_path),)))
        wrong = replace(clear(pairs[0][1], server=True), certificate=b"-", trusted="é".encode())
        with pytest.raises(PeerLost, match="no PEM"):
            async with worker.link("one", wrong, hosting=True):
                pass
        peer = Peer(pairs[1][0])
        with pairs[0][0]:
            async with (
                peer._stream,
                worker.link("other", clear(pairs[1][1], server=True), hosting=True),
            ):
                await peer.send(OPEN)
                assert (await peer.hear()).kind is Kind.OPENED


async def test_units_are_freed_although_their_process_stays_for_its_head(
    qwen2: Path, gates: Path
) -> None:
    async with opened_node(qwen2, gates) as (node, card), node.head(card, exact=False):
        (worker,) = node._spans.workers()
        held = []
        for span in (REST, FIRST):
            async with node.hold(card, [span], exact=False) as host, served(host, "p") as peer:
                held.append(files_of(worker))
                await peer.send(OPEN._replace(payload=Opening(span, 100).encode()))
                assert (await peer.hear()).kind is Kind.OPENED
        assert node._spans.workers() == [worker]
        left = files_of(worker)
        assert [len(files - left) for files in held] == [1, 1]
        assert held[0] & held[1] == left


async def test_units_that_a_new_process_was_given_too_late_are_freed(
    qwen2: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened_node(qwen2, gates) as (node, card), node.head(card, exact=False):
        loading, let_go, load = trio.Event(), trio.Event(), SpanWorker.head

        async def late(worker: SpanWorker, path: Path) -> int:
            loading.set()
            await let_go.wait()
            return await load(worker, path)

        monkeypatch.setattr(SpanWorker, "head", late)
        async with node.hold(card, [FIRST], exact=False):
            (worker,) = node._spans.workers()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await loading.wait()  # with its units, and without its head
        let_go.set()
        while not node._spans.workers():  # noqa: ASYNC110
            await trio.sleep(0.05)
        (worker,) = node._spans.workers()
        assert not [path for path in files_of(worker) if path.endswith("-0-1.gguf")]


async def test_units_that_a_new_process_cannot_load_are_tried_again(
    qwen2: Path, gates: Path
) -> None:
    async with (
        opened_node(qwen2, gates) as (node, card),
        node.head(card, exact=False),
        node.hold(card, [FIRST], exact=False) as host,
    ):
        room = host.load()
        (worker,) = node._spans.workers()
        (slice_,) = (Path(path) for path in files_of(worker) if path.endswith("-0-1.gguf"))
        away = slice_.rename(slice_.with_suffix(".away"))
        os.kill(worker.pid, signal.SIGKILL)
        (shop,) = node._spans._shops.values()
        while not isinstance(shop.error, ModelFileError):  # noqa: ASYNC110
            await trio.sleep(0.05)
        away.rename(slice_)
        while not node._spans.workers():  # noqa: ASYNC110
            await trio.sleep(0.05)
        assert host.load().free == room.free
        async with served(host, "peer") as peer:
            await peer.send(OPEN._replace(payload=Opening(FIRST, 100).encode()))
            assert (await peer.hear()).kind is Kind.OPENED


async def test_what_is_held_already_is_not_held_again(qwen2: Path, gates: Path) -> None:
    async with (
        opened_node(qwen2, gates) as (node, card),
        node.hold(card, [FIRST], exact=False) as host,
        served(host, "peer") as peer,
    ):
        with pytest.raises(ModelLoading, match="already"):
            async with node.hold(card, [REST], exact=False):
                pass
        await peer.send(OPEN._replace(payload=Opening(FIRST, 100).encode()))
        assert (await peer.hear()).kind is Kind.OPENED


def vm_data(worker: SpanWorker) -> int:
    """Bytes of memory of its own that a process has asked for, used yet or not."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    (size,) = re.findall(r"VmData:\s+(\d+) kB", status)
    return int(size) << 10


@pytest.mark.parametrize("head_first", [True, False])
async def test_units_take_what_is_reserved_for_them_whoever_comes_first(
    qwen2: Path, gates: Path, head_first: bool
) -> None:
    rich = replace(SETTINGS, context=0, streams=64)
    file, unit = read_gguf(qwen2), Span(0, BLOCKS)

    def planned(memory: int) -> Planned:
        return make_span_plan(file, "m", rich, [unit], exact=False, memory=memory, gate=gates)

    most = planned(1 << 40)
    poor = replace(rich, memory=most.memory - (300 << 20))
    least = planned(poor.memory)
    assert least.memory <= poor.memory
    cells, streams = least.plan.cells, least.plan.streams
    asked = []

    async def routing(
        tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> Sequence[Place]:
        asked.append(tokens)
        raise UpstreamLost("there is no way")

    async with opened_node(qwen2, gates, poor) as (node, card), AsyncExitStack() as stack:
        if head_first:
            head = await stack.enter_async_context(node.head(card, exact=False))
            (worker,) = node._spans.workers()
            before = vm_data(worker)
        host = await stack.enter_async_context(node.hold(card, [unit], exact=False))
        if head_first:
            assert vm_data(worker) - before <= least.memory
        else:
            head = await stack.enter_async_context(node.head(card, exact=False))
        assert (host.facts.cells, host.load().free) == (cells - 1, streams)
        peer = await stack.enter_async_context(served(host, "peer"))
        for tokens, kind in [(cells - 1, Kind.OPENED), (cells, Kind.FAULT)]:
            opening = Opening(unit, tokens).encode()
            await peer.send(OPEN._replace(session=tokens, payload=opening))
            assert (await peer.hear()).kind is kind
        with pytest.raises(UpstreamLost):
            async with head.generate(GenerateRequest(card, "abc", GREEDY), routing) as deltas:
                await deltas.receive()
        assert asked == [cells - 1]  # its own units have room for the longest answer


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose lone rows are computed otherwise than rows in company."""
    path = tmp_path_factory.mktemp("half") / "half.gguf"
    return write_random_model(path, TINY_QWEN2, quantisation="F16")


def test_a_lone_stream_pads_its_rows_itself_and_gives_equal_logits(
    half: Path, tmp_path: Path
) -> None:
    tokens = tokens_of(140, TINY_QWEN2.vocabulary)
    logits = []
    for streams in (1, 3):
        plan = plan_for(half, streams=streams)
        assert plan.min_rows == 2
        with chain(plan, [0, 1, BLOCKS], tmp_path) as spans:
            logits.append(answer(spans, tokens, 130))
            spans.replay(0, 0, 2)
            logits[-1].append(spans.together({0: (140, 7)})[0])
    assert logits[0] == logits[1]


def test_a_lone_stream_can_be_filled(half: Path, tmp_path: Path) -> None:
    plan = replace(plan_for(half, streams=1), context=256)
    states = memoryview(bytes(4 * WIDTH))
    with chain(plan, [0, BLOCKS], tmp_path) as spans:
        (unit,) = spans.units
        for position in range(plan.cells - 1):
            unit.lone_rows([Piece(0, position, 1, states)])
        with pytest.raises(EngineError):  # not even the dummy has a cell now
            unit.lone_rows([Piece(0, plan.cells - 1, 1, states)])


async def test_units_with_one_stream_are_held_and_give_the_text_of_the_whole(
    half: Path, gates: Path
) -> None:
    texts, unit = [], Span(0, BLOCKS)
    for streams in (1, 4):
        settings = replace(SETTINGS, streams=streams)
        async with (
            opened_node(half, gates, settings) as (node, card),
            node.hold(card, [unit], exact=True) as host,
            node.head(card, exact=True) as head,
        ):
            assert host.load().free == streams
            request = GenerateRequest(card, "Once upon a time", GREEDY, max_tokens=40)
            async with head.generate(request, Routes([[Place(LOCAL, unit)]])) as deltas:
                texts.append("".join([delta.text async for delta in deltas]))
    async with opened_node(half, gates) as (node, card):
        undivided = GenerateRequest(card, "Once upon a time", GREEDY, max_tokens=40, exact=True)
        async with node.generate(undivided) as deltas:
            text = "".join([delta.text async for delta in deltas])
    assert texts == [text, text]


class Shared:
    """A host of two peers, and of its own node, whose clock is put forward by hand."""

    def __init__(self, plan: Plan, units: Sequence[Unit]) -> None:
        self._said: list[tuple[object, Frame]] = []
        self.hosting = Hosting(plan, lambda *said: self._said.append(said), per_peer=plan.streams)
        self.hosting.hold(plan, units, plan.max_rows)
        for peer in ("ann", "bob", ""):
            self.hosting.attach(peer or LOCAL, peer)
        self.now = 0.0

    def give(self, link: object, frame: Frame) -> Frame:
        self.hosting.receive(link, frame, self.now)
        while self.hosting.step():
            pass
        said, self._said = self._said, []
        assert [to for to, _ in said] == [link]
        return said[0][1]

    def open(self, link: object, session: int) -> Kind | int:
        """What an opening is answered with: its kind, or the code of the fault."""
        payload = Opening(Span(0, BLOCKS), 100).encode()
        frame = self.give(link, OPEN._replace(session=session, payload=payload))
        return frame.rows if frame.kind is Kind.FAULT else frame.kind

    def sessions(self, owner: str) -> list[int]:
        return [s.number for s in self.hosting.host.sessions if s.owner == owner]


@pytest.fixture
def shared(qwen2: Path, tmp_path: Path) -> Iterator[Shared]:
    plan = plan_for(qwen2)
    with chain(plan, [0, BLOCKS], tmp_path) as spans:
        yield Shared(plan, spans.units)


def test_idle_sessions_of_who_has_most_make_room_for_another_peer(shared: Shared) -> None:
    assert [shared.open("ann", n) for n in (1, 2, 3)] == [Kind.OPENED] * 3
    shared.now = 29.0
    assert shared.give("ann", step(session=1)).kind is Kind.RESULT
    assert shared.open("bob", 4) == FaultCode.CAPACITY  # nobody is idle
    assert shared.hosting.free(shared.now) == 0
    shared.now = 31.0
    assert shared.hosting.free(shared.now) == 2  # or bob would not ask
    assert shared.hosting.idle(shared.now) == 2
    assert shared.open("ann", 5) == FaultCode.CAPACITY  # one's own sessions are not in one's way
    assert shared.open("bob", 4) is Kind.OPENED
    assert (shared.sessions("ann"), shared.sessions("bob")) == ([1, 3], [4])
    assert shared.give("ann", step(session=2)).rows == FaultCode.NEED_REPLAY
    shared.now = 99.0
    assert shared.open("bob", 6) is Kind.OPENED
    assert shared.open("ann", 2) is Kind.OPENED  # who has less now


def test_sessions_of_the_node_itself_make_no_room(shared: Shared) -> None:
    assert [shared.open(LOCAL, n) for n in (1, 2, 3)] == [Kind.OPENED] * 3
    shared.now = 500.0
    assert shared.open("ann", 4) == FaultCode.CAPACITY
    assert shared.sessions("") == [1, 2, 3]
    assert shared.hosting.free(shared.now) == 0


def test_room_that_is_kept_for_others_is_no_room(shared: Shared) -> None:
    assert [shared.open("ann", n) for n in (1, 2)] == [Kind.OPENED] * 2
    shared.hosting.reserve({"ann": 1})
    shared.now = 31.0
    assert shared.open("bob", 4) is Kind.OPENED
    assert (shared.sessions("ann"), shared.hosting.host.free) == ([2], 1)


def test_who_is_not_admitted_ends_no_session_of_others(shared: Shared) -> None:
    assert [shared.open("ann", n) for n in (1, 2, 3)] == [Kind.OPENED] * 3
    shared.now = 31.0
    for payload in (b"?", Opening(Span(0, BLOCKS), 1 << 20).encode(), Opening(REST, 1).encode()):
        refused = shared.give("bob", OPEN._replace(session=4, payload=payload))
        assert refused.rows == FaultCode.REQUEST
    assert shared.sessions("ann") == [1, 2, 3]
    assert shared.give("ann", step(session=1)).kind is Kind.RESULT
    shared.hosting.reserve({"carl": 2})
    assert shared.open("bob", 4) == FaultCode.CAPACITY  # two that end would not do
    assert shared.sessions("ann") == [1, 2, 3]


def test_a_link_knows_what_its_host_says_of_itself(qwen2: Path) -> None:
    exact = plan_for(qwen2)
    with ExitStack() as stack:
        near, _, node, hand = (
            stack.enter_context(end) for _ in range(2) for end in socket.socketpair()
        )
        server = SpanServer(node, hand)
        wires = server._wires
        for end in (wires._bell, wires._ringer, wires._selector):
            stack.enter_context(end)
        server._plan = SpanPlan(exact, WIDTH, exact.streams, 1 << 20)
        server._hosting = Hosting(exact, lambda *_: None, per_peer=1)
        server._hosting.hold(exact, [], 5)
        told = ((FIRST.lo, FIRST.hi, 0.5), (REST.lo, REST.hi, 0.2))
        said = LinkPlan("host", False, False, replay_rows=3, rtt=0.1, lone=told)
        plan = LinkPlan.from_json(said.to_json())
        wires.connect(7, plan, near, FrameReader(WIDTH, exact.chunk))
        while 7 not in wires.links:
            list(wires.ready(0.1))
        rows = [server._replay_rows(Place(link, REST)) for link in (LOCAL, 7, 8)]
        assert rows == [5, 3, 1]
        limits = [server._new_pace(Place(link, REST)).limit(1) for link in (LOCAL, 7, 8)]
        assert limits == [30.0, pytest.approx(0.9), 30.0]
