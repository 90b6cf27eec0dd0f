"""What is demonstrated: a question, a node that dies while it is answered, and the same text."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kwaai_core import KwaaiError, Span
from kwaai_lobe_router.demo.choice import check_template, chosen
from kwaai_lobe_router.demo.nodes import START_SECONDS, DemoFailed, Node, node
from kwaai_lobe_router.refusals import blocks
from kwaai_lobe_router.swarm import LOCAL

Say = Callable[[str], None]

TOKENS = 64
CONTEXT = 512
_PROCESS_BYTES = 64 << 20
_KV_BYTES = 24 << 20
_AT_LEAST = 8  # tokens before the node is killed, and after
_PLAN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Script:
    """How it shall go. ``models`` is the user's own list of them; ``blocks`` and ``size``, in
    bytes, are the model's, as the first node tells."""

    model: str
    prompt: str
    nodes: int
    kill: bool
    models: Path
    blocks: int = 0
    size: int = 0

    @property
    def threads(self) -> int:
        """Of each node, and of the whole model, so that their speeds can be compared."""
        return max(1, len(os.sched_getaffinity(0)) // self.nodes)


@dataclass(slots=True)
class Answer:
    """A streamed answer: its text, when each piece of it came, and what was told of it."""

    text: str = ""
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    planned: str = ""
    kwaai: dict[str, Any] = field(default_factory=dict)

    @property
    def longest_gap(self) -> float:
        """Seconds between two pieces."""
        return max((b - a for a, b in pairwise(self.times)), default=0.0)

    @property
    def rate(self) -> float:
        """Tokens a second after the first, without the longest gap."""
        took = self.times[-1] - self.times[0] - self.longest_gap
        return (self.tokens - 2) / took if took > 0 and self.tokens > 2 else 0.0


def spans_of(nodes: int, blocks: int) -> list[Span]:
    """What each node holds: the first one the first part, the last one all parts but that, so that
    it can stand in for any node between the two; with two nodes each has its half."""
    parts = max(2, nodes - 1)
    borders = [blocks * part // parts for part in range(parts + 1)]
    spans = [Span(borders[part], borders[part + 1]) for part in range(parts)]
    return spans if nodes == parts else [*spans, Span(borders[1], blocks)]


def tell(script: Script, folder: Path, say: Say, show: Say) -> dict[str, Any]:
    """Give the demonstration, and what came of it. ``say`` is for what happens, ``show`` for the
    text as it comes. Errors: :class:`KwaaiError`."""
    script, baseline = _baseline(script, folder, say)
    with _swarm(script, folder, say) as nodes:
        say(f"Asking the first node: {script.prompt}")
        killed: list[str] = []
        answer = _ask(
            nodes[0],
            script,
            show,
            after=_AT_LEAST + 4,
            then=(lambda planned: killed.append(_kill(planned, nodes, say)))
            if script.kill
            else None,
        )
        names = {LOCAL: nodes[0].name, **{other.peer: other.name for other in nodes[1:]}}
        return _report(script, baseline, answer, killed, names)


def _baseline(script: Script, folder: Path, say: Say) -> tuple[Script, Answer]:
    """The script with what it has to know of the model, and the text of the untouched file."""
    say("First the untouched model in one node, for comparison")
    config = _whole_config(script)
    with node("the node with the whole model", folder / "whole", config, script.models) as whole:
        facts = chosen(script.model, script.nodes, whole.get("/v1/models")["data"])
        known = replace(script, blocks=facts["blocks"], size=facts["size"])
        # the node answers this once it has loaded the model
        asked = f"/tokenizer_info?{urlencode({'model': script.model})}"
        check_template(script.model, whole.get(asked, seconds=START_SECONDS))
        return known, _ask(whole, known, lambda _: None)


@contextmanager
def _swarm(script: Script, folder: Path, say: Say) -> Iterator[list[Node]]:
    spans = spans_of(script.nodes, script.blocks)
    with ExitStack() as stack:
        nodes = []
        for number, span in enumerate(spans, 1):
            say(f"Starting node {number} with {blocks(span)}")
            config = _config(script, span)
            nodes.append(
                stack.enter_context(
                    node(f"node {number}", folder / f"node-{number}", config, script.models)
                )
            )
        for other in nodes[1:]:
            invited = nodes[0].post(
                "/peers/invite", {"group": "demo", "seconds": 600, "may_invite": True}
            )
            other.post("/peers/join", {"line": invited["line"]})
            say(f"{other.name} has joined: it is {other.peer}")
        say("None of them holds the whole model; now they load their blocks")
        nodes[0].wait_for("all nodes held their blocks", partial(_all_hold, nodes, script.model))
        yield nodes


def _all_hold(nodes: Sequence[Node], model: str) -> bool:
    """Whether the first node knows that each of them holds blocks of the model."""
    holders = {peer["peer"] for peer in _status(nodes[0], model).get("peers", [])}
    return len(holders) == len(nodes)


def _status(asked: Node, model: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = asked.get(f"/lobes/router/status?model={model}")
    except KwaaiError:
        return {}  # it is not open yet
    return found


def _whole_config(script: Script) -> dict[str, dict[str, object]]:
    return {
        "libp2p": {"listen": []},
        "llama": {
            "load": script.model,
            "threads": script.threads,
            "exact": True,
            "streams": 2,
            "context": CONTEXT,
        },
    }


def _config(script: Script, span: Span) -> dict[str, dict[str, object]]:
    held = script.size * (span.hi - span.lo) // script.blocks
    return {
        "libp2p": {"listen": ["/ip4/127.0.0.1/tcp/0"]},
        # enough for its own blocks, and too little for the model
        "llama": {
            "load": "none",
            "threads": script.threads,
            "streams": 2,
            "context": CONTEXT,
            "memory": _PROCESS_BYTES + min(script.size, held + _KV_BYTES),
        },
        "spans": {"models": [script.model], "blocks": f"{span.lo}-{span.hi - 1}"},
    }


def _ask(
    asked: Node,
    script: Script,
    show: Say,
    *,
    after: int = 0,
    then: Callable[[str], None] | None = None,
) -> Answer:
    """Ask, and call ``then`` with the planned route once ``after`` pieces have come."""
    import httpx

    body = {
        "model": script.model,
        "messages": [{"role": "user", "content": script.prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": TOKENS,
        "kwaai": {"exact": True, "timing": True},
    }
    answer = Answer()
    url = f"{asked.url}/v1/chat/completions"
    with (
        httpx.Client(timeout=300, trust_env=False) as client,
        _patiently(client, url, body) as response,
    ):
        answer.planned = response.headers.get("x-kwaai-route", "")
        for document in _events(response):
            _take(document, answer, show)
            if then is not None and len(answer.times) >= after:
                then(answer.planned)
                then = None
    return answer


@contextmanager
def _patiently(client: Any, url: str, body: dict[str, object]) -> Iterator[Any]:
    """The response, once there is a route: peers need a moment to find each other."""
    deadline = time.monotonic() + _PLAN_SECONDS
    while True:
        with client.stream("POST", url, json=body) as response:
            if response.status_code == 200:
                yield response
                return
            response.read()
            error = response.json()["error"]["message"]
            if response.status_code != 503 or time.monotonic() > deadline:
                raise DemoFailed(f"the question was not answered: {error}")
        time.sleep(0.3)


def _events(response: Any) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            document = json.loads(line[6:])
            if "error" in document:
                raise DemoFailed(f"the answer broke off: {document['error']['message']}")
            yield document


def _take(document: dict[str, Any], answer: Answer, show: Say) -> None:
    for choice in document["choices"]:
        text = choice["delta"].get("content")
        if text:
            answer.text += text
            answer.times.append(time.monotonic())
            show(text)
    if document.get("usage"):
        answer.tokens = document["usage"]["completion_tokens"]
        answer.prompt_tokens = document["usage"]["prompt_tokens"]
        answer.kwaai = document.get("kwaai", {})


def _kill(planned: str, nodes: Sequence[Node], say: Say) -> str:
    """Kill a node on the route that is not the one asked; its peer id."""
    for other in nodes[1:]:
        if f"{other.peer}:" in planned:
            other.process.kill()
            say(f"\n[{other.name} was killed]")
            return other.peer
    raise DemoFailed(f"no other node is on the route: {planned}")


def _report(
    script: Script,
    baseline: Answer,
    answer: Answer,
    killed: list[str],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """What came of it; ``names`` are what the peers of a route are called."""
    replayed = max((hop["replayed"] for hop in answer.kwaai.get("timing", [])), default=0)
    before = max(0, replayed - answer.prompt_tokens) if script.kill else 0
    return {
        "model": script.model,
        "prompt": script.prompt,
        "text": answer.text,
        "baseline_text": baseline.text,
        "same_text": answer.text == baseline.text,
        "nodes": len(names),
        "names": dict(names),
        "threads": script.threads,
        "route_before": [_hop(hop) for hop in answer.planned.split(", ")],
        "route_after": answer.kwaai.get("route", []),
        "killed": killed[0] if killed else None,
        "tokens_before_kill": before,
        "tokens_after_kill": answer.tokens - before if script.kill else 0,
        "replayed_tokens": replayed,
        "longest_gap_ms": round(answer.longest_gap * 1e3, 1),
        "tokens_per_second": round(answer.rate, 2),
        "baseline_tokens_per_second": round(baseline.rate, 2),
        "timing": answer.kwaai.get("timing", []),
    }


def _hop(words: str) -> dict[str, object]:
    peer, _, blocks = words.rpartition(":")
    lo, _, hi = blocks.partition("-")
    return {"peer": peer, "lo": int(lo), "hi": int(hi)}
