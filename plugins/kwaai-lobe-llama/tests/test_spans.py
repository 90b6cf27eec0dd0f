"""Spans of a model in worker processes: the same text over any cuts, whoever dies."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
import trio

from kwaai_core import (
    DataChannel,
    GenerateRequest,
    ModelCard,
    ModelFileError,
    PeerLost,
    Report,
    RequestError,
    Sampling,
    Span,
    TokenIds,
    TokenLogprob,
    UpstreamLost,
)
from kwaai_core.span.frames import FaultCode, Flags, Frame, FrameReader, Kind, Opening, encode
from kwaai_core.span.hop import Blame, Place, Trouble
from kwaai_core.span.roles import LOCAL, Routing, SpanHost
from kwaai_core.testing.models import TINY_QWEN2, Quantisation, write_random_model
from kwaai_core.testing.network.channels import _pair
from kwaai_lobe_llama.executor import LlamaExecutor
from kwaai_lobe_llama.frames import Kind as Message
from kwaai_lobe_llama.planning import machine_memory
from kwaai_lobe_llama.settings import LlamaSettings
from kwaai_lobe_llama.span_process import SpanWorker

from .late import Late
from .test_executor import executor

BLOCKS, WIDTH = TINY_QWEN2.blocks, TINY_QWEN2.embedding
SETTINGS = LlamaSettings(threads=1, context=768, streams=4, load="none", memory=2 << 30)
GREEDY = Sampling(temperature=0)
PROMPT = "Once upon a time there was a node that held no more than a few blocks of its model. "
FIRST, REST = Span(0, 1), Span(1, BLOCKS)


@dataclass
class Routes:
    """A router that takes the first of several ways about which nothing bad was said."""

    ways: Sequence[Sequence[Place]]
    asked: list[list[Trouble]] = field(default_factory=list)

    async def __call__(
        self, tokens: int, route: Sequence[Place], trouble: Sequence[Trouble]
    ) -> Sequence[Place]:
        if trouble and all(one.blame is Blame.SLOW for one in trouble):
            return route  # no fault: the machine is busy
        self.asked.append(list(trouble))
        bad = {t.place for troubles in self.asked for t in troubles}
        for way in self.ways:
            if not bad & set(way):
                return way
        raise UpstreamLost("there is no other way")


@dataclass
class Answer:
    """What came of a request."""

    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    report: Report | None = None


class Swarm:
    """Nodes that hold spans of one model, and the head on the first of them."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        nursery: trio.Nursery,
        stack: AsyncExitStack,
        *,
        exact: bool = True,
    ) -> None:
        self._path, self._folder, self._exact = path, folder, exact
        self._nursery, self._stack = nursery, stack
        self.nodes: list[LlamaExecutor] = []
        self.hosts: list[SpanHost] = []
        self.links: list[int] = []

    async def begin(self, held: Sequence[Sequence[Span]]) -> None:
        """Start a node for each of these units, and link the first one to the others."""
        for units in held:
            # one folder for all: slices are made once, and the gate passes once
            node = executor(self._folder, {"m": self._path}, SETTINGS)
            self.nodes.append(await self._stack.enter_async_context(node))
            host = self.nodes[-1].hold(await self.card(), units, exact=self._exact)
            self.hosts.append(await self._stack.enter_async_context(host))
        head = self.nodes[0].head(await self.card(), exact=self._exact)
        self.head = await self._stack.enter_async_context(head)
        self.links = [LOCAL] + [await self.link(host) for host in self.hosts[1:]]

    async def card(self) -> ModelCard:
        (card,) = await self.nodes[0].models()
        return card

    async def link(self, host: SpanHost) -> int:
        ours, theirs = _pair(first_is_client=True)
        self._nursery.start_soon(host.serve, "owner", theirs)
        link = self.head.link("host", ours, replay_rows=host.facts.replay_rows)
        return await self._stack.enter_async_context(link)

    async def ask(
        self,
        routing: Routing,
        *,
        tokens: int = 24,
        prompt: str | TokenIds = PROMPT,
        sampling: Sampling = GREEDY,
        logprobs: int | None = None,
        echo: bool = False,
    ) -> Answer:
        request = GenerateRequest(
            await self.card(), prompt, sampling, max_tokens=tokens, logprobs=logprobs, echo=echo
        )
        answer = Answer()
        async with self.head.generate(request, routing) as deltas:
            async for delta in deltas:
                answer.text += delta.text
                answer.tokens += delta.tokens
                answer.logprobs += delta.logprobs
                answer.report = delta.report or answer.report
        return answer

    async def whole(
        self, *, tokens: int = 24, prompt: str = PROMPT, sampling: Sampling = GREEDY
    ) -> str:
        """The text of the untouched file in one context."""
        request = GenerateRequest(
            await self.card(), prompt, sampling, max_tokens=tokens, exact=True
        )
        async with self.nodes[0].generate(request) as deltas:
            return "".join([delta.text async for delta in deltas])

    def worker(self, node: int) -> int:
        """The process that computes the spans of a node."""
        pid = self.nodes[node].describe()["workers"][-1]["pid"]
        assert isinstance(pid, int)
        return pid

    async def all_free(self) -> None:
        """Wait until no host has a session any more, as they tell ten times a second."""
        await trio.sleep(0.3)
        while any(host.load().sessions for host in self.hosts):  # noqa: ASYNC110
            await trio.sleep(0.05)


def clear(end: socket.socket, *, server: bool) -> DataChannel:
    return DataChannel(end, b"", b"", b"", server)


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State that the tests share: the gate of a unit takes seconds."""
    return tmp_path_factory.mktemp("state")


@asynccontextmanager
async def swarm(
    path: Path, state: Path, *held: Sequence[Span], exact: bool = True
) -> AsyncIterator[Swarm]:
    with trio.fail_after(180):
        async with trio.open_nursery() as nursery:
            async with AsyncExitStack() as stack:
                made = Swarm(path, state, nursery, stack, exact=exact)
                await made.begin(held)
                yield made
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "units",
    [
        [Span(0, BLOCKS)],
        [Span(0, 1), Span(1, BLOCKS)],
        [Span(block, block + 1) for block in range(BLOCKS)],
    ],
    ids=["one unit", "two units", "a unit a block"],
)
async def test_units_of_one_worker_give_the_text_of_the_whole(
    qwen2: Path, gates: Path, units: Sequence[Span]
) -> None:
    async with swarm(qwen2, gates, units) as nodes:
        routes = Routes([[Place(LOCAL, unit) for unit in units]])
        answer = await nodes.ask(routes)
        assert answer.text == await nodes.whole()
        assert answer.report is not None
        assert [took.hop.span for took in answer.report.timings] == list(units)
        assert (answer.report.exact, answer.report.same_text_guaranteed) == (True, True)
        await nodes.all_free()


async def test_what_is_held_is_measured_before_the_first_session(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST, REST]) as nodes:
        await trio.sleep(0.3)
        load = nodes.hosts[0].load()
        assert len(load.step_seconds) == len(load.row_seconds) == 2
        assert all(0 < seconds < 1 for seconds in (*load.step_seconds, *load.row_seconds))
        assert (load.free, load.sessions, load.waiting) == (SETTINGS.streams, 0, 0)


async def test_a_load_of_what_is_held_is_told_before_that_it_is_held(
    qwen2: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, take = list[tuple[int, int]](), SpanWorker._take

    def watched(worker: SpanWorker, kind: Message, number: int, payload: bytes) -> None:
        if kind is Message.LOADED:
            told.append((worker.load.free, len(worker.load.step_seconds)))
        take(worker, kind, number, payload)

    monkeypatch.setattr(SpanWorker, "_take", watched)
    async with executor(gates, {"m": qwen2}, SETTINGS) as node:
        (card,) = await node.models()
        async with node.hold(card, [FIRST], exact=False):
            assert told == [(SETTINGS.streams, 1)]


async def test_two_who_ask_for_a_head_at_once_share_it(
    qwen2: Path, gates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = list[object](), SpanWorker.head

    async def counted(worker: SpanWorker, path: Path) -> int:
        loaded.append(worker)
        return await load(worker, path)

    monkeypatch.setattr(SpanWorker, "head", counted)
    async with executor(gates, {"m": qwen2}, SETTINGS) as node, AsyncExitStack() as heads:
        (card,) = await node.models()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                head = node.head(card, exact=False)
                nursery.start_soon(heads.enter_async_context, head)
        assert len(loaded) == 1


async def test_a_chain_of_workers_gives_the_text_of_the_whole_to_many_at_once(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes:
        way = [Place(LOCAL, FIRST), Place(nodes.links[1], REST)]
        prompts = [PROMPT * times for times in (1, 2, 1, 3)]
        texts: dict[int, str] = {}

        async def ask(number: int) -> None:
            texts[number] = (await nodes.ask(Routes([way]), prompt=prompts[number])).text

        async with trio.open_nursery() as nursery:
            for number in range(len(prompts)):
                nursery.start_soon(ask, number)
        assert [texts[n] for n in range(4)] == [await nodes.whole(prompt=p) for p in prompts]
        await nodes.all_free()


async def test_a_chain_tells_the_probabilities_of_the_whole(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes:
        way = [Place(LOCAL, FIRST), Place(nodes.links[1], REST)]
        answer = await nodes.ask(Routes([way]), logprobs=3)
        request = GenerateRequest(
            await nodes.card(), PROMPT, GREEDY, max_tokens=24, exact=True, logprobs=3
        )
        whole: tuple[TokenLogprob, ...] = ()
        async with nodes.nodes[0].generate(request) as deltas:
            async for delta in deltas:
                whole += delta.logprobs
        assert answer.logprobs == whole
        assert len(whole) == 24


@pytest.mark.parametrize(
    ("kind", "exact"), [("Q8_0", True), ("Q4_K", True), ("F16", True), ("Q8_0", False)]
)
async def test_a_chain_tells_of_a_prompt_what_the_whole_tells(
    tmp_path: Path, kind: Quantisation, exact: bool
) -> None:
    path = write_random_model(tmp_path / "model.gguf", TINY_QWEN2, quantisation=kind)
    async with swarm(path, tmp_path / "state", [FIRST], [REST], exact=exact) as nodes:
        way = [Place(LOCAL, FIRST), Place(nodes.links[1], REST)]
        card = await nodes.card()
        # chunks of a prompt of 128 rows with remainders of 1, of less than 8 rows and of more
        for length, tokens in ((1, 3), (2, 0), (129, 2), (262, 3), (300, 1)):
            prompt = TokenIds(tuple(Random(length).choices(range(400), k=length)))
            answer = await nodes.ask(
                Routes([way]), prompt=prompt, tokens=tokens, logprobs=2, echo=True
            )
            request = GenerateRequest(
                card, prompt, GREEDY, max_tokens=tokens, exact=exact, logprobs=2, echo=True
            )
            whole = Answer()
            async with nodes.nodes[0].generate(request) as deltas:
                async for delta in deltas:
                    whole.text += delta.text
                    whole.tokens += delta.tokens
                    whole.logprobs += delta.logprobs
            assert len(whole.logprobs) == length + tokens
            assert whole.logprobs[0].logprob is None
            assert (answer.text, answer.tokens) == (whole.text, tokens)
            if exact:
                assert answer.logprobs == whole.logprobs
            else:
                for ours, theirs in zip(answer.logprobs, whole.logprobs, strict=True):
                    assert ours.logprob == pytest.approx(theirs.logprob, abs=0.2)
        await nodes.all_free()


async def test_a_prompt_is_scored_to_its_end_although_a_host_is_lost(
    qwen2: Path, gates: Path
) -> None:
    prompt = TokenIds(tuple(Random(7).choices(range(400), k=700)))
    async with swarm(qwen2, gates, [FIRST], [REST], [REST]) as nodes:
        victim = nodes.worker(1)
        struck = Late(lambda: os.kill(victim, signal.SIGKILL), middle=9)
        link = await struck.link(nodes, nodes.hosts[1])
        ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (link, nodes.links[2])]
        answer = await nodes.ask(Routes(ways), tokens=4, prompt=prompt, logprobs=1, echo=True)
        plain = [[Place(LOCAL, FIRST), Place(nodes.links[2], REST)]]
        again = await nodes.ask(Routes(plain), tokens=4, prompt=prompt, logprobs=1, echo=True)
        assert len(answer.logprobs) == 704
        assert (answer.text, answer.logprobs) == (again.text, again.logprobs)
        assert answer.report is not None and answer.report.timings[1].replayed > 0


async def test_texts_have_tokens_where_only_the_head_is(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST]) as nodes:
        node, card = nodes.nodes[0], await nodes.card()
        workers = len(node.describe()["workers"])
        tokens = await node.tokenize(card, PROMPT, special=False)
        assert await node.detokenize(card, TokenIds(tokens.ids)) == PROMPT
        assert (await node.tokenizer(card)).context == SETTINGS.context
        assert len(node.describe()["workers"]) == workers, "the whole model was loaded for it"
    small = replace(SETTINGS, memory=40 << 20)
    async with executor(gates / "small", {"m": qwen2}, small) as node:
        (card,) = await node.models()
        assert not await node.fits(card, exact=False)
        assert await node.detokenize(card, TokenIds(tokens.ids)) == PROMPT
        assert not node.describe()["workers"]


async def test_a_chain_draws_as_the_whole_does_and_so_it_does_after_a_loss(
    qwen2: Path, gates: Path
) -> None:
    sampling = Sampling(1.2, 0.9, 50, 7, 0.01, 0.5, 0.25, 1.2, ((9, 4.0), (300, -100.0)))
    async with swarm(qwen2, gates, [FIRST], [REST], [REST]) as nodes:
        victim = nodes.worker(1)
        struck = Late(lambda: os.kill(victim, signal.SIGKILL))
        link = await struck.link(nodes, nodes.hosts[1])
        ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (link, nodes.links[2])]
        answer = await nodes.ask(Routes(ways), tokens=40, sampling=sampling)
        assert answer.text == await nodes.whole(tokens=40, sampling=sampling)
        assert answer.text != await nodes.whole(tokens=40, sampling=Sampling(1.2, 0.9, 50, 7))
        assert answer.report is not None and answer.report.timings[1].replayed > 0


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_host_that_dies_in_mid_answer_is_replaced(
    qwen2: Path, gates: Path, fault: signal.Signals
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST], [REST]) as nodes:
        victim = nodes.worker(1)
        struck = await Late(lambda: os.kill(victim, fault)).link(nodes, nodes.hosts[1])
        ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (struck, nodes.links[2])]
        routes = Routes(ways)
        try:
            answer = await nodes.ask(routes, tokens=60)
        finally:
            if fault is signal.SIGSTOP:
                os.kill(victim, signal.SIGCONT)
        assert answer.text == await nodes.whole(tokens=60)
        assert [t.place for troubles in routes.asked for t in troubles] == [ways[0][1]]
        assert answer.report is not None
        before, after = answer.report.timings
        assert (before.replayed, after.hop.peer) == (0, str(nodes.links[2]))
        assert after.replayed > 0
        await nodes.all_free()


async def test_a_link_whose_handshake_fails_is_no_link(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes, trio.open_nursery() as nursery:
        ours, theirs = _pair(first_is_client=True)
        other, unused = _pair(first_is_client=True)
        other.socket.close()
        unused.socket.close()

        async def serve() -> None:
            with pytest.raises(PeerLost, match="handshake"):
                await nodes.hosts[1].serve("stranger", theirs)

        nursery.start_soon(serve)
        stranger = replace(ours, certificate=other.certificate, key=other.key)
        with suppress(PeerLost):  # TLS 1.3 tells the client of its refusal after the handshake
            async with nodes.head.link("host", stranger) as link:
                while not nodes.head.lost(link):  # noqa: ASYNC110
                    await trio.sleep(0.05)


async def test_without_another_way_the_answer_ends_with_the_reason(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes:
        victim = nodes.worker(1)
        struck = Late(lambda: os.kill(victim, signal.SIGKILL))
        link = await struck.link(nodes, nodes.hosts[1])
        routes = Routes([[Place(LOCAL, FIRST), Place(link, REST)]])
        with pytest.raises(UpstreamLost, match="no other way"):
            await nodes.ask(routes, tokens=60)
        assert routes.asked[-1][0].blame is Blame.LOST
        await nodes.all_free()


async def test_a_route_over_a_link_that_is_gone_is_trouble_at_once(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes:
        gone = Place(nodes.links[1] + 99, REST)
        routes = Routes([[Place(LOCAL, FIRST), gone], [Place(LOCAL, FIRST), Place(1, REST)]])
        answer = await nodes.ask(routes)
        assert answer.text == await nodes.whole()
        assert [(t.place, t.reason) for t in routes.asked[1]] == [
            (gone, "there is no such link any more")  # and not that it does not answer
        ]


async def test_who_leaves_in_mid_answer_frees_what_the_hosts_hold(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes:
        way = [Place(LOCAL, FIRST), Place(nodes.links[1], REST)]
        request = GenerateRequest(await nodes.card(), PROMPT, GREEDY, max_tokens=500)
        async with nodes.head.generate(request, Routes([way])) as deltas:
            await deltas.receive()
        await nodes.all_free()
        assert (await nodes.ask(Routes([way]))).text == await nodes.whole()


async def test_a_host_that_drains_is_left_before_it_goes(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST], [REST]) as nodes:
        async with trio.open_nursery() as nursery:

            def leave() -> None:
                late.seconds = 0.02  # what the host says of it has to come before the answer ends
                nursery.start_soon(nodes.hosts[1].drain)

            late = Late(leave)
            first = await late.link(nodes, nodes.hosts[1])
            ways = [[Place(LOCAL, FIRST), Place(link, REST)] for link in (first, nodes.links[2])]
            routes = Routes(ways)
            answer = await nodes.ask(routes, tokens=60)
        assert answer.text == await nodes.whole(tokens=60)
        assert routes.asked[1][0].blame is Blame.LEAVING
        refused = Routes([ways[0]])
        with pytest.raises(UpstreamLost):
            await nodes.ask(refused)
        assert refused.asked[1][0].blame is Blame.FULL


class Peer:
    """One who speaks the protocol by hand."""

    def __init__(self, end: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._reader = FrameReader(WIDTH, 128)
        self._heard: deque[Frame] = deque()

    async def send(self, frame: Frame) -> None:
        await self._stream.send_all(encode(frame))

    async def say(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def hear(self) -> Frame:
        """The next frame that is no heartbeat."""
        while not self._heard:
            data = await self._stream.receive_some(1 << 16)
            assert data, "the host closed the link"
            self._heard += [f for f in self._reader.feed(data) if f.kind is not Kind.HEARTBEAT]
        return self._heard.popleft()

    async def ended(self) -> None:
        async with self._stream:
            with suppress(trio.BrokenResourceError):  # what was on its way is dropped
                while await self._stream.receive_some(1 << 16):
                    pass


def step(position: int = 0, rows: int = 1, value: float = 0.5, session: int = 7) -> Frame:
    tags = bytes(8 * (rows + 1))
    states = struct.pack(f"<{rows * WIDTH}f", *[value] * (rows * WIDTH))
    return Frame(
        Kind.STEP, session, 1, position, position, rows, Flags.FLOAT32, payload=tags + states
    )


OPEN = Frame(Kind.OPEN, 7, 1, payload=Opening(REST, 100).encode())


async def test_a_hostile_owner_harms_neither_the_host_nor_its_neighbours(
    qwen2: Path, gates: Path
) -> None:
    async with swarm(qwen2, gates, [FIRST], [REST]) as nodes, trio.open_nursery() as nursery:

        def peer(name: str) -> Peer:
            ours, theirs = socket.socketpair()
            nursery.start_soon(nodes.hosts[1].serve, name, clear(theirs, server=True))
            return Peer(ours)

        mallory = peer("mallory")
        refusals = [
            (step(), FaultCode.NEED_REPLAY),  # of no session
            (replace_opening(Opening(Span(0, 1), 10)), FaultCode.REQUEST),  # not held
            (replace_opening(Opening(REST, 1 << 30)), FaultCode.REQUEST),  # too long
            (replace_opening(Opening(REST, 10, sender="other")), FaultCode.REQUEST),  # a ring
        ]
        for frame, code in refusals:
            await mallory.send(frame)
            assert (await mallory.hear()).rows == code
        await mallory.send(OPEN)
        assert (await mallory.hear()).kind is Kind.OPENED
        for frame, code in [
            (step(position=9), FaultCode.NEED_REPLAY),
            (step(value=float("nan")), FaultCode.REQUEST),
            (step(position=0, rows=101), FaultCode.REQUEST),
        ]:
            await mallory.send(frame)
            assert (await mallory.hear()).rows == code
        await mallory.send(step())
        assert (await mallory.hear()).kind is Kind.RESULT

        eve = peer("eve")
        await eve.send(step(position=1))
        assert (await eve.hear()).rows == FaultCode.REQUEST  # not hers
        for number in range(20, 30):
            await eve.send(OPEN._replace(session=number))
        codes = [(await eve.hear()).kind for _ in range(10)]
        assert codes.count(Kind.OPENED) <= SETTINGS.streams
        await eve.say(os.urandom(100_000))
        await eve.ended()
        await mallory.send(Frame(Kind.RESULT, 7, 1, rows=1, flags=Flags.FLOAT32 | Flags.SILENT))
        await mallory.ended()
        await nodes.all_free()

        way = [Place(LOCAL, FIRST), Place(nodes.links[1], REST)]
        assert (await nodes.ask(Routes([way]))).text == await nodes.whole()


def replace_opening(opening: Opening) -> Frame:
    return OPEN._replace(payload=opening.encode())


async def test_what_cannot_be_held_is_refused_with_the_reason(tmp_path: Path, qwen2: Path) -> None:
    small = replace(SETTINGS, memory=66 << 20, context=4096)
    async with executor(tmp_path, {"m": qwen2}, small) as node:
        (card,) = await node.models()
        with pytest.raises(ModelFileError, match=r"need at least .* MiB"):
            async with node.hold(card, [Span(0, BLOCKS)], exact=True):
                pass


@pytest.mark.parametrize(
    ("settings", "journal"),
    [(SETTINGS, machine_memory() // 16), (replace(SETTINGS, journal=1 << 20), 1 << 20)],
    ids=["of the machine's memory", "as set"],
)
async def test_journals_have_what_the_settings_say(
    qwen2: Path, gates: Path, settings: LlamaSettings, journal: int
) -> None:
    async with executor(gates, {"m": qwen2}, settings) as node:
        (card,) = await node.models()
        async with node.head(card, exact=True):
            (worker,) = node._spans.workers()
            assert worker._span_plan.journal == journal


async def test_slices_that_are_held_stay_and_others_make_room(qwen2: Path, tmp_path: Path) -> None:
    async with executor(tmp_path, {"m": qwen2}, replace(SETTINGS, slices=0)) as node:
        (card,) = await node.models()
        async with node.hold(card, [FIRST], exact=False):
            pass
        async with node.hold(card, [REST], exact=False), node.head(card, exact=False):
            there = sorted(node._spans.slices.path.glob("*.gguf"))
            assert [path.name.split("-v")[1][2:] for path in there] == ["1-3.gguf", "head.gguf"]
            assert node.describe()["slices"] == sum(path.stat().st_size for path in there)


async def test_a_prompt_over_the_context_is_refused(qwen2: Path, gates: Path) -> None:
    async with swarm(qwen2, gates, [Span(0, BLOCKS)]) as nodes:
        with pytest.raises(RequestError, match="context"):
            await nodes.ask(Routes([[Place(LOCAL, Span(0, BLOCKS))]]), prompt=PROMPT * 99)
