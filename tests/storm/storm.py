"""Many chats at once over nodes that are killed, and come back, again and again.

One node is asked, and holds the first third of a small random model; three others hold the rest,
each in two units, so that a route may use one of them or two. Every few seconds one of the three is
killed, never the last that lives, and started again. A chat counts if a node of its route was
killed while it was answered: its text has to be that of the untouched model all the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from kwaai_core.testing.models import Shape, write_random_model
from tests.faults.asking import MODEL, Answer, Question, ask
from tests.faults.nodes import Broken, Node, all_known, end, join, known

SHAPE = Shape("qwen2", blocks=6)
_FIRST, _REST = "0-1", "2-5"
_HOSTS = 3
_CONTEXT = 1024
_FORGET_SECONDS = 8.0
"""What a lost link has left is forgotten after five seconds."""


@dataclass(frozen=True)
class Kill:
    """When a peer was killed."""

    peer: str
    moment: float


@dataclass
class Chat:
    """One question and its answer; ``right`` is the text that it should have."""

    question: Question
    answer: Answer
    right: str
    struck: bool

    @property
    def equal(self) -> bool:
        return not self.answer.error and self.answer.text == self.right


@dataclass
class Weather:
    """For so many ``seconds`` a node is killed every ``least`` to ``most`` seconds."""

    chats: int = 20
    seconds: float = 120.0
    least: float = 2.0
    most: float = 5.0
    tokens: int = 240


@dataclass
class Storm:
    """The nodes, what is asked, and what has come of it."""

    folder: Path
    weather: Weather
    random: Random
    tell: Callable[[str], None]
    texts: dict[Question, str] = field(default_factory=dict)
    chats: list[Chat] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)

    # -- before it

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Start the nodes, and end them with the context."""
        self.folder.mkdir(exist_ok=True)
        model = write_random_model(self.folder / "model.gguf", SHAPE)
        whole = self._make("whole", {"load": MODEL, "exact": True}, {})
        self.asked = self._make("asked", {"load": "none"}, _spans(_FIRST) | {"whole": False})
        self.hosts = [
            self._make(f"host {n + 1}", {"load": "none"}, _spans(_REST)) for n in range(_HOSTS)
        ]
        nodes = [whole, self.asked, *self.hosts]
        try:
            await whole.add(model, MODEL)
            for node in nodes[1:]:
                shutil.copytree(whole.home.folder / "state", node.home.folder / "state")
            await self._learn_texts(whole)
            await join(self.asked, self.hosts, {})
            await all_known(self.asked, self.hosts, MODEL)
            yield
        finally:
            await end(nodes)

    def _make(self, name: str, llama: dict[str, object], spans: dict[str, object]) -> Node:
        config = {
            "lobes": ["identity", "libp2p", "models", "llama", "router"],
            "libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
            "llama": {"threads": 1, "streams": self.weather.chats, "context": _CONTEXT, **llama},
            "spans": spans,
        }
        return Node.make(name, self.folder / name.replace(" ", "-"), config)

    async def _learn_texts(self, whole: Node) -> None:
        await whole.start({})
        await whole.ready()
        for number in range(self.weather.chats):
            question = _question(number, self.weather.tokens)
            self.texts[question] = (await ask(whole, question)).text
        await whole.end()
        if not all(self.texts.values()) or len(set(self.texts.values())) < len(self.texts):
            raise Broken("the whole model gave equal answers, or none")

    # -- the storm

    async def blow(self) -> None:
        """Chat and kill until the time is over, and let the last chats end."""
        self._end = time.monotonic() + self.weather.seconds
        async with trio.open_nursery() as nursery:
            for question in self.texts:
                nursery.start_soon(self._chat, question)
            nursery.start_soon(self._kill)

    async def _chat(self, question: Question) -> None:
        while time.monotonic() < self._end:
            answer = await ask(self.asked, question)
            route = {hop.rpartition(":")[0] for hop in answer.planned.split(", ")}
            route |= {hop["peer"] for hop in answer.kwaai.get("route", [])}
            struck = any(
                kill.peer in route and answer.asked < kill.moment < answer.ended
                for kill in self.kills
            )
            chat = Chat(question, answer, self.texts[question], struck)
            self.chats.append(chat)
            if not chat.equal:
                words = answer.error.get("message") or f"{answer.text!r} is not {chat.right!r}"
                self.tell(f"{question.name}: {words}")
            if answer.error:
                await trio.sleep(0.5)

    async def _kill(self) -> None:
        async with trio.open_nursery() as nursery:
            while time.monotonic() < self._end:
                await trio.sleep(self.random.uniform(self.weather.least, self.weather.most))
                peers = await known(self.asked, MODEL)
                there = [host for host in self.hosts if host.lives and host.peer in peers]
                if len(there) > 1:  # somebody has to be able to stand in
                    busy = [host for host in there if await self._sessions(host)]
                    host = self.random.choice(busy or there)
                    host.kill()
                    self.kills.append(Kill(host.peer, time.monotonic()))
                    self.tell(f"{host.name} was killed ({len(self.chats)} chats so far)")
                    nursery.start_soon(self._come_back, host)

    async def _come_back(self, host: Node) -> None:
        if host.process is not None:
            await trio.to_thread.run_sync(host.process.wait)
        await trio.sleep(self.random.uniform(0.2, 1.5))
        await host.start({})

    async def leaked(self) -> dict[str, int]:
        """The sessions that hosts still have a while after the last chat, by host."""
        await trio.sleep(_FORGET_SECONDS)
        left = {host.name: await self._sessions(host) for host in self.hosts if host.lives}
        return {name: sessions for name, sessions in left.items() if sessions}

    async def _sessions(self, host: Node) -> int:
        held = (await host.facts("router")).get("holds") or [{}]
        return int(held[0].get("sessions", 0))


def _spans(blocks: str) -> dict[str, object]:
    return {"models": [MODEL], "blocks": blocks, "unit": 2}


def _question(number: int, tokens: int) -> Question:
    """Different prompts of different lengths; every second one is drawn, with a seed."""
    sampling: dict[str, float] = {"temperature": 0.0}
    if number % 2:
        sampling = {"temperature": 0.9, "top_p": 0.95, "seed": number}
    name = f"Chat {number} of {'many ' * number}"
    return Question(name, number % 4 == 3, tuple(sampling.items()), tokens)
