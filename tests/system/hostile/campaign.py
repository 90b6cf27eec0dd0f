"""The campaign: thousands of inputs at once, an honest peer beside them, and what is left after."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hostile import wire
from hostile.attack import Attacker
from hostile.channel import Breach
from hostile.inputs import Input, make
from hostile.protobuf import fields, read_varint
from hostile.reporting import ECHO
from hostile.subjects import Kind, Load, NodeDied, Subject, subject
from hostile.wire import Broken

ATTACKERS, VOLLEY = 4, 50
MEMORY = 50 << 20
"""By how many bytes a node may have grown in the end."""

PING, IDENTIFY = "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"
_SETTLE_S, _HONEST_S, _SEARCH_S = 120.0, 10.0, 120.0
_BEGIN_S = 1.0
"""What a node does for each peer that is connected has begun after that many seconds."""


@dataclass
class Report:
    """How it went; ``failures`` is empty where the node held."""

    inputs: int = 0
    seconds: float = 0.0
    before: Load | None = None
    after: Load | None = None
    tally: Counter[str] = field(default_factory=Counter)
    honest: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    suspects: list[Input] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.inputs} inputs in {self.seconds:.0f} s"]
        lines += [f"    {what:28} {n}" for what, n in sorted(self.tally.items())]
        lines += [f"before: {self.before}", f"after:  {self.after}"]
        if self.honest:
            times = sorted(self.honest)
            median, worst = times[len(times) // 2] * 1000, times[-1] * 1000
            lines += [f"honest pings: {len(times)}, median {median:.1f} ms, worst {worst:.0f} ms"]
        return "\n".join([*lines, *(f"FAILED: {failure}" for failure in self.failures)])


async def campaign(
    kind: Kind,
    seed: int,
    numbers: Sequence[int],
    folder: Path,
    *,
    progress: Callable[[int], None] = lambda done: None,
    settle: bool = True,
) -> Report:
    """Do all these inputs to one node of a kind; ``progress`` hears how many are done.

    ``settle``: wait until the node has let go of everything that it held for its attackers.
    """
    report = Report()
    async with subject(kind, folder) as node, trio.open_nursery() as nursery:
        honest = Honest(node, nursery, report, stranger=kind == "closed")
        try:
            await honest.arrive()
            await trio.sleep(_BEGIN_S)
            report.before = await node.load()
            protocols = await honest.protocols()
            await _attack(node, seed, numbers, protocols, report, honest, progress)
            await honest.visit()
            if settle:
                await _settle(node, report.before, report)
        except (Breach, Broken, NodeDied, trio.TooSlowError) as error:
            await _failed(report, node, error)
        nursery.cancel_scope.cancel()
    return report


async def _failed(report: Report, node: Subject, error: Exception) -> None:
    died = await node.ended()
    what = "the node died" if died else f"the node fails: {error!r}"
    report.failures.append(f"{what}\n{node.why()}")


class Honest:
    """A peer that stays connected all the time, and wants its pings answered.

    As a stranger, to a node for members alone, it is answered pings and no more.
    """

    def __init__(
        self, node: Subject, nursery: trio.Nursery, report: Report, *, stranger: bool
    ) -> None:
        self._node, self._nursery, self._report = node, nursery, report
        self._stranger = stranger
        self._key = Ed25519PrivateKey.generate()

    async def arrive(self) -> None:
        with trio.fail_after(_HONEST_S):
            self._peer = await wire.dial(self._nursery, self._node.address, self._key)
            self._pings = await self._opened(self._peer, PING)

    async def protocols(self) -> list[str]:
        """What the node says that it serves."""
        with trio.fail_after(_HONEST_S):
            stream, said = await self._opened(self._peer, IDENTIFY), b""
            while True:
                try:
                    said += await stream.more()
                except Broken:
                    break
        _, at = read_varint(said)
        found = [
            value.decode() for n, value in fields(said[at:]) if n == 3 and isinstance(value, bytes)
        ]
        return sorted(found)

    async def ping(self) -> None:
        """One round trip of libp2p's ping. Errors: Broken, TooSlowError."""
        if self._stranger and self._peer.broken.is_set():  # strangers may not stay
            await self.arrive()
        with trio.fail_after(_HONEST_S):
            began = trio.current_time()
            await self._pings.write(bytes(32))
            await self._pings.exactly(32)
            self._report.honest.append(trio.current_time() - began)

    async def visit(self) -> None:
        """Come a second time, and have something echoed. Errors: Broken, TooSlowError."""
        await self.ping()
        with trio.fail_after(_HONEST_S):
            key = Ed25519PrivateKey.generate()
            peer = await wire.dial(self._nursery, self._node.address, key)
            try:
                stream = await self._opened(peer, PING if self._stranger else ECHO)
                said = bytes(32) if self._stranger else bytes([0, 0, 0, 28]) + bytes(28)
                await stream.write(said)
                if await stream.exactly(32) != said:
                    raise Broken("the echo is not what was said")
            finally:
                peer.close()

    async def _opened(self, peer: wire.Peer, protocol: str) -> wire.Stream:
        stream = await peer.open(protocol)
        if (answer := [await stream.line(), await stream.line()])[1] != protocol:
            raise Broken(f"the node answers {answer} when asked for {protocol}")
        return stream


async def _attack(
    node: Subject,
    seed: int,
    numbers: Sequence[int],
    protocols: Sequence[str],
    report: Report,
    honest: Honest,
    progress: Callable[[int], None],
) -> None:
    volleys = iter([numbers[at : at + VOLLEY] for at in range(0, len(numbers), VOLLEY)])
    recent: deque[Input] = deque(maxlen=ATTACKERS * VOLLEY)

    async def attacker(nursery: trio.Nursery) -> None:
        attacking = Attacker(node, nursery, report.tally)
        for volley in volleys:
            for number in volley:
                given = make(seed, number, protocols)
                recent.append(given)
                await attacking.deliver(given)
                report.inputs += 1
                progress(report.inputs)
                if not node.alive:
                    raise NodeDied("its process ended")
            await attacking.leave()

    async def watch() -> None:
        for n in count():
            await (honest.visit() if n % 20 == 19 else honest.ping())
            await trio.sleep(0.25)

    started = trio.current_time()
    try:
        async with trio.open_nursery() as outer:
            outer.start_soon(watch)
            async with trio.open_nursery() as peers:
                async with trio.open_nursery() as crowd:
                    for _ in range(ATTACKERS):
                        crowd.start_soon(attacker, peers)
                peers.cancel_scope.cancel()
            outer.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        first = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        report.suspects = list(recent)
        raise first from None
    finally:
        report.seconds = trio.current_time() - started


async def _settle(node: Subject, before: Load, report: Report) -> None:
    """Wait until the node is as it was before, or until nothing more is to be expected."""
    with trio.move_on_after(_SETTLE_S):
        while True:
            report.after = now = await node.load()
            if not (wrong := list(_grown(before, now))):
                return
            await trio.sleep(1)
    report.failures += wrong


def _grown(before: Load, now: Load) -> Iterator[str]:
    if now.memory > before.memory + MEMORY:
        yield f"its memory grew by {(now.memory - before.memory) / 2**20:.0f} MiB"
    if now.files > before.files:
        yield f"{now.files - before.files} file descriptors are still open"
    if now.tasks > before.tasks:
        yield f"{now.tasks - before.tasks} tasks still live"


async def culprit(kind: Kind, seed: int, suspects: Sequence[Input], folder: Path) -> Input | None:
    """The last of the suspects that breaks a fresh node by itself, None where they need company."""
    with trio.move_on_after(_SEARCH_S):
        for given in reversed(suspects):
            if (await campaign(kind, seed, [given.number], folder, settle=False)).failures:
                return given
    return None
