"""A swarm of nodes that are far from one another: what is predicted of it, and what comes of it.

One node is asked, and holds the first third of a model; each of the other thirds is held by two
more. Each is a real node on a host of its own. A question is asked once undisturbed, to compare the
time of a token with what the plan says, and once more while a node of its route is killed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from kwaai_core.gguf import read_gguf
from tests.delays.net import FarHost
from tests.faults.asking import MODEL, Answer, Question, ask
from tests.faults.nodes import Broken, Node, all_known, end, join

NAMES = ("asked", "2a", "2b", "3a", "3b")
_THIRDS = 3
_CONTEXT = 1024
_PORT = 4001
_MIDDLE = 3
"""The node is killed when one token in so many of those that were asked for has come."""


@dataclass(frozen=True)
class Crossing:
    """A question whose route was predicted, and its answer."""

    plan: Mapping[str, Any]
    answer: Answer
    right: str

    @property
    def equal(self) -> bool:
        return not self.answer.error and self.answer.text == self.right

    @property
    def token_seconds(self) -> float:
        """From one token to the next, on the average over the answer."""
        times = self.answer.times
        return (times[-1] - times[0]) / max(1, self.answer.tokens - 1)

    @property
    def first_seconds(self) -> float:
        return self.answer.times[0] - self.answer.asked

    @property
    def peers(self) -> list[str]:
        """Who is on the route that was planned, the node itself last or first as it may be."""
        return [hop["peer"] for hop in self.plan["route"]]


@dataclass
class FarSwarm:
    """The nodes on their hosts, in the order of :data:`NAMES`."""

    folder: Path
    places: Sequence[FarHost]
    model: Path
    tokens: int
    tell: Callable[[str], None]
    right: str = field(default="", init=False)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Start the nodes, and end them with the context."""
        whole = self._make("whole", None, {"load": MODEL, "exact": True}, {})
        self.asked, *self.hosts = self._nodes(read_gguf(self.model).blocks)
        try:
            await whole.add(self.model, MODEL)
            for node in (self.asked, *self.hosts):
                shutil.copytree(whole.home.folder / "state", node.home.folder / "state")
            await whole.start({})
            await whole.ready()
            answer = await ask(whole, self._question)
            self.right, self._prompt = answer.text, answer.prompt_tokens
            await whole.end()
            self.tell("the whole model has answered on one node")
            await join(self.asked, self.hosts, {})
            await all_known(self.asked, self.hosts, MODEL)
            self.tell("five nodes know one another")
            yield
        finally:
            await end([whole, self.asked, *self.hosts])

    def _nodes(self, blocks: int) -> list[Node]:
        borders = [blocks * third // _THIRDS for third in range(_THIRDS + 1)]
        nodes = []
        for name, place in zip(NAMES, self.places, strict=True):
            third = 0 if name == "asked" else int(name[0]) - 1
            spans = {"models": [MODEL], "blocks": f"{borders[third]}-{borders[third + 1] - 1}"}
            nodes.append(self._make(name, place, {"load": "none"}, spans | {"whole": False}))
        return nodes

    def _make(
        self,
        name: str,
        place: FarHost | None,
        llama: Mapping[str, object],
        spans: Mapping[str, object],
    ) -> Node:
        address = f"/ip4/{place.address}/tcp/{_PORT}" if place else "/ip4/127.0.0.1/tcp/0"
        config = {
            "lobes": ["identity", "libp2p", "models", "llama", "router"],
            "libp2p": {"listen": [address]},
            "llama": {"threads": 1, "streams": 2, "context": _CONTEXT, **llama},
            "spans": spans,
        }
        host = place.name if place else ""
        return Node.make(name, self.folder / name, config, host=host)

    @property
    def _question(self) -> Question:
        return Question("far", False, (("temperature", 0.0),), self.tokens)

    async def plan(self) -> Mapping[str, Any]:
        """What ``kwaai swarm plan --json`` prints. Errors: :class:`Broken`."""
        words = ("swarm", "plan", MODEL, "--prompt-tokens", str(self._prompt), "--json")
        done = await trio.to_thread.run_sync(self.asked.home.kwaai, *words)
        found: Mapping[str, Any] = json.loads(done.stdout or "{}")
        if done.returncode or not found["route"]:
            raise Broken(f"there is no plan: {done.stderr or found}")
        return found

    async def cross(self, *, kill: bool = False) -> Crossing:
        """Ask, and kill the first other node of the route in the middle where that is wanted."""
        plan = await self.plan()
        peers = [hop["peer"] for hop in plan["route"]]
        victim = next(host for host in self.hosts if host.peer in peers)

        def piece(answer: Answer) -> None:
            if kill and victim.lives and len(answer.times) > self.tokens // _MIDDLE:
                victim.kill()
                self.tell(f"{victim.name} was killed after {len(answer.times)} pieces")

        return Crossing(plan, await ask(self.asked, self._question, piece), self.right)
