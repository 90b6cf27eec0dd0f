"""Seven nodes: one is asked and holds no blocks, and each third of the model is held by two.

So a route has three peers on it, each of which somebody can stand in for, also where two that are
neighbours fall out at once. All nodes have the same settings otherwise; which of two is used is up
to what the first one measures.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import trio

from kwaai_core.testing.models import Shape, write_random_model
from tests.faults.asking import LONG, MODEL, SHORT, TOLD, Question, ask
from tests.faults.nodes import Broken, Node, all_known, end, join, known
from tests.faults.wires import Watcher, Wires

SHAPE = Shape("qwen2", blocks=6)
THIRDS = 3
_SPARES = 2
_STREAMS, _CONTEXT = 4, 1024


class Swarm:
    """The nodes of the matrix, and what is known of them. Made by :func:`open_swarm`."""

    def __init__(self, folder: Path, watcher: Watcher, random: Random, *, bare: bool) -> None:
        self.texts: dict[Question, str] = {}
        self.wires = Wires(SHAPE.embedding, watcher, random)
        self.bare = bare
        self._folder = folder
        self._environment: dict[str, str] = {}

    @property
    def hosts(self) -> list[Node]:
        return self._hosts

    # -- making it

    async def begin(self, stack: AsyncExitStack) -> None:
        """Start everything, and learn the texts of the whole model."""
        self._folder.mkdir(exist_ok=True)
        model = write_random_model(self._folder / "model.gguf", SHAPE)
        self._prepare_wire()
        await stack.enter_async_context(self.wires.opened(self._folder / "wire.sock"))
        whole = self._make("whole", {"load": MODEL, "exact": True}, {})
        await whole.add(model, MODEL)
        self.asked = self._make("asked", {"load": "none"}, {"whole": False})
        size = SHAPE.blocks // THIRDS
        self._hosts = [
            self._make(
                f"{third + 1}{'ab'[spare]}",
                {"load": "none"},
                {"models": [MODEL], "blocks": f"{third * size}-{third * size + size - 1}"},
                third=third,
            )
            for third in range(THIRDS)
            for spare in range(_SPARES)
        ]
        stack.push_async_callback(end, [whole, self.asked, *self._hosts])
        for node in (self.asked, *self._hosts):  # what the model is, is found out once
            shutil.copytree(whole.home.folder / "state", node.home.folder / "state")
        await self._learn_texts(whole)
        await join(self.asked, self._hosts, self._environment)
        await self.settled(self._hosts)

    def _prepare_wire(self) -> None:
        """A distribution with the lobe that hands data channels over."""
        site = self._folder / "site"
        info = site / "kwaai_lobe_wire-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: kwaai-lobe-wire\nVersion: 0.1\n"
        )
        (info / "entry_points.txt").write_text("[kwaai.lobes.v0]\nwire = kwaai_lobe_wire\n")
        shutil.copy(Path(__file__).with_name("wire_lobe.py"), site / "kwaai_lobe_wire.py")
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {
            "FAULTS_WIRE": str(self._folder / "wire.sock"),
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def _make(
        self,
        name: str,
        llama: Mapping[str, object],
        spans: Mapping[str, object],
        third: int | None = None,
    ) -> Node:
        transport = "libp2p" if self.bare or third is None else "wire"
        config = {
            "lobes": ["identity", transport, "models", "llama", "router"],
            "libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
            "llama": {"threads": 1, "streams": _STREAMS, "context": _CONTEXT, **llama},
            "spans": spans,
        }
        return Node.make(name, self._folder / name, config, third=third)

    async def _learn_texts(self, whole: Node) -> None:
        await whole.start(self._environment)
        await whole.ready()
        for question in (*SHORT, *LONG, *TOLD):
            self.texts[question] = (await ask(whole, question)).text
        await whole.end()
        if not all(self.texts.values()) or len(set(self.texts.values())) < len(self.texts):
            raise Broken(f"the whole model gave {list(self.texts.values())}")

    # -- how it is

    def of(self, third: int) -> list[Node]:
        """Who holds a third."""
        return [host for host in self._hosts if host.third == third]

    def by_pid(self, pid: int) -> Node:
        """Whose process that is, or was."""
        return next(host for host in self._hosts if pid in host.pids)

    async def known(self) -> set[str]:
        """The peers that the one that is asked could use now."""
        return await known(self.asked, MODEL)

    async def suspected(self) -> Counter[str]:
        """How often each peer was lost in an answer."""
        return Counter((await self.asked.facts("router")).get("lost", {}))

    async def sessions(self, host: Node) -> int | None:
        """How many sessions a host has room taken for; None where it holds nothing now."""
        held = (await host.facts("router")).get("holds") or [{"free": 0}]
        free: int = held[0]["free"]
        return _STREAMS - free if free + held[0].get("sessions", 0) == _STREAMS else None

    async def settled(self, hosts: Sequence[Node]) -> None:
        """Wait until these hold their blocks again, and are known for it."""
        for host in hosts:
            await host.until("it held its blocks", partial(self._holds, host))
            await host.look()
        await all_known(self.asked, hosts, MODEL)

    async def forgotten(self, host: Node) -> None:
        """Wait until a host is not reckoned with any more."""

        async def is_unknown() -> bool:
            return host.peer not in await self.known()

        await self.asked.until(f"{host.name} was forgotten", is_unknown)

    async def _holds(self, host: Node) -> bool:
        return await self.sessions(host) is not None

    async def renewed(self, host: Node) -> None:
        """Wait until another process computes for a host."""
        dead = host.worker

        async def is_there() -> bool:
            await host.look()
            return host.worker not in (0, dead)

        await host.until("it had another worker", is_there)

    async def restart(self, host: Node) -> None:
        """Start the process of a host that was killed."""
        if host.process is not None:
            await trio.to_thread.run_sync(host.process.wait)
        await host.start(self._environment)


@asynccontextmanager
async def open_swarm(
    folder: Path, watcher: Watcher, random: Random, *, bare: bool = False
) -> AsyncIterator[Swarm]:
    """A swarm in a folder; ``bare``: nothing is between its workers."""
    swarm = Swarm(folder, watcher, random, bare=bare)
    async with AsyncExitStack() as stack:
        await swarm.begin(stack)
        yield swarm
