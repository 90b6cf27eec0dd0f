"""Questions to a node, and what came of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from tests.faults.nodes import Node

MODEL = "faults"
TOKENS = 40
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Question:
    """What is asked; equal ones have equal answers. ``long``: a prompt of several chunks."""

    name: str
    long: bool
    sampling: tuple[tuple[str, float], ...]
    tokens: int = TOKENS

    @property
    def body(self) -> dict[str, object]:
        prompt = "Who keeps the blocks of a model when its neighbour leaves? " * (
            6 if self.long else 1
        )
        return {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{self.name}: {prompt}"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.tokens,
            "kwaai": {"exact": True, "timing": True},
            **dict(self.sampling),
        }


_GREEDY = (("temperature", 0.0),)
_DRAWN = (("temperature", 0.9), ("top_p", 0.95), ("seed", 11))
SHORT = (Question("short", False, _GREEDY), Question("short, drawn", False, _DRAWN))
LONG = (Question("long", True, _GREEDY), Question("long, drawn", True, _DRAWN))
TOLD = (Question("told", False, _GREEDY, 240), Question("told, drawn", False, _DRAWN, 240))
"""Their answers take long enough for whoever only reads them to strike in the middle."""


@dataclass
class Answer:
    """A streamed answer: its text, when each piece came, and how it ended."""

    asked: float
    planned: str = ""
    text: str = ""
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    kwaai: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0

    @property
    def gap(self) -> float:
        """The longest wait for a piece, or for the end, in seconds."""
        return max(b - a for a, b in pairwise([self.asked, *self.times, self.ended]))

    @property
    def replayed(self) -> int:
        return sum(hop["replayed"] for hop in self.kwaai.get("timing", []))


async def ask(
    node: Node, question: Question, piece: Callable[[Answer], None] = lambda _: None
) -> Answer:
    """Ask a node, and call ``piece`` when it begins to answer, and whenever a piece has come."""
    answer = Answer(time.monotonic())
    transport = httpx.AsyncHTTPTransport(uds=str(node.home.folder / "state" / "node.sock"))
    async with (
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=ANSWER_SECONDS
        ) as client,
        client.stream("POST", "/v1/chat/completions", json=question.body) as response,
    ):
        if response.is_success:
            answer.planned = response.headers.get("x-kwaai-route", "")
            piece(answer)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(json.loads(line[6:]), answer, piece)
        else:
            answer.error = json.loads(await response.aread())["error"]
    answer.ended = time.monotonic()
    return answer


def _take(document: dict[str, Any], answer: Answer, piece: Callable[[Answer], None]) -> None:
    answer.error = document.get("error", answer.error)
    for choice in document.get("choices", []):
        if text := choice["delta"].get("content"):
            answer.text += text
            answer.times.append(time.monotonic())
            piece(answer)
    if document.get("usage"):
        answer.tokens = document["usage"]["completion_tokens"]
        answer.prompt_tokens = document["usage"]["prompt_tokens"]
        answer.kwaai = document.get("kwaai", {})
