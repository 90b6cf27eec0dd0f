"""The room that units take: what is held in place of what, for whom, and in how much memory."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from kwaai_core import ModelCard, ModelLoading, Span
from kwaai_core.gguf import read_gguf
from kwaai_core.span.frames import FaultCode, Kind, Opening
from kwaai_core.span.roles import SpanHost
from kwaai_core.testing.models import TINY_QWEN2
from kwaai_lobe_llama.executor import LlamaExecutor
from kwaai_lobe_llama.settings import LlamaSettings
from kwaai_lobe_llama.slicing import slice_span
from kwaai_lobe_llama.span_plan import SpanPlan, UnitFile
from kwaai_lobe_llama.span_process import SpanWorker

from .chains import DIGEST, plan_for
from .test_executor import executor
from .test_spans import FIRST, OPEN, REST, SETTINGS, WIDTH, Peer, clear, gates, step

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
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            await worker.ready.wait()
            yield worker
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened_node(
    model: Path, state: Path, settings: LlamaSettings = SETTINGS
) -> AsyncIterator[tuple[LlamaExecutor, ModelCard]]:
    with trio.fail_after(60):
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


async def test_units_take_the_place_of_those_before_and_end_their_sessions(
    qwen2: Path, tmp_path: Path
) -> None:
    first, rest = (unit(qwen2, span, tmp_path) for span in (FIRST, REST))
    plan = plan_for(qwen2, exact=False)
    ours, theirs = socket.socketpair()
    async with opened_worker(SpanPlan(plan, WIDTH, plan.streams, 1 << 20)) as worker:
        await worker.hold([rest])
        peer = Peer(ours)
        link = worker.link("peer", clear(theirs, server=True), hosting=True)
        async with peer._stream, link:
            await peer.send(OPEN)
            assert (await peer.hear()).kind is Kind.OPENED
            await peer.send(step())
            assert (await peer.hear()).kind is Kind.RESULT
            await worker.hold([first])
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
