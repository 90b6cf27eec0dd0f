"""Nodes on a simulated network, each with a router and a fake executor of spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from kwaai_core import (
    GenerateRequest,
    Intent,
    Message,
    Sampling,
)
from kwaai_core.testing import FakeHost, FakeIdentity, Line, Network
from kwaai_core.testing.spans import TOY, FakeSpanExecutor
from kwaai_lobe_router.router import SpanRouter, open_router
from kwaai_lobe_router.settings import SpansSettings

PROMPT = (Message("user", " ".join(f"word{n}" for n in range(40))),)
TOKENS = 40


class AnyDoor:
    """Lets everybody in."""

    def allows(self, peer: str, protocol: str) -> bool:
        return True

    async def greet(self, peer: str) -> None:
        await trio.lowlevel.checkpoint()


@dataclass(eq=False)
class Member:
    """A node: its identity, its executor, its router."""

    identity: FakeIdentity
    executor: FakeSpanExecutor
    router: SpanRouter
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    leave: trio.Event = field(default_factory=trio.Event)
    left: trio.Event = field(default_factory=trio.Event)

    @property
    def peer(self) -> str:
        return self.identity.peer_id

    @property
    def sessions(self) -> int:
        return sum(len(host.host.sessions) for host in self.executor.hosts)


class Town:
    """Nodes that all know one another."""

    def __init__(self, nursery: trio.Nursery, folder: Path, line: Line) -> None:
        self.network = Network(1, line)
        self.members: list[Member] = []
        self._nursery = nursery
        self._folder = folder

    async def add(self, blocks: str = "", **settings: object) -> Member:
        number = len(self.members)
        member: Member = await self._nursery.start(self._run, number, blocks, settings)
        self.members.append(member)
        return member

    async def _run(
        self,
        number: int,
        blocks: str,
        settings: dict[str, object],
        task_status: trio.TaskStatus[Member],
    ) -> None:
        identity = FakeIdentity(number, now=self.network.now)
        executor = FakeSpanExecutor()
        executor.step_seconds = executor.row_seconds = 0.002
        executor.refuses = settings.pop("refuses", None)  # type: ignore[assignment]
        if blocks:
            settings |= {"models": (TOY.id,), "blocks": blocks}
        table = SpansSettings(**settings)  # type: ignore[arg-type]
        async with self.network.node(identity) as transport:
            transport.guard(AnyDoor())
            host = FakeHost(
                self._folder / str(number),
                {SpansSettings: table},
                identity=identity,
                transport=transport,
                executors=[executor],
            )
            for other in self.members:
                if self.network.at(other.peer):
                    await transport.connect([self.network.address(other.peer)])
            async with open_router(host) as router:
                assert isinstance(router, SpanRouter)
                member = Member(identity, executor, router)
                if table.models and executor.refuses is None:
                    while not executor.hosts:  # noqa: ASYNC110  # a poll of the simulated clock
                        await trio.sleep(0.01)
                task_status.started(member)
                await member.leave.wait()
            member.left.set()

    def kill(self, member: Member) -> None:
        self.network.kill(member.peer)
        member.executor.die()

    def freeze(self, member: Member) -> None:
        self.network.freeze(member.peer)
        member.executor.freeze()


@asynccontextmanager
async def town(folder: Path, line: Line) -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        yield Town(nursery, folder, line)
        nursery.cancel_scope.cancel()


async def whole() -> str:
    executor = FakeSpanExecutor()
    async with executor.generate(request()) as deltas:
        return "".join([delta.text async for delta in deltas])


def request() -> GenerateRequest:
    return GenerateRequest(TOY, PROMPT, Sampling(temperature=0), max_tokens=TOKENS, exact=True)


@dataclass
class Chat:
    """An answer, and where it went."""

    text: str = ""
    route: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    same: bool = False
    replayed: int = 0
    gap: float = 0.0


async def chat(member: Member, *, at: int = -1, then: object = None, **wants: object) -> Chat:
    route = await member.router.route(Intent(TOY.id, **wants))  # type: ignore[arg-type]
    found = Chat(route=[hop.peer for hop in route.hops])
    count, last = 0, trio.current_time()
    async with route.executor.generate(request()) as deltas:
        async for delta in deltas:
            found.text += delta.text
            count += 1
            now = trio.current_time()
            found.gap, last = max(found.gap, now - last), now
            if count == at and callable(then):
                then()
            if delta.report is not None:
                found.after = [timing.hop.peer for timing in delta.report.timings]
                found.replayed = sum(timing.replayed for timing in delta.report.timings)
                found.same = delta.report.same_text_guaranteed
    return found


async def ask_for(member: Member) -> dict[str, object]:
    """What a node shows of the toy model's swarm."""
    return await member.router.show(TOY.id, planned=False)
